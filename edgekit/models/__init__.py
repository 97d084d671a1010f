"""What comes in: a model's source, its tokenizer and its chat template."""
