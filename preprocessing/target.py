"""The folder that a conversion fills. Only names that a conversion makes are ever deleted in it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedfms.data.manifest import FILE_NAME, FORMATS, Manifest, metadata
from fedfms.errors import DataError
from fedfms.files import write_atomic
from preprocessing.raw import walk

_PARTS = ("images", "labels")
_WEBP_MOST_PX = 16383  # a side, by the format
# A quarter to two fifths smaller than PNG; more effort takes several times as long to write and saves little. The
# numbers: docs/results/data.md
_WEBP: Mapping[str, Any] = {"lossless": True, "exact": True, "method": 2, "quality": 30}
_SLICE = re.compile(r"(images|labels)/[0-9a-f]{16}_[0-9]+\.(png|webp)")
# what a kill in the middle of `write_atomic` leaves
_TEMPORARY = re.compile(r"((images|labels)/\.[0-9a-f]{16}_[0-9]+\.(png|webp)|\.manifest\.json)\.\w+\.tmp")


def refuse_foreign(target: Path, site: str) -> None:
    """See that the folder is empty, or a conversion's; nothing is touched.

    Raises:
        DataError: it holds other files and no manifest of a conversion, so it is probably something else.
        OSError: it cannot be read.
    """
    if not target.exists() or _is_manifest(target / FILE_NAME):
        return
    names = {path.relative_to(target).as_posix() for path in walk(target)}
    foreign = {name for name in names if not _own(name)}
    if foreign != names:
        foreign.discard(FILE_NAME)  # a damaged one: it lies with slices of ours
    if foreign:
        raise DataError(
            f"the output folder holds {len(foreign)} files that no conversion made, and no manifest of one",
            where=f"site {site}",
            do="name another --out, or move them away; nothing was touched",
        )


def begin(target: Path) -> None:
    """Before a slice is written: the folders are there."""
    for part in _PARTS:
        (target / part).mkdir(parents=True, exist_ok=True)


def ending(pixels: NDArray[np.uint8]) -> str:
    """ ".webp" for colour, ".png" for grey and for what is too large for WebP.

    WebP stores grey as colour, and is read as such: three times the pixels to decode.
    """
    return ".webp" if pixels.ndim == 3 and max(pixels.shape) <= _WEBP_MOST_PX else ".png"


def encode(pixels: NDArray[np.uint8], ending: str) -> bytes:
    """A lossless file of nothing but pixels, (H, W) or (H, W, 3), of that ending's format."""
    content = io.BytesIO()
    image = Image.fromarray(pixels)
    if ending == ".webp":
        image.save(content, "WEBP", **_WEBP)
    else:
        image.save(content, "PNG", compress_level=3)
    return content.getvalue()


def keep_or_write(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write a file of nothing but pixels, of its ending's format, unless one with these pixels is there.

    Where another one is, the manifest goes first, for it no longer holds; a slice that is new takes nothing from it.
    """
    try:
        with Image.open(path, formats=FORMATS) as opened:
            if not metadata(opened) and np.array_equal(np.asarray(opened), pixels):
                return
    except Exception:  # noqa: BLE001, SIM105 - not there, or damaged in whatever way: written below
        pass
    if path.exists():
        path.parent.with_name(FILE_NAME).unlink(missing_ok=True)
    write_atomic(path, encode(pixels, path.suffix), sync=False)  # thousands; `convert` sees to the disk once


def remove_strays(target: Path, manifest: Manifest) -> None:
    """Delete slices of an earlier run whose raw files are gone, and what a kill left: a withdrawn image must not
    live on in the copy.
    """
    listed = {name for _, _, s in manifest.slices() for name in (s.image, s.label)}
    for path in sorted(walk(target)):
        name = path.relative_to(target).as_posix()
        if _own(name) and name not in listed:
            path.unlink()


def _own(name: str) -> bool:
    """Whether a conversion makes such a name, relative to the site's folder."""
    return bool(_SLICE.fullmatch(name) or _TEMPORARY.fullmatch(name))


def _is_manifest(path: Path) -> bool:
    """Whether it is a conversion's, be it of another version, which a new conversion is to replace."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(raw, dict) and {"version", "dataset", "site", "cases"} <= raw.keys()
