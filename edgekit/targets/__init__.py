"""The typed schema of targets; all faults are reported at once."""
