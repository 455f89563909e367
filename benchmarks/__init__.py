"""Speed and memory, measured: each benchmark prints JSON with the machine that it ran on. No tests, no limits."""
