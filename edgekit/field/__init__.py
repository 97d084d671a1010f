"""A bundle in use on a device: serving, telemetry, incidents and releases."""
