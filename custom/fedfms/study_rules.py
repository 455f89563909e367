"""What the values of a study must be, beyond their types."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fedfms.errors import StudyError

if TYPE_CHECKING:
    from fedfms.study import Study

# How updates combine: (a, b), of f faulty sites a rule bears, with n >= a f + b updates in every round.
COMBINE: Mapping[str, tuple[int, int]] = {
    "mean": (0, 1),
    "median": (2, 1),
    "trimmed_mean": (2, 1),
    "krum": (2, 3),
    "multi_krum": (2, 3),
    "norm_clip": (2, 1),
}
_CHOICES = {
    "data.protocol": ("held-out", "personal"),
    "data.augment": ("none", "flip", "photometric", "nnunet"),
    "data.phantom_shift": ("look", "strong"),
    "model.stem": ("auto", "mobile_sam", "lite_medsam"),
    "model.head": ("auto", "token", "conv"),
    "model.normalise": ("none", "sam"),
    "model.window_pad": ("sam", "reference"),
    "model.adapter_act": ("relu", "gelu"),
    "model.adapter_init": ("zero", "reference"),
    "train.lr_schedule": ("constant", "cosine", "poly"),
    "train.loss": ("bce", "dice_bce"),
    "train.precision": ("float32", "bfloat16", "float16"),
    "federation.wire": ("float32", "bfloat16", "float16", "int8"),
    "federation.combine": tuple(COMBINE),
    "federation.norm_action": ("reject", "clip"),
    "federation.tracking": ("tensorboard", "mlflow", "none"),
}
_POSITIVE = (
    "model.input_px", "model.adapter_ratio", "train.rounds", "train.local_epochs", "train.batch_size", "train.lr",
    "train.pos_weight", "federation.min_sites", "federation.round_timeout_s", "federation.min_cases",
    "federation.faulty_sites", "federation.max_share",
    "data.max_images", "data.crop_px", "data.phantom_images", "data.phantom_px",
)  # fmt: skip
_NOT_NEGATIVE = ("seed", "train.beta1", "train.beta2", "federation.wait_s", "data.max_bad_images")
PLAIN_NAME = "a name has no blanks and no separators, and begins with no dot"
_LABEL_VALUES = range(1, 256)  # 0 is the background


def plain_name(text: str) -> bool:
    """Whether a text can name a site or a data set: a folder, that one only, and one word of a command line."""
    return bool(text) and text[0] != "." and not any(c in "/\\\0" or c.isspace() for c in text)


def check_known(study: Study, sites: Sequence[str], what: str, unnamed: Sequence[str]) -> None:
    """See `Study.check_known`."""
    trained = study.sites or unnamed
    known = list(dict.fromkeys([*trained, *study.held_out]))
    unknown = sorted(set(sites) - set(known))
    if trained and unknown:
        own = _override("held_out" if what == "--held-out" else "sites", sites)
        own += " --set held_out=[]" if study.held_out and what == "--sites" else ""
        raise StudyError(
            f"{what} names {unknown}, which the study does not", where=study.name,
            do=f"one of {known}, or {own} for sites of your own",
        )  # fmt: skip


def _override(key: str, names: Sequence[str]) -> str:
    """The option that gives a study these names, as it is typed."""
    text = ",".join(names)
    try:
        plain = yaml.safe_load(f"[{text}]") == list(names)
    except yaml.YAMLError:
        plain = False
    return f"--set {key}=[{text}]" if plain else f"--set {shlex.quote(f'{key}={json.dumps(names)}')}"


def check(study: Study) -> None:
    """Check every value of a study by itself and with the others.

    Raises:
        StudyError: with the key, the value and what it must be.
    """
    _check_numbers(study)
    for key, allowed in _CHOICES.items():
        if _value(study, key) not in allowed:
            raise StudyError(f"{key} is {_value(study, key)!r}", where=study.name, do=f"one of {list(allowed)}")
    _check_structures(study)
    _check_sites(study)
    _check_combine(study)
    _check_required(study)
    for name in (*study.sites, *study.held_out, *study.federation.required_sites, study.data.dataset):
        if not plain_name(name):
            raise StudyError(f"{name!r} is not a name", where=study.name, do=PLAIN_NAME)
    file_name = study.model.checkpoint
    if file_name is not None and (not file_name or Path(file_name).name != file_name or file_name in (".", "..")):
        raise StudyError(
            "model.checkpoint must be a file name, not a path", where=study.name,
            do="the site's own settings say which folder it is in",
        )  # fmt: skip


def _check_numbers(study: Study) -> None:
    for key, value in _floats(study):
        if not math.isfinite(value):
            raise StudyError(f"{key} is {value!r}", where=study.name, do="it must be a finite number")
    for key in _POSITIVE:
        value = _value(study, key)
        if value is not None and not value > 0:
            raise StudyError(f"{key} is {value!r}", where=study.name, do="it must be above 0")
    for key in _NOT_NEGATIVE:
        if _value(study, key) < 0:
            raise StudyError(f"{key} is {_value(study, key)!r}", where=study.name, do="it must be 0 or more")
    for key in ("train.beta1", "train.beta2"):
        if _value(study, key) >= 1:
            raise StudyError(f"{key} is {_value(study, key)!r}", where=study.name, do="it must be below 1")


def _check_structures(study: Study) -> None:
    names = study.structure_names
    if not names or len(set(names)) != len(names):
        raise StudyError("structures must have distinct names, at least one", where=study.name)
    for structure in study.data.structures:
        values = structure.values
        if not values or len(set(values)) != len(values) or not set(values) <= set(_LABEL_VALUES):
            raise StudyError(
                f"structure {structure.name!r} has values {list(values)}", where=study.name,
                do="distinct label values from 1 to 255, at least one; 0 is the background",
            )  # fmt: skip
    if study.model.head == "token" and len(names) > 1:
        raise StudyError(
            f"head 'token' makes one mask, but there are {len(names)} structures", where=study.name, do="use 'conv'"
        )


def _check_sites(study: Study) -> None:
    if len(set(study.sites)) != len(study.sites):
        raise StudyError("a site is named twice", where=study.name)
    both = sorted(set(study.sites) & set(study.held_out))
    if both:
        raise StudyError(f"sites {both} both train and are held out", where=study.name, do="name them once")
    needed = study.federation.min_sites
    if needed is not None and study.sites and needed > len(study.sites):
        raise StudyError(
            f"federation.min_sites is {needed}, but {len(study.sites)} sites train", where=study.name,
            do="name more sites, or ask for fewer",
        )  # fmt: skip


def too_few(combine: str, faulty: int, updates: int) -> str | None:
    """Why a rule cannot bear so many faulty sites with so many updates, with its formula; None where it can."""
    times, more = COMBINE[combine]
    if updates >= (needed := times * faulty + more):
        return None
    formula = f"n >= {times}f+{more} = {needed}"
    return f"{combine} needs {formula} updates a round for f = {faulty} faulty sites, and there are {updates}"


def _check_combine(study: Study) -> None:
    """A rule whose theory needs more updates than a round may have would be no rule."""
    federation = study.federation
    if reason := too_few(federation.combine, federation.faulty_sites, study.min_sites):
        raise StudyError(
            f"federation.combine: {reason}", where=study.name,
            do="raise federation.min_sites, name more sites, or lower federation.faulty_sites",
        )  # fmt: skip
    if federation.max_share is not None and federation.max_share > 1:
        raise StudyError(f"federation.max_share is {federation.max_share!r}", where=study.name, do="1 at most")
    if federation.norm_factor is not None and federation.norm_factor < 1:
        what = f"federation.norm_factor is {federation.norm_factor!r}"
        raise StudyError(what, where=study.name, do="1 or more: the median update itself is in order")


def _check_required(study: Study) -> None:
    required = study.federation.required_sites
    if len(set(required)) != len(required):
        raise StudyError("federation.required_sites names a site twice", where=study.name)
    odd = sorted(set(required) - set(study.sites) if study.sites else set(required) & set(study.held_out))
    if odd:
        raise StudyError(
            f"federation.required_sites names {odd}, which do not train", where=study.name, do="name sites that do"
        )


def _floats(part: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Dotted keys and values of all floats of a study."""
    for entry in dataclasses.fields(part):
        value = getattr(part, entry.name)
        if dataclasses.is_dataclass(value):
            yield from _floats(value, f"{prefix}{entry.name}.")
        elif isinstance(value, float):
            yield prefix + entry.name, value


def _value(study: Study, dotted: str) -> Any:
    value: Any = study
    for part in dotted.split("."):
        value = getattr(value, part)
    return value
