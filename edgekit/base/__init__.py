"""The base package: errors, events, artifacts, the stage cache, memory, hardware, the console, locks and the clock."""
