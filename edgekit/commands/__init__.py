"""The verbs of the command line: they parse options and call the core."""
