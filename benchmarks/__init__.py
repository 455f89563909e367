"""Benchmarks of speed, memory, bytes and robustness: each prints JSON with the machine. Not tests; no limits."""
