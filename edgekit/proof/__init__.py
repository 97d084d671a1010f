"""Proofs that a file answers as the model it came from: drift of the distributions, identity of the text path."""
