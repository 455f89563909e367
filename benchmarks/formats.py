"""Lossless formats for a site's images: bytes, and milliseconds to write and to read one, on one core.

In memory, so that no disk is measured. Every content is decoded and compared; a format that changes a pixel is an
error. Formats whose package is not installed are left out.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.data import MASK_PX, recipe_of
from preprocessing.recipe import Pixels, Recipe
from preprocessing.target import encode, ending

PAPER_BYTES_PER_PX = 3


@dataclass(frozen=True)
class Format:
    """How pixels, uint8 (H, W) or (H, W, 3), become a file's content and are read again."""

    write: Callable[[Pixels], bytes]
    read: Callable[[bytes], Pixels]


def measure(dataset: str, raw: Path, site: str | None, size_px: int, images: int) -> list[dict[str, Any]]:
    """A row a format over `images` slices of a site (None: of all sites, evenly), masks included as they are written.

    Raises:
        FedfmsError: the raw folder or the site is not what the data set's converter expects.
        RuntimeError: a format gave other pixels.
    """
    recipe = recipe_of(dataset, raw)
    sites = [site] if site else recipe.sites(raw)
    each = -(-images // len(sites))
    slices = [pair for name in sites for pair in islice(_slices(recipe, raw, name), each)][:images]
    labels = sum(len(encode(label, ending(label))) for _, label in slices) / len(slices)
    arrays = PAPER_BYTES_PER_PX * size_px**2 + MASK_PX**2
    pictures = [image for image, _ in slices]
    first = {"dataset": dataset, "site": site or "all", "channels": 1 if pictures[0].ndim == 2 else 3}
    rows = []
    for name, one in _formats().items():
        mb, write_ms, read_ms = _through(name, one, pictures)
        share = arrays / (1000 * mb + labels)  # MB for 1,000 images are kB for one
        measured = {"mb_per_1000": round(mb, 1), "write_ms": write_ms, "read_ms": read_ms}
        rows.append({**first, "images": len(slices), "format": name, **measured, "arrays_times": round(share, 1)})
    return rows


def _slices(recipe: Recipe, raw: Path, site: str) -> Iterable[tuple[Pixels, Pixels]]:
    for case in recipe.find(raw, site).cases.values():
        yield from recipe.read(case).slices


def _through(name: str, one: Format, pictures: list[Pixels]) -> tuple[float, float, float]:
    """MB for 1,000 images, milliseconds to write one and to read one."""
    started = time.perf_counter()
    contents = [one.write(picture) for picture in pictures]
    written = time.perf_counter()
    back = [one.read(content) for content in contents]
    read = time.perf_counter()
    for picture, pixels in zip(pictures, back, strict=True):
        grey = pixels[..., 0] if pixels.ndim > picture.ndim else pixels  # WebP reads grey as colour
        if not np.array_equal(grey, picture):
            raise RuntimeError(f"{name} is not lossless")
    count = len(pictures)
    write_ms, read_ms = (round(1000 * seconds / count, 1) for seconds in (written - started, read - written))
    return sum(map(len, contents)) / count / 1000, write_ms, read_ms


def _formats() -> dict[str, Format]:
    made = {"ours": Format(lambda pixels: encode(pixels, ending(pixels)), _read)}
    made["PNG 3"] = _pillow("PNG", compress_level=3)
    made["PNG 9 optimised"] = _pillow("PNG", compress_level=9, optimize=True)
    for method, quality in ((0, 0), (1, 20), (2, 30), (4, 75), (6, 75)):
        made[f"WebP {method}/{quality}"] = _pillow("WEBP", lossless=True, exact=True, method=method, quality=quality)
    made["JPEG 2000"] = _pillow("JPEG2000", irreversible=False)
    if find_spec("oxipng"):
        import oxipng

        made["PNG oxipng 2"] = Format(lambda pixels: oxipng.optimize_from_memory(_png(pixels), level=2), _read)
    if find_spec("imagecodecs"):
        import imagecodecs

        made["JPEG-LS"] = Format(lambda pixels: bytes(imagecodecs.jpegls_encode(pixels)), imagecodecs.jpegls_decode)
        for effort in (1, 3):
            made[f"JPEG XL {effort}"] = _jpegxl(imagecodecs, effort)
    return made


def _pillow(name: str, **options: Any) -> Format:
    def write(pixels: Pixels) -> bytes:
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, name, **options)
        return content.getvalue()

    return Format(write, _read)


def _jpegxl(imagecodecs: Any, effort: int) -> Format:
    def write(pixels: Pixels) -> bytes:
        content: bytes = imagecodecs.jpegxl_encode(pixels, lossless=True, effort=effort, numthreads=1)
        return content

    return Format(write, lambda content: imagecodecs.jpegxl_decode(content, numthreads=1))


def _png(pixels: Pixels) -> bytes:
    return encode(pixels, ".png")


def _read(content: bytes) -> Pixels:
    with Image.open(io.BytesIO(content)) as opened:
        return np.array(opened)
