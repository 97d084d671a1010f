"""Several devices: how each is named, asked for its status by URL or SSH, and shown with the others, worst first."""
