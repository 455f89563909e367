"""Joining institutions: startup kits made and hardened, the sites' own policies, a federation's certificates."""
