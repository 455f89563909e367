"""The benchmark of data converts and loads what a site has, our way and the paper's; no timing is asserted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.data import measure
from benchmarks.loaders import WAYS


def test_all_ways_see_every_slice(tmp_path: Path) -> None:
    site = tmp_path / "raw" / "kvasir_seg_vestreviken_no"
    for part in ("images", "labels"):
        (site / part).mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    for index in range(3):
        Image.fromarray(np.roll(pixels, index)).save(site / "images" / f"{index}.png")
        Image.fromarray((pixels[..., 0] > 127).astype(np.uint8) * 255).save(site / "labels" / f"{index}.png")
    rows = measure("polyp", tmp_path / "raw", site.name, 64, images=2)
    ours, workers, cached, persistent, papers = rows
    assert [row["way"] for row in rows] == [*WAYS, "paper"]
    assert all((row["slices"], row["images"]) == (3, 2) for row in rows)
    assert ours["kept_mb_per_1000"] == workers["kept_mb_per_1000"] == 40 * 50 * 4 / 1000  # decoded, native
    assert cached["kept_mb_per_1000"] == round((64 * 64 * 3 + 256 * 256) * 4 / 1000, 1)
    assert persistent["kept_mb_per_1000"] > cached["kept_mb_per_1000"]
    assert papers["mb_per_1000"] == round((64 * 64 * 3 + 256 * 256 + 2 * 128) / 1000, 1)  # arrays and their headers
    assert all(row["images_per_s_later"] > 0 for row in rows)
