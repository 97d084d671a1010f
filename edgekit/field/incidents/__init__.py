"""Alerting: rules on telemetry, alerts that do not flap, and incidents with their evidence and next steps."""
