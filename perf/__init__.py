"""The measuring harness: `python -m perf produce|consume|latency|startup`, from a checkout."""
