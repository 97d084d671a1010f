"""What the terminal app shows, apart from how: read from the same events and stores as the shell commands read."""
