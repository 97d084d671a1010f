"""Weights in and out: merging, pruning, reading and comparing them."""
