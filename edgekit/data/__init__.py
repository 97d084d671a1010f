"""Data: instruction rows, their splits and dataset card, and a demo set that is made here from a seed."""
