"""What is to be segmented, as the slices that training would have made of it: images, volumes, folders of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedfms.data import imagefile, niftifile
from fedfms.data.imagefile import Fault, read_image
from fedfms.data.intensity import Window, eight_bits
from fedfms.data.manifest import FILE_NAME, Case, load_manifest
from fedfms.data.niftifile import read_nifti
from fedfms.data.source import FolderSource, Item, list_items
from fedfms.data.volume import DEPTHS, Volume, cut, depth_axis
from fedfms.errors import CheckpointError, DataError

Pixels = NDArray[np.uint8]
_WHERE = "--input"
_KNOWN = f"known by their endings: {', '.join([*sorted(imagefile.ENDINGS), *niftifile.ENDINGS])}"


@dataclass(frozen=True)
class InputRule:
    """How a volume becomes slices of 8 bits; the choices of the converter's, with its defaults.

    `depth` as in `fedfms.data.volume.depth_axis`; `neighbours`: a slice with its two as three channels; `window`
    (centre, width) of intensities, None: from the volume's minimum to its 99th percentile.
    """

    depth: str = DEPTHS[0]
    neighbours: bool = False
    window: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` is its inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> InputRule:
        """The rule of plain values.

        Raises:
            CheckpointError: other keys or values.
        """
        window = raw.get("window")
        good_window = window is None or (
            isinstance(window, list | tuple) and len(window) == 2
            and all(type(n) in (int, float) and np.isfinite(n) for n in window) and window[1] > 0
        )  # fmt: skip
        known = set(raw) == {"depth", "neighbours", "window"}
        if not (known and raw["depth"] in DEPTHS and type(raw["neighbours"]) is bool and good_window):
            raise CheckpointError("the rule for volumes is not one of this version", where="--model")
        return cls(raw["depth"], raw["neighbours"], None if window is None else (float(window[0]), float(window[1])))


@dataclass(frozen=True)
class Native:
    """Slices, uint8 (H, W) or (H, W, 3), at native size, and the volume that they were cut from, if any."""

    slices: tuple[Pixels, ...]
    volume: Volume | None = None


@dataclass(frozen=True)
class Input:
    """One image, volume or case: `name` is the stem of what is written for it, relative to the output folder.

    `read()` raises `Fault` or `DataError`, neither of which names the file.
    """

    name: str
    read: Callable[[], Native]


def find_inputs(path: Path, rule: InputRule, out: Path) -> list[Input]:
    """The inputs at `path`: one file; or all of a folder and those below it, hidden ones and `out` left out; or the
    cases of a converted site.

    Raises:
        DataError: there is nothing, or nothing that can be read; the masks would lie among the images.
    """
    if path.is_file():
        if not _stem(path):
            raise DataError("input 1 of 1 is neither an image nor a NIfTI volume", where=_WHERE, do=_KNOWN)
        return [Input(_stem(path), partial(_read, path, rule))]
    if not path.is_dir():
        raise DataError("there is no such file or folder", where=_WHERE, do="name an image, a volume or a folder")
    if path.resolve() == out.resolve():
        raise DataError("it is the folder of the images", where="--out", do="name another; masks are no images")
    found = _cases(path) if (path / FILE_NAME).is_file() else _files(path, rule, out)
    if not found:
        raise DataError("the folder holds no image or volume", where=_WHERE, do=_KNOWN)
    return found


def _files(folder: Path, rule: InputRule, out: Path) -> list[Input]:
    try:
        paths = [path for path in _walk(folder, out.resolve()) if _stem(path)]
    except OSError as error:
        raise DataError(f"a folder cannot be read ({error.strerror})", where=_WHERE, do="check its rights") from None
    places = [(path.relative_to(folder).parent, path) for path in paths]
    taken = Counter((parent / name).as_posix() for parent, path in places for name in (_stem(path), path.name))
    inputs = []
    for parent, path in places:
        stem = (parent / _stem(path)).as_posix()
        # a.png beside a.jpg, or a.png.jpg beside a.png: these keep their endings
        name = stem if taken[stem] == 1 else (parent / path.name).as_posix()
        inputs.append(Input(name, partial(_read, path, rule)))
    return inputs


def _walk(folder: Path, out: Path) -> Iterator[Path]:
    """Files below a folder by name; links to folders are not followed."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if not path.is_symlink() and path.resolve() != out:
                yield from _walk(path, out)
        else:
            yield path


def _stem(path: Path) -> str:
    """The name without the ending of an image or a volume; "" for other files."""
    return niftifile.stem_of(path) or (path.stem if path.suffix.lower() in imagefile.ENDINGS else "")


def _read(path: Path, rule: InputRule) -> Native:
    if not niftifile.stem_of(path):
        return Native((read_image(path),))
    array, affine = read_nifti(path, "volume")
    pixels = (eight_bits if rule.window is None else Window(*rule.window))(array)
    axis = depth_axis(affine, rule.depth)
    first, second, third = array.shape
    positions = tuple(range(array.shape[axis]))
    slices = tuple(cut(pixels, position, axis, neighbours=rule.neighbours) for position in positions)
    return Native(slices, Volume((first, second, third), tuple(map(float, affine.reshape(-1))), axis, positions))


def _cases(folder: Path) -> list[Input]:
    """The cases of a converted site, by their pseudonymous ids."""
    manifest = load_manifest(folder)
    source = FolderSource(folder, manifest.site, cache=False)
    items: dict[str, list[Item]] = {}
    for item in list_items(manifest):
        items.setdefault(item.case, []).append(item)
    return [Input(case.id, partial(_read_case, case, items[case.id], source)) for case in manifest.cases]


def _read_case(case: Case, items: list[Item], source: FolderSource) -> Native:
    return Native(tuple(source.read(item)[0] for item in items), case.volume)


__all__ = ["Fault", "Input", "InputRule", "Native", "find_inputs"]
