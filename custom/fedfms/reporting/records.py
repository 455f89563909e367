"""Read back the records of a run that the server wrote.

A run's folder holds `fedfms/` (in a simulator's workspace: server/simulate_job/fedfms) with
- `run.json`: {"format": 1, "study" (resolved), "versions", "started", "parameters": {"total", "trained", "shared",
  "shared_mb"}}, optionally "model": {"input_px", "mask_px"} and "resumed";
- `rounds.jsonl`: one line per round and site: {"round" (from 0), "site", "accepted", "reason", "held_out", "samples",
  "train_loss", "seconds", "bytes_up", "bytes_down", "unreadable_images" (skipped), "scores" (`Scores.result()` of the
  received model on the site's validation images)}; only the first three keys are required;
- `final.json`: {"models": {"final" | "best": {"round", "sites": {site: {"scores", "part", "images", "held_out"}}}}};
  missing if the run was interrupted;
- `mixing.jsonl`, of a method with a personal mixture for each site: one line per round, {"round", "W": {"sites" (that
  answered), "rows": {site: {site: weight}}}}; weights of a row sum to 1, weights of 0 are omitted; of two lines of one
  round, the later one counts.
What the server wrote must be valid, or the file is damaged; only an incomplete last line, left by a kill, is skipped.
What a site reported (scores, loss, seconds) is dropped with a note if it is not valid.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pydantic
from pydantic.dataclasses import dataclass as record

from fedfms.errors import FedfmsError
from fedfms.federation.rows import one_line
from fedfms.reporting.scores import OPEN, Count, Share, clean_number, clean_scores
from fedfms.schema import mapping, parse, parse_json, read_json
from fedfms.study import Study

T = TypeVar("T")
FORMAT = 1
ENDED = "ended.json"  # the only record of a run that never started: {"reason"}
_DEPTH = 6
_NUMBERS = ("samples", "train_loss", "seconds", "bytes_up", "bytes_down", "unreadable_images")
_MAX_REASON = 300  # characters; a site may have written it
_SUM_TOLERANCE = 1e-3
_AGAIN = "the run's records are damaged; run the job again"

_Number = Annotated[float, pydantic.Field(allow_inf_nan=False)]


class ReportError(FedfmsError):
    """There is no run to report on, its records are damaged, or the report cannot be written."""


@record(frozen=True, config=OPEN)
class _Parameters:
    total: _Number
    trained: _Number
    shared: _Number
    shared_mb: _Number


@record(frozen=True, config=OPEN)
class _Run:
    study: dict[str, Any]
    versions: dict[str, Any]
    parameters: _Parameters


@record(frozen=True, config=OPEN)
class _Row:  # the part of a row that the server itself writes
    round: Count
    site: str
    accepted: bool


@record(frozen=True, config=OPEN)
class _Model:
    round: Count
    sites: dict[str, Any]


@record(frozen=True, config=OPEN)
class _Weights:
    sites: list[str]
    rows: dict[str, dict[str, Share]]


@record(frozen=True, config=OPEN)
class _Mixing:
    round: Count
    W: _Weights


@dataclass(frozen=True)
class Records:
    """The records of one run."""

    folder: Path  # the `fedfms` folder
    run: dict[str, Any]
    study: Study
    rounds: list[dict[str, Any]]
    models: dict[str, dict[str, Any]]
    mixing: list[dict[str, Any]]  # by round: {"round", "sites", "rows"}
    notes: list[str]  # what was dropped, and why


def read_records(workspace: Path) -> Records:
    """The records of the one run at or below `workspace`.

    Raises:
        ReportError: no run, several runs, or a damaged file.
        StudyError: the study was written by another version.
    """
    folder = _find(workspace)
    run = _read_object(folder / "run.json")
    check_format(run, ReportError, "run.json")
    _parse(_Run, run, "run.json")
    study = Study.from_dict(run["study"])
    notes: list[str] = []
    rounds = [_clean_row(raw, where, study, notes) for where, raw in _read_lines(folder / "rounds.jsonl", notes)]
    models = {}
    if (folder / "final.json").is_file():
        final = _read_object(folder / "final.json").get("models")
        for name, model in _parse(dict[str, _Model], final, "final.json", key="models").items():
            sites = {
                site: _clean_entry(raw, f"{site}, {name} model", study, notes) for site, raw in model.sites.items()
            }
            models[name] = {"round": model.round, "sites": sites}
    mixing = [_mixing(raw, where, study) for where, raw in _read_lines(folder / "mixing.jsonl", notes)]
    by_round = {entry["round"]: entry for entry in mixing}
    return Records(folder, run, study, rounds, models, [by_round[round_] for round_ in sorted(by_round)], notes)


def check_format(raw: Any, error: type[FedfmsError], where: str) -> None:
    """Check the format number of a record.

    Raises:
        FedfmsError: of type `error`, if it is not `FORMAT`.
    """
    found = raw.get("format") if isinstance(raw, Mapping) else FORMAT
    if found != FORMAT:
        what = f"its format is {found!r}, not {FORMAT}"
        raise error(what, where=where, do="use the version of fedfms that wrote it")


def clean_reason(raw: Any) -> str:
    """A rejection reason as one short line, without control characters."""
    return one_line(str(raw or ""), _MAX_REASON)


def overlays(workspace: Path, folder: Path) -> list[Path]:
    """Overlays that sites drew under a simulator's workspace, relative to it; they are not opened.

    Args:
        workspace: the folder that the report was requested for: the workspace or a folder in it.
        folder: the run's `fedfms` folder, by which a simulator's workspace is recognised.
    """
    parents = folder.resolve().parents
    root = parents[2] if len(parents) > 2 and parents[1].name == "server" else workspace
    found = [path for path in root.glob("*/*/fedfms/overlays/*.png") if path.is_file()]
    return sorted(path.relative_to(root) for path in found)


def _find(workspace: Path) -> Path:
    if not workspace.is_dir():
        raise ReportError("there is no such folder", where=workspace.name, do="name a simulator's workspace or a run")
    found = _below(workspace, "run.json")
    if not found and (workspace / "run.json").is_file():
        found = [workspace / "run.json"]
    if not found and (ended := _below(workspace, ENDED)):
        reason = clean_reason(_read_object(ended[0]).get("reason"))
        raise ReportError(f"the run did not start: {reason}", where=workspace.name, do="fix that, run the job again")
    if not found:
        raise ReportError("there is no run below this folder", where=workspace.name, do="run a job first")
    if len(found) > 1:
        names = ", ".join(path.parent.parent.relative_to(workspace).as_posix() for path in found)
        raise ReportError(f"there are {len(found)} runs: {names}", where=workspace.name, do="name one of them")
    return found[0].parent


def _below(workspace: Path, name: str) -> list[Path]:
    patterns = ["/".join(["*"] * depth + ["fedfms", name]) for depth in range(_DEPTH)]
    return sorted({path for pattern in patterns for path in workspace.glob(pattern)})


def _read_object(path: Path) -> dict[str, Any]:
    return mapping(read_json(path, ReportError, do=_AGAIN), ReportError, what=path.name, do=_AGAIN)


def _parse(kind: type[T], raw: Any, where: str, key: str = "") -> T:
    return parse(kind, raw, ReportError, where=where, do=_AGAIN, key=key, machine_written=True)


def _read_lines(path: Path, notes: list[str]) -> Iterator[tuple[str, Any]]:
    """The place and content of each line of a file; nothing if there is no file."""
    if not path.is_file():
        return
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ReportError(f"cannot read {path.name} ({error.strerror})", do=_AGAIN) from None
    for number, line in enumerate(lines, start=1):
        where = f"{path.name}, line {number}"
        if not line:
            continue
        try:
            content = parse_json(line, ReportError, what="it", where=where, do=_AGAIN)
        except ReportError:
            if number < len(lines):
                raise
            notes.append(f"the last line of {path.name} is incomplete and was skipped")  # a kill during a write
            return
        yield where, content


def _mixing(raw: Any, where: str, study: Study) -> dict[str, Any]:
    line = _parse(_Mixing, raw, where)
    sites, rows = line.W.sites, line.W.rows
    if len(set(sites)) < len(sites) or (study.sites and not {*sites, *rows} <= set(study.sites)):
        raise ReportError("W is not over the study's sites", where=where, do=_AGAIN)
    for row in rows.values():
        if not set(row) <= set(sites) or abs(math.fsum(row.values()) - 1) > _SUM_TOLERANCE:
            raise ReportError("a row of W is not a mean over the sites that answered", where=where, do=_AGAIN)
    return {"round": line.round, "sites": sites, "rows": rows}


def _clean_row(raw: Any, where: str, study: Study, notes: list[str]) -> dict[str, Any]:
    checked = _parse(_Row, raw, where)
    place = f"{checked.site}, round {checked.round}"
    row: dict[str, Any] = {"round": checked.round, "site": checked.site, "accepted": checked.accepted}
    row["reason"] = clean_reason(raw.get("reason"))
    row["held_out"] = checked.site in study.held_out or raw.get("held_out") is True
    for key in _NUMBERS:
        row[key] = clean_number(raw.get(key))
        if row[key] is None and raw.get(key) is not None:
            notes.append(f"{place}: {key} is not a finite number and was dropped")
    row["scores"] = _scores(raw.get("scores"), place, study, notes)
    return row


def _scores(raw: Any, place: str, study: Study, notes: list[str]) -> dict[str, Any] | None:
    scores = clean_scores(raw, study.structure_names)
    if scores is None and raw is not None:
        notes.append(f"{place}: the scores are not valid scores of this study's structures and were dropped")
    return scores


def _clean_entry(raw: Any, place: str, study: Study, notes: list[str]) -> dict[str, Any]:
    """A site's scores of a final model, all reported by the site."""
    entry: Mapping[str, Any] = raw if isinstance(raw, dict) else {"scores": raw}
    part = entry.get("part")
    return {
        "scores": _scores(entry.get("scores"), place, study, notes),
        "part": part if part in ("val", "test", "all") else None,
        "held_out": entry.get("held_out") is True,
    }
