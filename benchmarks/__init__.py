"""Measures each stage beside the limit that it has on the same machine: `python -m benchmarks`."""
