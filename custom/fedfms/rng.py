"""Random streams without global state: one per (seed, site, round, purpose), identical on every machine."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def _entropy(seed: int, site: str, round_: int, purpose: str) -> int:
    text = f"{int(seed)}\x1f{site}\x1f{int(round_)}\x1f{purpose}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def rng(seed: int, site: str = "", round_: int = 0, purpose: str = "") -> np.random.Generator:
    """NumPy generator of the stream (seed, site, round, purpose)."""
    return np.random.default_rng(_entropy(seed, site, round_, purpose))


def torch_rng(seed: int, site: str = "", round_: int = 0, purpose: str = "") -> torch.Generator:
    """Torch generator (CPU) of the stream (seed, site, round, purpose)."""
    generator = torch.Generator()
    generator.manual_seed(_entropy(seed, site, round_, purpose) & (2**63 - 1))
    return generator


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Seed torch's global CPU stream inside the block, and restore it afterwards.

    Torch modules draw their initial weights from the global stream and accept no generator. This makes the draw a
    function of (seed, purpose) alone and leaves the caller's stream untouched.
    """
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(_entropy(seed, "", 0, purpose) & (2**63 - 1))
        yield
