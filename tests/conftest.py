"""What tests of all kinds share: the real images and weights beside the checkout, where they are."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

# One thread, here and in the processes that tests start: sites that run side by side must not fight for the cores,
# and sums whose order depends on the number of threads differ in the last bit.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from tests.preprocessing.make import copy_sites

torch.set_num_threads(1)

REPO = Path(__file__).parents[1]
SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_polyp() -> Path:
    """Folder of the real polyp images of seven hospitals."""
    return _need(SHARED / "data" / "polyp")


@pytest.fixture(scope="session")
def converted_polyp(shared_polyp: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """converted_polyp("a site", ...) -> the data root that holds these real sites, converted by the command in a
    process of its own. A session converts each site once, and only those that a test asks for: tests read what is
    there, and leave it as it is.
    """
    out = tmp_path_factory.mktemp("polyp") / "DATA"
    there: set[str] = set()

    def convert(*sites: str) -> Path:
        missing = [site for site in sites if site not in there]
        if missing:
            raw = copy_sites(shared_polyp, tmp_path_factory.mktemp("raw"), *missing)
            command = [sys.executable, "-m", "preprocessing", "polyp", "--raw", str(raw), "--out", str(out)]
            done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            assert [site for site in missing if site not in done.stdout] == []
            there.update(missing)
        return out

    return convert


@pytest.fixture(scope="session")
def shared_weights() -> Path:
    """The pre-trained TinyViT SAM of LiteMedSAM."""
    return _need(SHARED / "weights" / "lite_medsam.pth")


def _need(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"needs {'/'.join(path.parts[-3:])} beside the checkout")
    return path
