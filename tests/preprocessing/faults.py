"""Defects of one case in a raw folder: how to make each of them in its two files, and its expected message."""

import gzip
import io
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image, PngImagePlugin

from tests.preprocessing.layouts import FLAT, VOLUME, Layout

_LEADS_OUT = "a link or `..` leads out of the raw folder; put the file itself there"


@dataclass(frozen=True)
class Fault:
    """A defect of a case."""

    kinds: tuple[str, ...]  # kinds of data that can have it
    make: Callable[[Path, Path, Layout], object]  # from the image's and the label's path
    message: str  # a regular expression; "": the layout's message


def bomb_png() -> bytes:
    """A PNG of a few bytes whose header declares 60000 x 60000 px."""
    data = bytearray(png(np.zeros((10, 14), np.uint8)))
    data[16:24] = (60000).to_bytes(4, "big") * 2
    data[29:33] = PngImagePlugin._crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


def png(array: np.ndarray) -> bytes:
    """A PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def _pages(image: Path) -> None:
    page = Image.open(image).convert("L")
    page.save(image, "TIFF", save_all=True, append_images=[page])


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def _nifti(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace a volume by one with changed voxels."""
    image = nib.load(path)
    nib.save(nib.Nifti1Image(change(np.asanyarray(image.dataobj)), image.affine), path)


def _nan(array: np.ndarray) -> np.ndarray:
    array = array.astype(np.float32)
    array[3, 4, 5] = np.nan
    return array


def _bomb_nifti(path: Path) -> None:
    data = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(data[:40] + struct.pack("<8h", 3, *[32767] * 3, 1, 1, 1, 1) + data[56:]))


def _odd(label: Path, layout: Layout) -> None:
    if layout.kind == FLAT:
        label.write_bytes(png(layout.odd))
    else:
        _nifti(label, lambda _: layout.odd)


def _move_out(path: Path, raw: Path, *, relative: bool) -> None:
    """Move the file out of the raw folder and put a link in its place."""
    away = raw.parent / f"away{path.suffix}"
    path.rename(away)
    path.symlink_to(os.path.relpath(away, path.parent) if relative else away)


def _raw(image: Path, layout: Layout) -> Path:
    return image.parents[len(Path(layout.image).parts) - 1]


BOTH = (FLAT, VOLUME)
FAULTS = {
    "cut short": Fault(BOTH, lambda image, label, _: _cut(image), "cannot be read: damaged, cut short"),
    "label cut short": Fault(BOTH, lambda image, label, _: _cut(label), "cannot be read: damaged, cut short"),
    "empty": Fault(BOTH, lambda image, label, _: image.write_bytes(b""), "(cannot be read: damaged|is not a NIfTI)"),
    "several pages": Fault((FLAT,), lambda image, label, _: _pages(image), "the image has several pages"),
    "4D": Fault((VOLUME,), lambda image, label, _: _nifti(image, lambda a: np.stack([a, a], -1)), "has 4 axes"),
    "label value": Fault(BOTH, lambda image, label, layout: _odd(label, layout), ""),
    "no label": Fault(BOTH, lambda image, label, _: label.unlink(), "has no (mask|annotation|segmentation)"),
    "no image": Fault(BOTH, lambda image, label, _: image.unlink(), "has no (image|volume)"),
    "size": Fault((FLAT,), lambda image, label, _: label.write_bytes(png(np.zeros((31, 17), np.uint8))), "px differ"),
    "volume size": Fault((VOLUME,), lambda image, label, _: _nifti(label, lambda a: a[:, :, :-1]), "differ in size"),
    "NaN": Fault((VOLUME,), lambda image, label, _: _nifti(image, _nan), "voxels that are NaN or infinite"),
    "bomb": Fault((FLAT,), lambda image, label, _: image.write_bytes(bomb_png()), "the image has more than .* pixels"),
    "volume bomb": Fault((VOLUME,), lambda image, label, _: _bomb_nifti(image), "voxels, more than"),
    "link out": Fault(BOTH, lambda i, label, layout: _move_out(i, _raw(i, layout), relative=False), _LEADS_OUT),
    "`..` out": Fault(BOTH, lambda i, label, layout: _move_out(label, _raw(i, layout), relative=True), _LEADS_OUT),
}
