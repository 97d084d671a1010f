"""Telemetry of a model in use: counts and histograms of its answers, never their text."""
