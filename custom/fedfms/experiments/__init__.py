"""Experiments: many runs of one study, planned, executed in parallel, resumed and tabulated."""
