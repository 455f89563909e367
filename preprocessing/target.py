"""The output folder of a conversion: slices are encoded and written, stale slices are deleted, other files are not."""

import io
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
from fedfms.preprocessing.raw import walk
from fedfms.schema import read_json

_WEBP_MAX_PX = 16383  # per side, a limit of the format
# a quarter to two fifths smaller than PNG; more effort takes several times as long to write and saves little
_WEBP: Mapping[str, Any] = {"lossless": True, "exact": True, "method": 2, "quality": 30}
_SLICE = re.compile(r"(images|labels)/[0-9a-f]{16}_[0-9]+\.(png|webp)")
# temporary files of `write_atomic` that a killed process left
_TEMPORARY = re.compile(r"((images|labels)/\.[0-9a-f]{16}_[0-9]+\.(png|webp)|\.manifest\.json)\.\w+\.tmp")


def reject_foreign_files(target: Path, site: str) -> None:
    """Check that the folder is missing, empty, or the output of a conversion.

    Raises:
        DataError: it holds other files and no manifest of a conversion, so it is probably something else.
        OSError: it cannot be read.
    """
    if not target.exists() or _is_manifest(target / FILE_NAME):
        return
    names = {path.relative_to(target).as_posix() for path in walk(target)}
    foreign = {name for name in names if not _is_own(name)}
    if foreign != names:
        foreign.discard(FILE_NAME)  # next to slices, it is a damaged manifest
    if foreign:
        what = f"the output folder holds {len(foreign)} files that no conversion wrote, and no manifest of a conversion"
        raise DataError(what, where=f"site {site}", do="choose another --out, or move the files; nothing was changed")


def make_folders(target: Path) -> None:
    """Make the folders for slices."""
    for part in ("images", "labels"):
        (target / part).mkdir(parents=True, exist_ok=True)


def ending(pixels: NDArray[np.uint8]) -> str:
    """ ".webp" for colour; ".png" for grey and for images too large for WebP.

    WebP stores grey as colour, which triples the pixels to decode.
    """
    return ".webp" if pixels.ndim == 3 and max(pixels.shape) <= _WEBP_MAX_PX else ".png"


def encode(pixels: NDArray[np.uint8], ending: str) -> bytes:
    """A lossless file without metadata of pixels (H, W) or (H, W, 3), in the format of the ending."""
    content = io.BytesIO()
    image = Image.fromarray(pixels)
    if ending == ".webp":
        image.save(content, "WEBP", **_WEBP)
    else:
        image.save(content, "PNG", compress_level=3)
    return content.getvalue()


def write_if_changed(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write a file without metadata in the format of its ending, unless it exists with the same pixels.

    Replacing a file makes the manifest invalid, so the manifest is removed first.
    """
    try:
        with Image.open(path, formats=FORMATS) as opened:
            if not metadata(opened) and np.array_equal(np.asarray(opened), pixels):
                return
    except Exception:  # noqa: BLE001, SIM105 - missing, or damaged in any way: written below
        pass
    if path.exists():
        path.parent.with_name(FILE_NAME).unlink(missing_ok=True)
    write_atomic(path, encode(pixels, path.suffix), sync=False)  # one of thousands; `convert` syncs the disk once


def remove_stale(target: Path, manifest: Manifest) -> None:
    """Delete slices of earlier conversions that the manifest does not list, and temporary files.

    An image that was withdrawn from the raw folder must not remain in the copy.
    """
    listed = {name for _, _, s in manifest.slices() for name in (s.image, s.label)}
    for path in sorted(walk(target)):
        name = path.relative_to(target).as_posix()
        if _is_own(name) and name not in listed:
            path.unlink()


def _is_own(name: str) -> bool:
    """Whether a conversion writes such a name, relative to the site's folder."""
    return bool(_SLICE.fullmatch(name) or _TEMPORARY.fullmatch(name))


def _is_manifest(path: Path) -> bool:
    """Whether a file is the manifest of a conversion, of any version."""
    try:
        raw = read_json(path, DataError)
    except DataError:
        return False
    return isinstance(raw, dict) and {"version", "dataset", "site", "cases"} <= raw.keys()
