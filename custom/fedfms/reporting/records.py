"""What a run leaves at the server, read back.

A run's folder holds `fedfms/` (in a simulator's workspace: server/simulate_job/fedfms) with
- `run.json`: {"format": 1, "study" (resolved), "versions", "started", "parameters": {"total", "trained", "shared",
  "shared_mb"}}; perhaps "model": {"input_px", "mask_px"};
- `rounds.jsonl`: a line a round and site: {"round" (from 0), "site", "accepted", "reason", "held_out", "samples",
  "train_loss", "seconds", "bytes_up", "bytes_down", "unreadable_images" (left out as damaged), "scores" (`Scores.result()` of
  the model that the site received, on its validation images)}; of a row only the first three are always there; a last
  line that a kill left unfinished is passed over;
- `final.json`: {"models": {"final" | "best": {"round", "sites": {site: {"scores", "part", "images", "held_out"}}}}};
  missing when the run was cut;
- `mixing.jsonl`, of a method that makes each site a mixture of its own: a line a round, {"round", "W": {"sites" (that
  answered), "rows": {site: {site: weight}}}}, each row's sum 1, weights of 0 left out; of two lines of one round, the
  later one counts.
What the server wrote must be whole, else the file is damaged. What a site told of itself (scores, loss, seconds) is
left out with a note where it is not what it must be.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedfms.errors import FedfmsError
from fedfms.federation.rows import one_line
from fedfms.reporting.mixing import clean_mixing
from fedfms.reporting.scores import clean_number, clean_scores
from fedfms.study import Study

FORMAT = 1
ENDED = "ended.json"  # in place of all that: {"reason"} of a run that the server gave up
_DEPTH = 6
_NUMBERS = ("samples", "train_loss", "seconds", "bytes_up", "bytes_down", "unreadable_images")
_PARAMETERS = ("total", "trained", "shared", "shared_mb")
_REASON_CHARACTERS = 300  # it may be the site's own words
_AGAIN = "the run's records are damaged; run the job again"


class ReportError(FedfmsError):
    """There is no run to report on, its records are damaged, or the report cannot be written."""


@dataclass(frozen=True)
class Records:
    """The records of one run."""

    folder: Path  # the `fedfms` folder
    run: dict[str, Any]
    study: Study
    rounds: list[dict[str, Any]]
    models: dict[str, dict[str, Any]]
    mixing: list[dict[str, Any]]  # by round; see `clean_mixing`
    notes: list[str]  # what was left out, and why


def read_records(workspace: Path) -> Records:
    """The records of the one run at or below `workspace`.

    Raises:
        ReportError: no run, several runs, or a damaged file.
        StudyError: the study is one of another version.
    """
    folder = _find(workspace)
    run = _read_run(folder / "run.json")
    study = Study.from_dict(run["study"])
    notes: list[str] = []
    rounds = _read_rounds(folder / "rounds.jsonl", study, notes)
    final = folder / "final.json"
    models = _read_models(final, study, notes) if final.is_file() else {}
    mixing = _read_mixing(folder / "mixing.jsonl", study, notes)
    return Records(folder, run, study, rounds, models, mixing, notes)


def clean_reason(raw: Any) -> str:
    """One line, of no length that spoils a table, and without what moves a terminal's cursor."""
    return one_line(str(raw or ""), _REASON_CHARACTERS)


