"""How fast each stage is, beside the limit that it has on the same machine: `python -m benchmarks`."""
