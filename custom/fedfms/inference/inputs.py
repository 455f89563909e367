"""Images, volumes and folders of them, as the slices that training would have used."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass as typed

from fedfms.data import imagefile, niftifile
from fedfms.data.imagefile import Fault, read_image
from fedfms.data.intensity import Window, eight_bits
from fedfms.data.manifest import FILE_NAME, Case, load_manifest
from fedfms.data.niftifile import read_nifti
from fedfms.data.source import FolderSource, Item, list_items
from fedfms.data.volume import Volume, cut, depth_axis
from fedfms.errors import DataError
from fedfms.schema import STRICT, Float

Pixels = NDArray[np.uint8]
_WHERE = "--input"
_KNOWN = f"known endings: {', '.join([*sorted(imagefile.ENDINGS), *niftifile.ENDINGS])}"


@typed(frozen=True, config=STRICT)
class InputRule:
    """How a volume becomes slices of 8 bits: the options of `fedfms prepare`, with its defaults."""

    depth: Literal["coarsest", "third"] = "coarsest"
    """The axis to cut across; see `fedfms.data.volume.depth_axis`."""
    neighbours: bool = False
    """A slice and its two neighbours as three channels."""
    window: tuple[Float, Annotated[Float, Field(gt=0)]] | None = None
    """(centre, width) of intensities; null: from the volume's minimum to its 99th percentile."""


@dataclass(frozen=True)
class Native:
    """Slices, uint8 (H, W) or (H, W, 3), at native size, and the volume that they belong to, if any."""

    slices: tuple[Pixels, ...]
    volume: Volume | None = None


@dataclass(frozen=True)
class Input:
    """One image, volume or case.

    Attributes:
        name: stem of its output files, relative to the output folder.
        read: raises `Fault` or `DataError`, neither of which contains the file's name.
    """

    name: str
    read: Callable[[], Native]


def find_inputs(path: Path, rule: InputRule, out: Path) -> list[Input]:
    """The inputs at `path`: a file; all files of a folder and its subfolders, except hidden ones and `out`; or the
    cases of a converted site.

    Raises:
        DataError: nothing can be read there, or the masks would be written among the images.
    """
    if path.is_file():
        if not _stem(path):
            raise DataError("input 1 of 1 is neither an image nor a NIfTI volume", where=_WHERE, do=_KNOWN)
        return [Input(_stem(path), partial(_read, path, rule))]
    if not path.is_dir():
        raise DataError("no such file or folder", where=_WHERE, do="name an image, a volume or a folder")
    if path.resolve() == out.resolve():
        raise DataError("it is the folder of the images", where="--out", do="name another folder for the masks")
    found = _cases(path) if (path / FILE_NAME).is_file() else _files(path, rule, out)
    if not found:
        raise DataError("the folder contains no image or volume", where=_WHERE, do=_KNOWN)
    return found


def _files(folder: Path, rule: InputRule, out: Path) -> list[Input]:
    try:
        paths = [path for path in _walk(folder, out.resolve()) if _stem(path)]
    except OSError as error:
        raise DataError(f"cannot read a folder ({error.strerror})", where=_WHERE, do="check permissions") from None
    places = [(path.relative_to(folder).parent, path) for path in paths]
    uses = Counter((parent / name).as_posix() for parent, path in places for name in (_stem(path), path.name))
    inputs = []
    for parent, path in places:
        stem = (parent / _stem(path)).as_posix()
        # a.png next to a.jpg, or a.png.jpg next to a.png: these keep their endings
        name = stem if uses[stem] == 1 else (parent / path.name).as_posix()
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
