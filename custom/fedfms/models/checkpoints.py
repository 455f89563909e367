"""Pre-trained weights: read without running them, checked against a published hash, loaded strictly."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedfms.errors import CheckpointError
from fedfms.models.base import SegmentationModel

# Meta publishes SAM's weights under names that end in the first 6 digits of the file's MD5.
_PUBLISHED = re.compile(r"sam_vit_[blh]_([0-9a-f]{6})\.pth")
_VIT_WIDTHS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
_SHOWN = 3


def load_checkpoint(model: SegmentationModel, path: Path, *, sha256: str | None = None) -> None:
    """Load the pre-trained tensors of `model` from `path`, strictly; adapters and head stay as they are.

    Position tables of another input size are interpolated, once, here. Values are copied out of the file.

    Raises:
        CheckpointError: no such file; wrong hash; not a file of tensors; missing, extra or misshapen ones.
    """
    fitted, expected = check_checkpoint(model, path, sha256=sha256), model.state_dict()
    chosen = {name: fitted[name].to(dtype=expected[name].dtype, copy=True) for name in model.pretrained_names()}
    model.load_state_dict(chosen, strict=False, assign=True)


def check_checkpoint(model: SegmentationModel, path: Path, *, sha256: str | None = None) -> dict[str, Tensor]:
    """The tensors of `path`, seen to fit `model`, which may be an outline; nothing is put into it.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    verify(path, sha256=sha256)
    fitted = model.fit_pretrained(read_state(path))
    expected = model.state_dict()
    wanted = {name: expected[name] for name in model.pretrained_names()}
    _check_fit(path.name, fitted, wanted, model.ignored_pretrained)
    return fitted


def verify(path: Path, *, sha256: str | None = None) -> None:
    """Check a file against the MD5 digits in a published SAM name, and against `sha256` (hex) if given.

    Raises:
        CheckpointError: no such file, or another hash.
    """
    if not path.is_file():
        raise CheckpointError(
            "no such file in the site's checkpoint folder", where=path.name,
            do="put it there, or train from scratch",
        )  # fmt: skip
    published = _PUBLISHED.fullmatch(path.name)
    if published and not _digest(path, "md5").startswith(published.group(1)):
        raise CheckpointError(
            f"its MD5 does not begin with {published.group(1)}, as its name says", where=path.name,
            do="download it again",
        )  # fmt: skip
    if sha256 is not None and _digest(path, "sha256") != sha256.strip().lower():
        raise CheckpointError(
            "its SHA-256 is not the study's model.checkpoint_sha256", where=path.name,
            do="fetch the file that the study means",
        )  # fmt: skip


def check_accepted(path: Path, accepted: Collection[str]) -> None:
    """Check a file against the hashes that its site accepts, SHA-256 in small letters.

    Raises:
        CheckpointError: no such file; it has none of them, or cannot be read.
    """
    verify(path)
    if _digest(path, "sha256") not in accepted:
        raise CheckpointError(
            "its SHA-256 is not among those that the site accepts", where=path.name,
            do="ask the site to add it to checkpoint_sha256 of its settings, or let the study name another file",
        )  # fmt: skip


def _digest(path: Path, algorithm: str) -> str:
    try:
        with path.open("rb") as file:
            hasher = hashlib.new(algorithm, usedforsecurity=False)
            while chunk := file.read(1 << 20):
                hasher.update(chunk)
    except OSError:
        raise CheckpointError("cannot be read", where=path.name, do="check its permissions") from None
    return hasher.hexdigest()


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors in a file, by name, on the CPU; nothing in the file is executed.

    Raises:
        CheckpointError: it cannot be read, or holds anything but named tensors.
    """
    state = read_plain(path, where=path.name, do="download it again, or save it with torch.save(model.state_dict())")
    if not is_state(state):
        raise CheckpointError("does not hold tensors by name", where=path.name, do="save a state dict")
    return dict(state)


def read_plain(path: Path, *, where: str, do: str) -> Any:
    """What `torch.save` wrote, of tensors, numbers, texts, lists and dicts; nothing in the file is executed.

    Raises:
        CheckpointError: it cannot be read, or holds anything else.
    """
    try:
        # Only the zip format can be mapped into memory; files older than torch 1.6 are read whole.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # noqa: BLE001 - a damaged file can raise nearly anything inside torch
        raise CheckpointError(
            f"not a file of plain tensors, or damaged ({type(error).__name__})", where=where, do=do,
        ) from None  # torch's own text has the whole path, and advice to switch the safety off  # fmt: skip


def is_state(content: Any) -> bool:
    """Whether it is tensors by name."""
    return isinstance(content, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    )


def describe(state: Mapping[str, Tensor]) -> str | None:
    """The backbone, and stem, that the tensors look like; None if that cannot be told."""
    patch = state.get("image_encoder.patch_embed.proj.weight")
    if patch is not None:
        return _VIT_WIDTHS.get(patch.shape[0])
    stem = state.get("image_encoder.patch_embed.seq.0.c.weight")
    if stem is not None and stem.ndim == 4:
        return f"tiny_vit with stem {'lite_medsam' if stem.shape[-1] == 1 else 'mobile_sam'}"
    return None


def _check_fit(
    file: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor], ignored: tuple[str, ...]
) -> None:
    faults = []
    if missing := sorted(expected.keys() - state.keys()):
        faults.append(f"lacks {_some(missing)}")
    if extra := sorted(n for n in state.keys() - expected.keys() if not n.startswith(ignored)):
        faults.append(f"has unexpected {_some(extra)}")
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & state.keys())
        if state[name].shape != expected[name].shape
    ]
    if shapes:
        faults.append(f"has wrong shapes: {_some(shapes)}")
    if faults:
        looks, wanted = describe(state), describe(expected)
        told = f"looks like {looks}" if looks and looks != wanted else "does not fit the model"
        needs = f"the study asks for {wanted}; " if wanted else ""
        raise CheckpointError(
            f"{told}: {', '.join(faults)}", where=file, do=f"{needs}check model.backbone and model.stem"
        )


def _some(items: Collection[str]) -> str:
    shown = ", ".join(list(items)[:_SHOWN])
    return shown if len(items) <= _SHOWN else f"{shown} and {len(items) - _SHOWN} more"
