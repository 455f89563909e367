"""An export: a folder that holds a whole model, and says what it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

import fedfms
from fedfms.errors import DataError
from fedfms.files import replace_folder
from fedfms.inference.bundle import FILES, write_bundle
from fedfms.inference.card import model_card
from fedfms.inference.inputs import InputRule
from fedfms.inference.loading import LoadedModel, whole_state
from fedfms.inference.modelfile import ABOUT, FORMAT, TENSORS
from fedfms.inference.network import write_onnx

CARD, ONNX, BUNDLE = "README.md", "onnx/model.onnx", "bundle"
FORMATS = ("safetensors", "onnx", "bundle")


def export(loaded: LoadedModel, rule: InputRule, out: Path, *, formats: Collection[str], licence: str) -> list[str]:
    """Write the folder `out`, in place of an older export: the card, model.json, and each of `formats`; returns the
    names of its files.

    Raises:
        DataError: `out` holds something that is no export, or cannot be written.
        SettingsError: a format needs a package that is not installed.
    """
    try:
        if not _replaceable(out.resolve()):
            raise DataError("the folder holds something that is no export", where="--out", do="name another folder")
        card = model_card(loaded.file, licence)
        replace_folder(out, lambda folder: _fill(folder, loaded, rule, formats, card, licence))
    except OSError as error:
        raise DataError(f"the folder cannot be written ({error.strerror})", where="--out", do="name another") from None
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


def _fill(
    folder: Path, loaded: LoadedModel, rule: InputRule, formats: Collection[str], card: str, licence: str
) -> None:
    writers: dict[str, Callable[[], None]] = {
        "safetensors": lambda: _write_tensors(loaded, folder / TENSORS),
        "onnx": lambda: write_onnx(loaded.model, folder / ONNX),
        "bundle": lambda: write_bundle(loaded, folder / BUNDLE, card),
    }
    for name in FORMATS:
        if name in formats:
            writers[name]()
    about = json.dumps(_about(loaded, rule, licence), indent=2) + "\n"
    (folder / ABOUT).write_text(about, encoding="utf-8")
    (folder / CARD).write_text(card, encoding="utf-8")


def _write_tensors(loaded: LoadedModel, path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in whole_state(loaded.model).items()}, path)


def _about(loaded: LoadedModel, rule: InputRule, licence: str) -> dict[str, Any]:
    """What `modelfile` reads back. Sites are numbers here: an export may go anywhere, and their names need not."""
    file, study, model = loaded.file, loaded.study, loaded.model
    trained, held_out = file.sites if file.sites is not None else (len(study.sites), len(study.held_out))
    return {
        "format": FORMAT,
        "kind": file.kind,
        "round": file.round,
        "study": replace(study, sites=(), held_out=()).to_dict(),
        "sites": {"trained": trained, "held_out": held_out},
        "input": rule.to_dict(),
        "network": {
            "images": ["batch", 3, model.input_px, model.input_px],
            "logits": ["batch", model.n_structures, model.mask_px, model.mask_px],
            "values": "pixels / 255, RGB, stretched to a square; a model's own normalisation is inside it",
        },
        "licence": licence,
        "version": fedfms.__version__,
    }


def _replaceable(folder: Path) -> bool:
    """Nothing there, an empty folder, or an export that nobody added to."""
    if not folder.exists():
        return True
    if not folder.is_dir():
        return False
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    return not names or ({ABOUT, CARD} <= names and all(_is_ours(name) for name in names))


def _is_ours(name: str) -> bool:
    """Whether an export makes a file of this name; running a bundle leaves bytecode in it."""
    ours = {ABOUT, CARD, TENSORS, *(f"{BUNDLE}/{file}" for file in FILES)}
    return name in ours or name.startswith(("onnx/", f"{BUNDLE}/scripts/__pycache__/"))
