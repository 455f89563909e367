"""The folder of predicted masks: files in the input's format and size, and a record of the files written."""

import gzip
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fedfms.data.overlay import overlay_png
from fedfms.data.volume import to_nifti
from fedfms.errors import DataError
from fedfms.files import append_line, write_atomic
from fedfms.inference.inputs import Native

RECORD = "predictions.jsonl"
_OVERLAY = "overlay"
_WHERE = "--out"
_ANOTHER = "name another folder"
_PRIVATE = 0o600  # masks show patients


@dataclass(frozen=True)
class SliceMasks:
    """Masks of a slice at native size: bool (C, H, W), and as label values (H, W), None if no map can hold them."""

    masks: NDArray[np.bool_]
    labels: NDArray[np.uint8] | None


class OutputFolder:
    """Writes files atomically, and overwrites only files of earlier predictions.

    `predictions.jsonl` has one line per input, written before its files: {"input", "files", "slices", "pixels",
    "seconds"}. Its first line describes the model.

    Raises:
        DataError: the folder cannot be written, or contains a foreign record.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self._folder = folder
        self._recorded = self._read_record()  # by input, the files of earlier predictions
        self._written: dict[str, str] = {}  # by file, the input for which this object wrote it
        self._record({"format": 1, **about})

    def put(self, line: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        """Write the files of an input and its line in the record; delete the input's files of an earlier prediction.

        Raises:
            DataError: a name is used by a foreign file, or by another input; no permission, or the disk is full.
        """
        if any(self._written.setdefault(name, line["input"]) != line["input"] for name in files):
            raise DataError("two inputs would share a mask file", where="--input", do="rename one of them")
        own = {name for names in self._recorded.values() for name in names}
        foreign = [name for name in files if name not in own and (self._folder / name).exists()]
        if foreign:
            what = f"{len(foreign)} files with names of masks were not written by a prediction"
            raise DataError(what, where=_WHERE, do=f"{_ANOTHER}; these files are unchanged")
        self._record({**line, "files": sorted(files)})
        stale = self._recorded.get(line["input"], set()) - set(files)
        self._recorded[line["input"]] = set(files)
        try:
            for name in stale:
                (self._folder / name).unlink(missing_ok=True)
            for name, content in files.items():
                path = self._folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, content, mode=_PRIVATE, sync=False)
        except OSError as error:
            raise _not_writable(error) from None

    def _record(self, line: Mapping[str, Any]) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            append_line(self._folder / RECORD, json.dumps(line))
            (self._folder / RECORD).chmod(_PRIVATE)
        except OSError as error:
            raise _not_writable(error) from None

    def _read_record(self) -> dict[str, set[str]]:
        path = self._folder / RECORD
        if not path.exists():
            return {}
        try:
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
            if any(not isinstance(line, dict) for line in lines) or lines[0].get("format") != 1:
                raise ValueError
            files: dict[str, set[str]] = {}
            for line in lines:
                names = {str(name) for name in line.get("files", ())}
                if any(Path(name).is_absolute() or ".." in Path(name).parts for name in names):
                    raise ValueError
                files.setdefault(str(line.get("input")), set()).update(names)
            return files
        except (OSError, ValueError, IndexError, TypeError):
            raise DataError(f"its {RECORD} was not written by `fedfms predict`", where=_WHERE, do=_ANOTHER) from None


def mask_files(name: str, native: Native, found: Sequence[SliceMasks], structures: Sequence[str]) -> dict[str, bytes]:
    """The masks of an input: one file of label values, or one of 0 and 1 per structure if no map can hold them."""
    if all(slice_.labels is not None for slice_ in found):
        maps = {"mask": [slice_.labels for slice_ in found if slice_.labels is not None]}
    else:
        maps = {
            kind: [slice_.masks[index].astype(np.uint8) for slice_ in found]
            for index, kind in enumerate(_kinds(structures))
        }
    if native.volume is None:
        return {f"{name}{_number(k, planes)}_{kind}.png": _png(plane)
                for kind, planes in maps.items() for k, plane in enumerate(planes)}  # fmt: skip
    # without a time stamp, so that the same mask gives the same bytes
    return {
        f"{name}_{kind}.nii.gz": gzip.compress(to_nifti(native.volume, planes).to_bytes(), mtime=0)
        for kind, planes in maps.items()
    }


def _kinds(structures: Sequence[str]) -> list[str]:
    """A part of a file name for each structure; numbered if two would be equal."""
    plain = [re.sub(r"[^\w.-]", "_", structure) for structure in structures]
    distinct = {_OVERLAY, *(kind.lower() for kind in plain)}  # some file systems ignore case
    return plain if len(distinct) > len(plain) else [f"{number}_{kind}" for number, kind in enumerate(plain)]


def overlay_files(
    name: str, native: Native, found: Sequence[SliceMasks], structures: Sequence[str]
) -> dict[str, bytes]:
    """Pictures of image and mask side by side: one of a flat image; of a volume, those of slices with a structure."""
    files = {}
    for number, (pixels, slice_) in enumerate(zip(native.slices, found, strict=True)):
        if native.volume is not None and not slice_.masks.any():
            continue
        colour = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)
        image = torch.from_numpy(np.ascontiguousarray(colour.transpose(2, 0, 1))).float() / 255
        place = _number(number, native.slices) if native.volume is None else f"/{native.volume.positions[number]:04d}"
        picture = overlay_png(image, {"prediction": torch.from_numpy(slice_.masks)}, structures)
        files[f"{name}_{_OVERLAY}{place}.png"] = picture
    return files


def _number(index: int, of: Sequence[Any]) -> str:
    """Distinguishes flat slices of one case; empty if there is only one."""
    return f"_{index:04d}" if len(of) > 1 else ""


def _png(labels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(labels).save(buffer, format="PNG")
    return buffer.getvalue()


def _not_writable(error: OSError) -> DataError:
    return DataError(f"cannot write to the output folder ({error.strerror})", where=_WHERE, do=_ANOTHER)
