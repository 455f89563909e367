"""fedfms: hospitals train the Segment Anything Model together, on NVIDIA FLARE; every image stays where it is."""

__version__ = "0.1.0"
