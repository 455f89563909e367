"""The benchmark of formats: each is lossless, or it is an error; no size or time is asserted but the arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import formats
from preprocessing.target import _WEBP, encode


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for site in ("cvc_clinicdb_barcelona_es", "kvasir_seg_vestreviken_no"):
        for part in ("images", "labels"):
            (tmp_path / site / part).mkdir(parents=True)
        for index in range(3):
            image = random.integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / site / "images" / f"{index}.png")
            mask = (image[..., 0] > 127).astype(np.uint8) * 255
            Image.fromarray(mask).save(tmp_path / site / "labels" / f"{index}.png")
    return tmp_path


def test_a_row_a_format(raw: Path) -> None:
    rows = {row["format"]: row for row in formats.measure("polyp", raw, None, 64, images=4)}
    assert {"ours", "PNG 3", "PNG 9 optimised", "WebP 1/20", "JPEG 2000"} <= rows.keys()
    assert all((row["images"], row["site"], row["channels"]) == (4, "all", 3) for row in rows.values())
    assert rows["ours"]["mb_per_1000"] > 0


def test_ours_is_what_a_conversion_writes() -> None:
    """On a smooth picture, for noise weighs the same whatever the effort."""
    y, x = np.mgrid[:96, :128]
    waves = [127 + 60 * np.sin(x / a) + 60 * np.cos(y / b) for a, b in ((9, 14), (21, 6), (5, 30))]
    picture = np.stack(waves, axis=-1).astype(np.uint8)
    written = {name: one.write(picture) for name, one in formats._formats().items()}
    named = f"WebP {_WEBP['method']}/{_WEBP['quality']}"
    assert written["ours"] == encode(picture, ".webp") == written[named]
    assert [name for name, content in written.items() if content == written["ours"]] == ["ours", named]


def test_a_format_that_changes_pixels_is_an_error(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lossy = formats.Format(lambda pixels: encode(pixels ^ 1, ".png"), formats._read)
    monkeypatch.setattr(formats, "_formats", lambda: {"lossy": lossy})
    with pytest.raises(RuntimeError, match="lossy is not lossless"):
        formats.measure("polyp", raw, None, 64, images=4)
