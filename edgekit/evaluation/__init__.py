"""Measuring answers on rows: accuracy and its statistics."""
