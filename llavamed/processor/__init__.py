"""Words and pictures to what a model reads: tokenizer, templates, labels, pixels."""
