"""Several devices, this one and others by URL or SSH: their status worst first, their incidents, their recovery."""
