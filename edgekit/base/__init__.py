"""What every room uses: errors, events, artifacts, caching, memory, hardware, the console, locks and the clock."""
