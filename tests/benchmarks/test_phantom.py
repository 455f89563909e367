"""The picture of the phantom's sites: what is committed is what the command makes."""

from __future__ import annotations

import numpy as np
from PIL import Image

from benchmarks.pages import PAGES
from benchmarks.phantom import picture

COMMITTED = PAGES / "phantom-sites.png"


def test_the_committed_picture_is_what_the_command_makes():
    made, committed = (np.asarray(image, dtype=int) for image in (picture(), Image.open(COMMITTED)))
    assert made.shape == committed.shape == (128, 512, 3)
    # another NumPy or torch may round a grey value the other way
    assert np.abs(made - committed).max() <= 1
    assert COMMITTED.stat().st_size < 200_000