def overlays(workspace: Path, folder: Path) -> list[Path]:
    """Pictures that sites drew under a simulator's workspace, relative to it; they are not opened.

    Args:
        workspace: what the report was asked for; the workspace itself, or a folder in it.
        folder: the run's `fedfms` folder, by which a simulator's workspace is known.
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
        reason = clean_reason(_read_json(ended[0]).get("reason"))
        raise ReportError(f"the run did not begin: {reason}", where=workspace.name, do="mend that, run the job again")
    if not found:
        raise ReportError("there is no run below this folder", where=workspace.name, do="run a job first")
    if len(found) > 1:
        names = ", ".join(path.parent.parent.relative_to(workspace).as_posix() for path in found)
        raise ReportError(f"there are {len(found)} runs: {names}", where=workspace.name, do="name one of them")
    return found[0].parent


def _below(workspace: Path, name: str) -> list[Path]:
    patterns = ["/".join(["*"] * depth + ["fedfms", name]) for depth in range(_DEPTH)]
    return sorted({path for pattern in patterns for path in workspace.glob(pattern)})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError("it cannot be read", where=path.name, do=_AGAIN) from error
    if not isinstance(content, dict):
        raise ReportError("it is no JSON object", where=path.name, do=_AGAIN)
    return content


def _read_run(path: Path) -> dict[str, Any]:
    run = _read_json(path)
    if run.get("format") != FORMAT:
        raise ReportError(
            f"its format is {run.get('format')!r}, not {FORMAT}", where=path.name,
            do="make the report with the version that ran it",
        )  # fmt: skip
    if not all(isinstance(run.get(key), dict) for key in ("study", "versions", "parameters")):
        raise ReportError("study, versions or parameters are missing", where=path.name, do=_AGAIN)
    if any(clean_number(run["parameters"].get(key)) is None for key in _PARAMETERS):
        raise ReportError(f"parameters must have {list(_PARAMETERS)}", where=path.name, do=_AGAIN)
    return run


def _read_rounds(path: Path, study: Study, notes: list[str]) -> list[dict[str, Any]]:
    return [_clean_row(raw, where, study, notes) for where, raw in _read_lines(path, notes)]


def _read_mixing(path: Path, study: Study, notes: list[str]) -> list[dict[str, Any]]:
    by_round = {}
    for where, raw in _read_lines(path, notes):
        entry = clean_mixing(raw, study.sites)
        if entry is None:
            raise ReportError("it is no mixing of a round over the study's sites", where=where, do=_AGAIN)
        by_round[entry["round"]] = entry
    return [by_round[round_] for round_ in sorted(by_round)]


def _read_lines(path: Path, notes: list[str]) -> Iterator[tuple[str, Any]]:
    """What each line of a file holds, with its place; nothing where there is no file."""
    if not path.is_file():
        return
    try:
        lines = path.read_bytes().decode("utf-8", errors="replace").split("\n")
    except OSError as error:
        raise ReportError("it cannot be read", where=path.name, do=_AGAIN) from error
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            raw = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # a kill in the middle of a write
                notes.append(f"the last line of {path.name} is unfinished and left out")
                return
            raise ReportError(f"line {number} is damaged", where=path.name, do=_AGAIN) from error
        yield f"{path.name}, line {number}", raw


def _clean_row(raw: Any, where: str, study: Study, notes: list[str]) -> dict[str, Any]:
    if (
        not isinstance(raw, dict)
        or not (isinstance(raw.get("round"), int) and raw["round"] >= 0)
        or not isinstance(raw.get("site"), str)
        or not isinstance(raw.get("accepted"), bool)
    ):
        raise ReportError("it is no row of a round and site", where=where, do=_AGAIN)
    place = f"{raw['site']}, round {raw['round']}"
    row = {key: raw[key] for key in ("round", "site", "accepted")}
    row["reason"] = clean_reason(raw.get("reason"))
    row["held_out"] = raw["site"] in study.held_out or raw.get("held_out") is True
    for key in _NUMBERS:
        row[key] = clean_number(raw.get(key))
        if row[key] is None and raw.get(key) is not None:
            notes.append(f"{place}: {key} is not a finite number and is left out")
    row["scores"] = _scores(raw.get("scores"), place, study, notes)
    return row


def _scores(raw: Any, place: str, study: Study, notes: list[str]) -> dict[str, Any] | None:
    scores = clean_scores(raw, study.structure_names)
    if scores is None and raw is not None:
        notes.append(f"{place}: the scores are not of this study's structures, or no numbers, and are left out")
    return scores


def _read_models(path: Path, study: Study, notes: list[str]) -> dict[str, dict[str, Any]]:
    models = _read_json(path).get("models")
    if not isinstance(models, dict):
        raise ReportError("models are missing", where=path.name, do=_AGAIN)
    out: dict[str, dict[str, Any]] = {}
    for name, model in models.items():
        whole = isinstance(model, dict) and isinstance(model.get("round"), int) and isinstance(model.get("sites"), dict)
        if not whole:
            raise ReportError(f"model {name!r} has no round or no sites", where=path.name, do=_AGAIN)
        sites = {site: _clean_entry(entry, f"{site}, {name} model", study, notes)
                 for site, entry in model["sites"].items()}  # fmt: skip
        out[name] = {"round": model["round"], "sites": sites}
    return out


def _clean_entry(raw: Any, place: str, study: Study, notes: list[str]) -> dict[str, Any]:
    """A site's scores of a model that the run left; all of it is the site's word."""
    entry: Mapping[str, Any] = raw if isinstance(raw, dict) else {"scores": raw}
    part = entry.get("part")
    return {
        "scores": _scores(entry.get("scores"), place, study, notes),
        "part": part if part in ("val", "test", "all") else None,
        "held_out": entry.get("held_out") is True,
    }
