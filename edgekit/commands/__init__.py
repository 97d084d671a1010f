"""The verbs of the command line: what a person types, turned into calls of the core."""
