"""The files of models that a run leaves, read alike: which study, which model, which tensors.

| file | kind | tensors |
|---|---|---|
| `FL_global_model.pt` | final; last, of a run that was cut; shared, where each site has a model of its own | shared |
| `best_FL_global_model.pt` | best | shared |
| `server.pt` | as the first | shared |
| `models/personal_*.pt` at a site | personal | all trained ones |
| an export's folder, or `model.safetensors` | as exported | all |
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedfms.errors import CheckpointError, FedfmsError, StudyError
from fedfms.inference.inputs import InputRule
from fedfms.methods import METHODS, Tensors
from fedfms.models.checkpoints import is_state, read_plain
from fedfms.study import Study, find_study, load_study

KINDS = ("final", "last", "best", "shared", "personal")
TENSORS, ABOUT, FORMAT = "model.safetensors", "model.json", 1
_WHERE = "--model"
_DO = "name a model that a run left (FL_global_model.pt, models/personal_final.pt), or an export"


@dataclass(frozen=True)
class ModelFile:
    """A model's file: `holds` is "shared", "trained" or "all" tensors of the model; `round` is None where untold.

    `records` is the run's folder with `run.json`, if it lies beside; `sites` (that trained, that were held out) is
    told by an export only, whose study names none.
    """

    kind: str
    study: Study
    tensors: Tensors
    holds: str
    round: int | None = None
    records: Path | None = None
    sites: tuple[int, int] | None = None
    rule: InputRule | None = None

    def name(self) -> str:
        """What it is, in a few words."""
        of = "" if self.round is None else f" after {self.round} rounds"
        return f"{self.kind} model of {self.study.name}, {self.study.method}{of}"


def read_model(
    path: Path, *, study: str | None = None, overrides: Sequence[str] = (), run: Path | None = None
) -> ModelFile:
    """The model in a file, or in an export's folder; nothing in it is executed.

    Args:
        study: what it is a model of, for a file that does not tell: a YAML file, the name of a study, or a run.json.
        overrides: `key=value` laid over the study.
        run: the run's folder, where it is not beside the file.

    Raises:
        CheckpointError: no such file; damaged, or no model of ours.
        StudyError: it does not tell its study, and none is named; overrides of no study that is named.
    """
    if overrides and (study is None or study.endswith(".json")):
        raise StudyError("it changes a study's YAML, and --study names none", where="--set", do="leave it out")
    if path.is_dir() or path.name == TENSORS:
        return _read_export(path if path.is_dir() else path.parent)
    if path.suffix == ".safetensors":
        raise CheckpointError(f"of an export {TENSORS} is read, and no other file", where=_WHERE, do=_DO)
    if not path.is_file():
        raise CheckpointError("there is no such file", where=_WHERE, do=_DO)
    content = read_plain(path, where=_WHERE, do=_DO)
    if not isinstance(content, Mapping):
        raise _foreign()
    records = _records(run) if run is not None else _beside(path)
    of = _study(content, records, path, study, overrides)
    if is_state(content.get("tensors")):
        return ModelFile("personal", of, dict(content["tensors"]), "trained", records=records)
    tensors = content.get("model", content.get("shared"))
    if not is_state(tensors):
        raise _foreign()
    round_ = content.get("round")
    round_ = round_ if type(round_) is int and round_ >= 0 else None
    best = content.get("kind", "best" if path.stem.startswith("best") else "final") == "best"
    return ModelFile(_kind(of, round_, best), of, dict(tensors), "shared", round_, records)


def _kind(study: Study, round_: int | None, best: bool) -> str:
    if study.method in METHODS and METHODS[study.method].personal:
        return "shared"
    if best:
        return "best"
    return "last" if round_ is not None and round_ < study.train.rounds else "final"


def _study(
    content: Mapping[str, Any], records: Path | None, path: Path, named: str | None, overrides: Sequence[str]
) -> Study:
    """The study that is named, else the one in the file, else the one of the run in whose folder it lies."""
    if named is not None:
        if named.endswith(".json"):
            return _study_in(Path(named))
        return load_study(find_study(named), overrides=overrides)
    if isinstance(content.get("study"), Mapping):
        return Study.from_dict(content["study"])
    for candidate in (*([records / "run.json"] if records else []), path.with_name("result.json")):
        if candidate.is_file():
            return _study_in(candidate)
    raise StudyError(
        "the file does not tell its study, and no run.json lies beside it", where=_WHERE,
        do="name the run's folder with --run, or the study with --study",
    )  # fmt: skip


def _study_in(path: Path) -> Study:
    raw = _read_json(path, "the run's record of its study")
    if not isinstance(raw.get("study"), Mapping):
        raise StudyError("the record names no study", where="--study", do="name a run.json, or a study's YAML")
    return Study.from_dict(raw["study"])


def _records(run: Path) -> Path:
    for folder in (run, run / "fedfms", run / "server" / "simulate_job" / "fedfms"):
        if (folder / "run.json").is_file():
            return folder
    raise StudyError("there is no run.json", where="--run", do="name a simulator's workspace, or a run's folder")


def _beside(path: Path) -> Path | None:
    """The run's records: `fedfms/` beside the server's app folder, or the file's own folder."""
    folders = (path.parent, path.resolve().parent.parent / "fedfms")
    return next((folder for folder in folders if (folder / "run.json").is_file()), None)


def _read_export(folder: Path) -> ModelFile:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / TENSORS).is_file():
        raise CheckpointError(f"the folder holds no {TENSORS}", where=_WHERE, do=_DO)
    about = _read_about(folder)
    try:
        tensors = load_file(folder / TENSORS)
    except (SafetensorError, OSError, ValueError):
        raise CheckpointError(f"{TENSORS} is damaged", where=_WHERE, do="export the model again") from None
    counts = about["sites"]
    return ModelFile(
        about["kind"], Study.from_dict(about["study"]), tensors, "all", about["round"],
        sites=(counts["trained"], counts["held_out"]), rule=InputRule.from_dict(about["input"]),
    )  # fmt: skip


def _read_about(folder: Path) -> dict[str, Any]:
    about = _read_json(folder / ABOUT, "the export's model.json")
    counts = about.get("sites")
    if (
        about.get("format") != FORMAT or about.get("kind") not in KINDS or not isinstance(about.get("study"), Mapping)
        or not isinstance(counts, Mapping) or not all(type(counts.get(k)) is int for k in ("trained", "held_out"))
        or not isinstance(about.get("input"), Mapping) or not isinstance(about.get("round"), int | None)
    ):  # fmt: skip
        raise CheckpointError(f"{ABOUT} is not one that this version wrote", where=_WHERE, do="export the model again")
    return about


def _read_json(path: Path, what: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise CheckpointError(f"{what} is missing or damaged", where=_WHERE, do=_DO)
    return content


def _foreign() -> FedfmsError:
    return CheckpointError("the file holds no model of ours", where=_WHERE, do=_DO)
