"""Subcommands of `fedfms` that have a file of their own; each run returns the text to print."""
