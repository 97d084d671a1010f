"""Evaluation on rows: accuracy, the log of samples, comparisons, and their statistics."""
