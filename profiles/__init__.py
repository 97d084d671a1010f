"""Targets (TOML) and the profiler: latency, memory, throughput."""
