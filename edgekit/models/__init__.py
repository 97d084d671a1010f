"""Model input: a model's source, its tokenizer and its chat template."""
