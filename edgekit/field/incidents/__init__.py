"""Being told: rules on what telemetry reads, alerts that do not flap, incidents with their evidence and next steps."""
