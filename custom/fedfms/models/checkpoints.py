"""Pre-trained weights: read without executing code, verified against published hashes, loaded strictly."""

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

# Names of Meta's SAM weights end in the first 6 digits of the file's MD5.
_PUBLISHED = re.compile(r"sam_vit_[blh]_([0-9a-f]{6})\.pth")
_VIT_WIDTHS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
_MAX_SHOWN = 3


def load_checkpoint(model: SegmentationModel, path: Path, *, sha256: str | None = None) -> None:
    """Load the pre-trained tensors of `model` from `path`, strictly; adapters and head are unchanged.

    Position tables of another input size are interpolated. Values are copied out of the memory-mapped file.

    Raises:
        CheckpointError: no such file; wrong hash; not a file of tensors; missing, unexpected or misshapen tensors.
    """
    fitted, expected = check_checkpoint(model, path, sha256=sha256), model.state_dict()
    loaded = {name: fitted[name].to(dtype=expected[name].dtype, copy=True) for name in model.pretrained_names()}
    model.load_state_dict(loaded, strict=False, assign=True)


def check_checkpoint(model: SegmentationModel, path: Path, *, sha256: str | None = None) -> dict[str, Tensor]:
    """The tensors of `path`, checked to fit `model`, which may be a meta-device model and is not changed.

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
        what, do = "no such file in the site's checkpoint folder", "copy it there, or train from scratch"
        raise CheckpointError(what, where=path.name, do=do)
    published = _PUBLISHED.fullmatch(path.name)
    if published and not _digest(path, "md5").startswith(published.group(1)):
        what = f"its MD5 does not begin with {published.group(1)}, the digits in its name"
        raise CheckpointError(what, where=path.name, do="download it again")
    if sha256 is not None and _digest(path, "sha256") != sha256.strip().lower():
        what = "its SHA-256 is not the study's model.checkpoint_sha256"
        raise CheckpointError(what, where=path.name, do="get the file of the study")


def check_accepted(path: Path, accepted: Collection[str]) -> None:
    """Check a file against the hashes that its site accepts, SHA-256 in lower case.

    Raises:
        CheckpointError: no such file, another hash, or it cannot be read.
    """
    verify(path)
    if _digest(path, "sha256") not in accepted:
        raise CheckpointError(
            "its SHA-256 is not among those that the site accepts", where=path.name,
            do="ask the site to add it to checkpoint_sha256 in its settings, or choose another file in the study",
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
    """The tensors in a file, by name, on the CPU; no code in the file is executed.

    Raises:
        CheckpointError: it cannot be read, or contains anything but named tensors.
    """
    state = read_plain(path, where=path.name, do="download it again, or save it with torch.save(model.state_dict())")
    if not is_state(state):
        raise CheckpointError("does not contain tensors by name", where=path.name, do="save a state dict")
    return dict(state)


def read_plain(path: Path, *, where: str, do: str) -> Any:
    """Tensors, numbers, texts, lists and dicts that `torch.save` wrote; no code in the file is executed.

    Raises:
        CheckpointError: it cannot be read, or contains anything else.
    """
    try:
        # Only the zip format can be memory-mapped; files older than torch 1.6 are read completely.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # noqa: BLE001 - a damaged file can raise nearly anything inside torch
        raise CheckpointError(
            f"not a file of plain tensors, or damaged ({type(error).__name__})", where=where, do=do,
        ) from None  # torch's text contains the path, and advice to disable the safety  # fmt: skip


def is_state(content: Any) -> bool:
    """Whether the content is a mapping of names to tensors."""
    return isinstance(content, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    )


def describe(state: Mapping[str, Tensor]) -> str | None:
    """The backbone, and stem, to which the tensors seem to belong; None if unknown."""
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
        faults.append(f"lacks {_shown(missing)}")
    if extra := sorted(n for n in state.keys() - expected.keys() if not n.startswith(ignored)):
        faults.append(f"has unexpected {_shown(extra)}")
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & state.keys())
        if state[name].shape != expected[name].shape
    ]
    if shapes:
        faults.append(f"has wrong shapes: {_shown(shapes)}")
    if faults:
        looks, wanted = describe(state), describe(expected)
        what = f"looks like {looks}" if looks and looks != wanted else "does not fit the model"
        needs = f"the study needs {wanted}; " if wanted else ""
        if missing and all(name.startswith("prompt_encoder.") for name in missing):
            needs = "it has no prompt encoder: set model.prompt to none; "
        raise CheckpointError(
            f"{what}: {', '.join(faults)}", where=file, do=f"{needs}check model.backbone and model.stem"
        )


def _shown(items: Collection[str]) -> str:
    first = ", ".join(list(items)[:_MAX_SHOWN])
    return first if len(items) <= _MAX_SHOWN else f"{first} and {len(items) - _MAX_SHOWN} more"
