"""Reads every model file that a run or an export leaves: its study, its kind, its tensors.

| file | kind | tensors |
|---|---|---|
| `FL_global_model.pt` | final; last, of an interrupted run; shared, if each site has its own model | shared |
| `best_FL_global_model.pt` | best | shared |
| `server.pt` | as the first | shared |
| `models/personal_*.pt` at a site | personal | all trained ones |
| an export's folder, or `model.safetensors` | as exported | all |
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as typed

from fedfms.errors import CheckpointError, StudyError
from fedfms.inference.inputs import InputRule
from fedfms.methods import METHODS, Tensors
from fedfms.models.checkpoints import is_state, read_plain
from fedfms.schema import STRICT, mapping, parse, read_json
from fedfms.study import Study, find_study, load_study

Kind = Literal["final", "last", "best", "shared", "personal"]
Count = Annotated[int, Field(ge=0)]
TENSORS, METADATA = "model.safetensors", "model.json"
_WHERE = "--model"
_DO = "name a model file of a run (FL_global_model.pt, models/personal_final.pt), or an export"


@dataclass(frozen=True)
class ModelFile:
    """A model file.

    Attributes:
        holds: the tensors in it: "shared", "trained" or "all".
        round: rounds of training; None if unknown.
        records: the run's folder with `run.json`, if found.
        sites: numbers of training and held-out sites; only of an export, whose study names no sites.
        rule: how volumes become slices; only of an export.
    """

    kind: Kind
    study: Study
    tensors: Tensors
    holds: str
    round: int | None = None
    records: Path | None = None
    sites: tuple[int, int] | None = None
    rule: InputRule | None = None

    def name(self) -> str:
        """A short description."""
        of = "" if self.round is None else f" after {self.round} rounds"
        return f"{self.kind} model of {self.study.name}, {self.study.method}{of}"

    def about(self) -> dict[str, Any]:
        """A description for the record of its predictions."""
        return {"model": self.kind, "study": self.study.name, "method": self.study.method, "round": self.round}


@typed(frozen=True, config=STRICT)
class SiteCounts:
    """Numbers of sites."""

    trained: Count
    held_out: Count


@typed(frozen=True, config=STRICT)
class Metadata:
    """The content of an export's `model.json`."""

    kind: Kind
    round: Count | None
    study: Study
    sites: SiteCounts
    input: InputRule
    network: Mapping[str, Any]
    """Shapes and values of input and output, for readers without this package."""
    licence: str
    version: str
    format: Literal[1] = 1


def read_model(
    path: Path, *, study: str | None = None, overrides: Sequence[str] = (), run: Path | None = None
) -> ModelFile:
    """The model in a file, or in an export's folder; no code in it is executed.

    Args:
        study: the study of a file that does not name it: a YAML file, the name of a study, or a run.json.
        overrides: `key=value` overrides of that study.
        run: the run's folder, if it is not next to the file.

    Raises:
        CheckpointError: the file is missing, damaged, or not a model of this package.
        StudyError: its study is unknown, or there are overrides without a study.
    """
    if overrides and (study is None or study.endswith(".json")):
        raise StudyError("it overrides a study's YAML, but --study names none", where="--set", do="leave it out")
    if path.is_dir() or path.name == TENSORS:
        return _read_export(path if path.is_dir() else path.parent)
    if path.suffix == ".safetensors":
        raise CheckpointError(f"the only readable file of an export is {TENSORS}", where=_WHERE, do=_DO)
    if not path.is_file():
        raise CheckpointError("no such file", where=_WHERE, do=_DO)
    content = read_plain(path, where=_WHERE, do=_DO)
    tensors: Any = None
    if isinstance(content, Mapping):
        records = _records(run) if run is not None else _records_beside(path)
        of = _study(content, records, path, study, overrides)
        if is_state(content.get("tensors")):
            return ModelFile("personal", of, dict(content["tensors"]), "trained", records=records)
        tensors = content.get("model", content.get("shared"))
    if not is_state(tensors):
        raise CheckpointError("the file contains no model of this package", where=_WHERE, do=_DO)
    round_ = content.get("round")
    round_ = round_ if type(round_) is int and round_ >= 0 else None
    best = content.get("kind", "best" if path.stem.startswith("best") else "final") == "best"
    return ModelFile(_kind(of, round_, best), of, dict(tensors), "shared", round_, records)


def _kind(study: Study, round_: int | None, best: bool) -> Kind:
    if study.method in METHODS and METHODS[study.method].personal:
        return "shared"
    if best:
        return "best"
    return "last" if round_ is not None and round_ < study.train.rounds else "final"


def _study(
    content: Mapping[str, Any], records: Path | None, path: Path, named: str | None, overrides: Sequence[str]
) -> Study:
    """The named study, else the file's, else that of the run in whose folder the file lies."""
    if named is not None and named.endswith(".json"):
        return _recorded_study(Path(named))
    if named is not None:
        return load_study(find_study(named), overrides=overrides)
    if isinstance(content.get("study"), Mapping):
        return Study.from_dict(content["study"])
    for candidate in (*([records / "run.json"] if records else []), path.with_name("result.json")):
        if candidate.is_file():
            return _recorded_study(candidate)
    raise StudyError(
        "the file does not name its study, and no run.json lies next to it", where=_WHERE,
        do="name the run's folder with --run, or the study with --study",
    )  # fmt: skip


def _recorded_study(path: Path) -> Study:
    raw = mapping(read_json(path, CheckpointError, where=_WHERE, do=_DO), CheckpointError, what=path.name, where=_WHERE)
    if not isinstance(raw.get("study"), Mapping):
        raise StudyError("the file contains no study", where="--study", do="name a run.json, or a study's YAML")
    return Study.from_dict(raw["study"])


def _records(run: Path) -> Path:
    for folder in (run, run / "fedfms", run / "server" / "simulate_job" / "fedfms"):
        if (folder / "run.json").is_file():
            return folder
    raise StudyError("there is no run.json", where="--run", do="name a simulator's workspace, or a run's folder")


def _records_beside(path: Path) -> Path | None:
    """The run's records: `fedfms/` next to the server's app folder, or the file's own folder."""
    folders = (path.parent, path.resolve().parent.parent / "fedfms")
    return next((folder for folder in folders if (folder / "run.json").is_file()), None)


def _read_export(folder: Path) -> ModelFile:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / TENSORS).is_file():
        raise CheckpointError(f"the folder contains no {TENSORS}", where=_WHERE, do=_DO)
    do = "export the model again"
    raw = read_json(folder / METADATA, CheckpointError, where=_WHERE, do=do)
    about = parse(Metadata, raw, CheckpointError, where=f"{_WHERE}, {METADATA}", do=do, machine_written=True)
    try:
        tensors = load_file(folder / TENSORS)
    except (SafetensorError, OSError, ValueError):
        raise CheckpointError(f"{TENSORS} is damaged", where=_WHERE, do=do) from None
    return ModelFile(
        about.kind, about.study, tensors, "all", about.round, sites=(about.sites.trained, about.sites.held_out),
        rule=about.input,
    )  # fmt: skip
