"""A bundle at work: serving, telemetry, incidents and releases."""
