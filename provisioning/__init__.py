"""Provisioning of a federation: hardened startup kits, site policies and certificates."""
