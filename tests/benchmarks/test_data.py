"""The benchmark of data converts and loads what a site has, our way and the paper's; no timing is asserted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.data import measure


def test_both_ways_see_every_slice(tmp_path: Path) -> None:
    site = tmp_path / "raw" / "kvasir_seg_vestreviken_no"
    for part in ("images", "labels"):
        (site / part).mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    for index in range(3):
        Image.fromarray(np.roll(pixels, index)).save(site / "images" / f"{index}.png")
        Image.fromarray((pixels[..., 0] > 127).astype(np.uint8) * 255).save(site / "labels" / f"{index}.png")
    ours, papers = measure("polyp", tmp_path / "raw", site.name, 64)
    assert (ours["way"], papers["way"]) == ("fedfms", "paper")
    assert ours["slices"] == papers["slices"] == 3
    assert papers["mb_per_1000"] == round((64 * 64 * 3 + 256 * 256 + 2 * 128) / 1000, 1)  # arrays and their headers
    assert all(row["images_per_s_later"] > 0 for row in (ours, papers))
