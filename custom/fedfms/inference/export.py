"""Exports a model: a folder with its tensors, metadata and model card, and on request ONNX and a MONAI bundle."""

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file

import fedfms
from fedfms.errors import DataError, SettingsError
from fedfms.files import replace_folder
from fedfms.inference.bundle import FILES, write_bundle
from fedfms.inference.card import model_card
from fedfms.inference.inputs import InputRule
from fedfms.inference.loading import LoadedModel, whole_state
from fedfms.inference.modelfile import METADATA, TENSORS, Metadata, SiteCounts
from fedfms.inference.network import write_onnx
from fedfms.schema import to_plain

CARD, ONNX, BUNDLE = "README.md", "onnx/model.onnx", "bundle"
FORMATS = ("safetensors", "onnx", "bundle")


def export(loaded: LoadedModel, rule: InputRule, out: Path, *, formats: Collection[str], licence: str) -> list[str]:
    """Write model card, model.json and each of `formats` to `out`, replacing an older export; returns the file names.

    Raises:
        DataError: `out` contains other files, or cannot be written.
        SettingsError: a format is unknown, or needs a package that is not installed.
    """
    if unknown := sorted(set(formats) - set(FORMATS)):
        raise SettingsError(f"unknown formats {unknown}", where="export", do=f"some of {list(FORMATS)}")
    card = model_card(loaded.file, licence)

    def fill(folder: Path) -> None:
        if "safetensors" in formats:
            tensors = whole_state(loaded.model).items()
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors}, folder / TENSORS)
        if "onnx" in formats:
            write_onnx(loaded.model, folder / ONNX)
        if "bundle" in formats:
            write_bundle(loaded, folder / BUNDLE, card)
        metadata = json.dumps(to_plain(_metadata(loaded, rule, licence)), indent=2) + "\n"
        (folder / METADATA).write_text(metadata, encoding="utf-8")
        (folder / CARD).write_text(card, encoding="utf-8")

    try:
        if not _is_replaceable(out.resolve()):
            raise DataError("the folder contains something other than an export", where="--out", do="name another")
        replace_folder(out, fill)
    except OSError as error:
        raise DataError(f"cannot write the folder ({error.strerror})", where="--out", do="name another") from None
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


def _metadata(loaded: LoadedModel, rule: InputRule, licence: str) -> Metadata:
    """The metadata, without names of sites: an export may be published."""
    file, study, model = loaded.file, loaded.study, loaded.model
    network = {
        "images": ["batch", 3, model.input_px, model.input_px],
        "logits": ["batch", model.n_structures, model.mask_px, model.mask_px],
        "values": "pixels / 255, RGB, stretched to a square; the network contains its own normalisation",
    }
    return Metadata(
        kind=file.kind, round=file.round, study=replace(study, sites=(), held_out=()),
        sites=SiteCounts(*(file.sites or (len(study.sites), len(study.held_out)))),
        input=rule, network=network, licence=licence, version=fedfms.__version__,
    )  # fmt: skip


def _is_replaceable(folder: Path) -> bool:
    """Whether `folder` does not exist, is empty, or is an export without additional files."""
    if not folder.exists():
        return True
    if not folder.is_dir():
        return False
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    return not names or ({METADATA, CARD} <= names and all(map(_is_ours, names)))


def _is_ours(name: str) -> bool:
    """Whether an export has a file of this name; running a bundle adds bytecode."""
    ours = {METADATA, CARD, TENSORS, *(f"{BUNDLE}/{file}" for file in FILES)}
    return name in ours or name.startswith(("onnx/", f"{BUNDLE}/scripts/__pycache__/"))
