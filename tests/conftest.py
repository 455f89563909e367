"""Fixtures for all tests: the real images and weights next to the checkout, if present."""

import os
from collections.abc import Iterator
from pathlib import Path

# One thread, here and in the processes that tests start: parallel sites must not compete for the cores, and the thread
# count changes the last bit of sums.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from tests.disk import SmallDisk, small_disk

torch.set_num_threads(1)

REPO = Path(__file__).parents[1]
SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_polyp() -> Path:
    """The folder with real polyp images of seven hospitals."""
    return _need(SHARED / "data" / "polyp")


@pytest.fixture(scope="session")
def shared_weights() -> Path:
    """The pre-trained TinyViT SAM of LiteMedSAM."""
    return _need(SHARED / "weights" / "lite_medsam.pth")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk that a test can fill."""
    with small_disk(tmp_path / "disk") as made:
        yield made


def _need(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"needs {'/'.join(path.parts[-3:])} next to the checkout")
    return path
