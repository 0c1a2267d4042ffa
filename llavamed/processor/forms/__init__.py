"""Read published models that other programs have saved, as transformers would have them."""
