"""Loads study files, packaged ones by name, and applies presets and overrides."""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fedfms.errors import StudyError
from fedfms.schema import mapping, read_yaml
from fedfms.study.presets import PRESETS
from fedfms.study.spec import Study

STUDIES = Path(__file__).parents[1] / "studies"


def find_yaml(name: str, kind: str = "") -> Path | None:
    """The YAML file `name`, or the packaged file of that name in `studies/kind`; None if neither exists."""
    places = (Path(name), STUDIES / kind / f"{name}.yaml")
    return next((path for path in places if path.is_file()), None)


def yaml_names(kind: str = "") -> list[str]:
    """Names of the packaged files in `studies/kind`, sorted."""
    return sorted(path.stem for path in (STUDIES / kind).glob("*.yaml"))


def find_study(name: str) -> Path:
    """The YAML file of a study: a path, or the name of a packaged study.

    Raises:
        StudyError: no file and no packaged study has that name.
    """
    path = find_yaml(name)
    if path is None:
        raise StudyError(f"no study {name!r}", where="study", do=f"a YAML file, or one of {yaml_names()}")
    return path


def load_study(
    path: Path, *, preset: str | None = None, overrides: Mapping[str, Any] | Sequence[str] = (), **values: Any
) -> Study:
    """Read a study's YAML, then apply a preset, overrides and `values`, in this order.

    Args:
        overrides: values by dotted key, or `key=value` texts.
        values: by dotted key; None leaves the study's value.

    Raises:
        StudyError: the file is missing or not YAML; an unknown key, preset or type.
    """
    raw = mapping(
        read_yaml(path, StudyError, where="study", do="name a YAML file or a packaged study"), StudyError,
        what=path.name, where="study", do="start from the study `phantom`",
    )  # fmt: skip
    raw.setdefault("name", path.stem)
    if preset is not None:
        if preset not in PRESETS:
            raise StudyError(f"unknown preset {preset!r}", where=raw["name"], do=f"known ones: {sorted(PRESETS)}")
        raw = merge(raw, PRESETS[preset])
    for change in _changes(overrides, raw["name"]):
        raw = merge(raw, change)
    for key, value in values.items():
        if value is not None:
            raw = merge(raw, _nested(key, value))
    return Study.from_dict(raw)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`; mappings are merged key by key."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def check_sites_known(study: Study, sites: Iterable[str], option: str, unnamed: Sequence[str] = ()) -> None:
    """Check that the sites named by a command line option belong to the study.

    Args:
        option: the option, for the message.
        unnamed: the sites of a study that names no sites; empty: any name is accepted.

    Raises:
        StudyError: some do not.
    """
    trained, asked = study.sites or unnamed, list(sites)
    known = list(dict.fromkeys([*trained, *study.held_out]))
    unknown = sorted(set(asked) - set(known))
    if trained and unknown:
        own = _set_option("held_out" if option == "--held-out" else "sites", asked)
        own += " --set held_out=[]" if study.held_out and option == "--sites" else ""
        what = f"{option} names {unknown}, which the study does not"
        raise StudyError(what, where=study.name, do=f"one of {known}, or {own} for sites of your own")


def _set_option(key: str, names: Sequence[str]) -> str:
    """The command line option that gives a study these names."""
    text = ",".join(names)
    try:
        plain = yaml.safe_load(f"[{text}]") == list(names)
    except yaml.YAMLError:
        plain = False
    return f"--set {key}=[{text}]" if plain else f"--set {shlex.quote(f'{key}={json.dumps(names)}')}"


def _changes(overrides: Mapping[str, Any] | Sequence[str], where: str) -> list[dict[str, Any]]:
    if isinstance(overrides, Mapping):
        return [_nested(str(key), value) for key, value in overrides.items()]
    return [_override(text, where) for text in overrides]


def _override(text: str, where: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    try:
        if equals:
            return _nested(key.strip(), yaml.safe_load(value))
    except yaml.YAMLError:
        pass
    raise StudyError(f"override {text!r} is not key=value", where=where, do="e.g. train.lr=0.001 or sites=[a, b]")


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    nested: dict[str, Any] = value
    return nested
