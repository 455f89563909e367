"""The folder that predictions fill: masks in the input's own format and size, and a record of which files are ours."""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fedfms.data.overlay import prediction_png
from fedfms.data.volume import to_nifti
from fedfms.errors import DataError
from fedfms.files import append_line, write_atomic
from fedfms.inference.inputs import Native
from fedfms.inference.predictor import SliceMasks

RECORD = "predictions.jsonl"
_OVERLAY = "overlay"
_WHERE = "--out"
_PRIVATE = 0o600  # a mask is of a patient


class OutputFolder:
    """Writes files, each whole or not at all, and never over one that no prediction made.

    `predictions.jsonl` has a line for each input, written before its files: {"input", "files", "slices", "pixels",
    "seconds"}; its first line says of which model.

    Raises:
        DataError: the folder cannot be written, or holds a record that is none of ours.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self._folder = folder
        self._own = self._recorded()
        self._put: dict[str, str] = {}  # by file, the input that it was written for by this object
        self._record({"format": 1, **about})

    def put(self, line: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        """Write the files of an input, and the line that tells of them; what an earlier prediction left of the same
        input goes.

        Raises:
            DataError: a name is taken by a file that no prediction made, or by another input's; no permission, no room.
        """
        if any(self._put.setdefault(name, line["input"]) != line["input"] for name in files):
            raise DataError("two inputs have masks of one name", where="--input", do="rename one of them")
        own = {name for names in self._own.values() for name in names}
        foreign = [name for name in files if name not in own and (self._folder / name).exists()]
        if foreign:
            raise DataError(
                f"it holds {len(foreign)} files of the names of masks that no prediction made", where=_WHERE,
                do="name another folder; these were not touched",
            )  # fmt: skip
        self._record({**line, "files": sorted(files)})
        stale = self._own.get(line["input"], set()) - set(files)
        self._own[line["input"]] = set(files)
        try:
            for name in stale:
                (self._folder / name).unlink(missing_ok=True)
            for name, content in files.items():
                path = self._folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, content, mode=_PRIVATE, sync=False)
        except OSError as error:
            raise _unwritable(error) from None

    def _record(self, line: Mapping[str, Any]) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            append_line(self._folder / RECORD, json.dumps(line))
            (self._folder / RECORD).chmod(_PRIVATE)
        except OSError as error:
            raise _unwritable(error) from None

    def _recorded(self) -> dict[str, set[str]]:
        """By input, the names of the files that earlier predictions wrote here."""
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
            raise DataError(f"its {RECORD} is none of ours", where=_WHERE, do="name another folder") from None


def mask_files(name: str, native: Native, found: Sequence[SliceMasks], structures: Sequence[str]) -> dict[str, bytes]:
    """The masks of an input: one file of label values, or where no map holds them one a structure, of 0 and 1."""
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
    # no time in the packed file: the same mask is the same bytes
    return {
        f"{name}_{kind}.nii.gz": gzip.compress(to_nifti(native.volume, planes).to_bytes(), mtime=0)
        for kind, planes in maps.items()
    }


def _kinds(structures: Sequence[str]) -> list[str]:
    """A part of a file name for each structure; all have their number where two would come to the same."""
    plain = [re.sub(r"[^\w.-]", "_", structure) for structure in structures]
    distinct = {_OVERLAY, *(kind.lower() for kind in plain)}  # there are disks on which A and a are one file
    return plain if len(distinct) > len(plain) else [f"{number}_{kind}" for number, kind in enumerate(plain)]


def overlay_files(
    name: str, native: Native, found: Sequence[SliceMasks], structures: Sequence[str]
) -> dict[str, bytes]:
    """Pictures of the image beside its masks: of a flat image one, of a volume those of slices that show something."""
    files = {}
    for number, (pixels, slice_) in enumerate(zip(native.slices, found, strict=True)):
        if native.volume is not None and not slice_.masks.any():
            continue
        grey = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)
        image = torch.from_numpy(np.ascontiguousarray(grey.transpose(2, 0, 1))).float() / 255
        place = _number(number, native.slices) if native.volume is None else f"/{native.volume.positions[number]:04d}"
        picture = prediction_png(image, torch.from_numpy(slice_.masks), structures)
        files[f"{name}_{_OVERLAY}{place}.png"] = picture
    return files


def _number(index: int, of: Sequence[Any]) -> str:
    """What tells flat slices of one case apart; nothing where there is one."""
    return f"_{index:04d}" if len(of) > 1 else ""


def _png(labels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(labels).save(buffer, format="PNG")
    return buffer.getvalue()


def _unwritable(error: OSError) -> DataError:
    return DataError(f"the output folder cannot be written ({error.strerror})", where=_WHERE, do="name another folder")
