"""Convert texts and images to the input of a model: tokenizer, templates, labels and pixels."""
