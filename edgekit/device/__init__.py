"""What an app imports to open a bundle and ask it; no torch."""
