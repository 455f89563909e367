"""Read and validate the finished runs of an experiment.

A run is a method (in a variant) with a seed and, in the protocol `held-out`, a held-out site. A finished run has
`<out>/runs/<run>/result.json`; its sites may have left scores of single images in `<run>/<site>/scores/<model>.json`.
An invalid file is an error: tables are made of valid runs only.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedfms.errors import FedfmsError
from fedfms.reporting.layer_shift import mean_by_layer
from fedfms.reporting.records import check_format
from fedfms.reporting.scores import OPEN, Count, ScoreRow, Share, SiteScores
from fedfms.schema import parse, read_json
from fedfms.study import Study

RUNS = "runs"  # folder of the runs
MODELS = ("final", "best")
_AGAIN = "remove this run's folder and run the experiment again"

Protocol = Literal["held-out", "personal"]
ImageScores = Mapping[str, Mapping[str, Mapping[str, Share | None]]]  # mode -> structure -> metric


class TableError(FedfmsError):
    """The runs of a table are missing or damaged, or the table cannot be written."""


@dataclass(frozen=True, config=OPEN)
class Key:
    """Identifies a run within an experiment."""

    method: Annotated[str, Field(min_length=1)]
    seed: int
    held_out: str | None = None
    """None: the protocol `personal`."""
    variant: str = ""
    """Empty, or what was changed, as in "L=4"."""

    @property
    def line(self) -> tuple[str, str]:
        """The line of the table that the run belongs to: method and variant."""
        return self.method, self.variant


@dataclass(frozen=True, config=OPEN)
class SiteResult:
    """A model's scores at a site; without `scores` if the site reported none."""

    held_out: bool
    scores: SiteScores | None = None
    part: Literal["val", "test", "all"] | None = None
    images: Count | None = None


@dataclass(frozen=True, config=OPEN)
class ModelResult:
    """A model's scores by site, and the number of rounds that it results from."""

    sites: Mapping[str, SiteResult]
    round: Count = 0


@dataclass(frozen=True, config=OPEN)
class Point:
    """Dice of the model received in a round, by site, and how far the round moved each layer."""

    round: Count
    dice: Mapping[str, Share | None]
    shift: Mapping[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None = None


@dataclass(frozen=True, config=OPEN)
class Image:
    """The scores of one image, None where there is nothing to score."""

    key: str
    case: str
    scores: ImageScores


@dataclass(frozen=True, config=OPEN)
class _Images:
    images: tuple[Image, ...]


@dataclass(frozen=True, config=OPEN)
class Result:
    """The content of `result.json`. `study` is plain: `Study.from_dict` parses it."""

    run: Key
    study: Mapping[str, Any]
    protocol: Protocol
    models: Mapping[str, ModelResult]
    curve: tuple[Point, ...] = ()
    traffic: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seconds: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    machine: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run."""

    name: str
    key: Key
    study: Study
    result: Result
    images: Mapping[tuple[str, str], tuple[Image, ...]]  # (model, site), where the site's image scores are at hand

    @property
    def models(self) -> Mapping[str, ModelResult]:
        """The "final" model, and perhaps the "best" one."""
        return self.result.models

    def at(self, model: str, site: str) -> SiteResult | None:
        """A model's result at a site, if there is one."""
        return self.models[model].sites.get(site) if model in self.models else None

    def row(self, model: str, site: str, mode: str, structure: str) -> ScoreRow | None:
        """The scores of a structure; None if the site reported none."""
        found = self.at(model, site)
        return found.scores.by_mode().get(mode, {}).get(structure) if found and found.scores else None

    @property
    def shift(self) -> Mapping[str, float]:
        """How far a round moves each layer, mean over rounds; empty if unknown."""
        return mean_by_layer(point.shift for point in self.result.curve if point.shift is not None)


def read_runs(out: Path) -> tuple[tuple[Run, ...], int]:
    """The finished runs below `out`/runs, sorted by folder name, and the number of folders without a result.

    Raises:
        TableError: there is no finished run, two are the same, or a file is damaged.
        StudyError: a run's study was written by another version.
    """
    folders = sorted(path for path in (out / RUNS).glob("*") if path.is_dir())
    done = [folder for folder in folders if (folder / "result.json").is_file()]
    if not done:
        raise TableError("there is no finished run", where="table", do="run `fedfms table` without --render")
    runs = tuple(_read_run(folder) for folder in done)
    seen: dict[Any, str] = {}
    for run in runs:
        same = seen.setdefault((run.key, run.study.name), run.name)
        if same != run.name:
            raise TableError(f"it is the same as {same}", where=f"run {run.name}", do="remove one of the two folders")
    return runs, len(folders) - len(done)


def _read_run(folder: Path) -> Run:
    where = f"run {folder.name}"
    result: Result = _read(folder / "result.json", Result, where)
    key, models = result.run, result.models
    study = Study.from_dict(result.study)
    structures = study.structure_names
    named = {site for model in models.values() for site in model.sites}
    rounds = [point.round for point in result.curve]
    texts = (key.method, key.variant, study.name, study.title, *structures, *sorted(named))
    for holds, what in (
        ((key.held_out is None) == (result.protocol == "personal"), "held_out and protocol do not match"),
        ("final" in models and set(models) <= set(MODELS), f"models are not {' and '.join(MODELS)}"),
        (key.held_out is None or key.held_out in named, "the held-out site has no scores"),
        (len(set(rounds)) == len(rounds), "curve has a round twice"),
        (all(text.isprintable() for text in texts), "a name has characters that cannot be printed"),
    ):
        _check(holds, where, what)
    for name, model in models.items():
        for site, entry in model.sites.items():
            for mode, rows in entry.scores.by_mode().items() if entry.scores else ():
                place = f"{where}, {name} model, site {site}"
                _check(set(structures) <= set(rows), place, f"a structure has no {mode} scores")
    return Run(folder.name, key, study, result, _read_images(folder, named, structures, where))


def _read_images(
    folder: Path, sites: Iterable[str], structures: Iterable[str], where: str
) -> dict[tuple[str, str], tuple[Image, ...]]:
    found = {}
    for path in sorted(folder.glob("*/scores/*.json")):
        site, model = path.parent.parent.name, path.stem
        if site in sites and model in MODELS:
            place = f"{where}, site {site}, image scores of the {model} model"
            images: tuple[Image, ...] = _read(path, _Images, place).images
            _check(len({image.key for image in images}) == len(images), place, "an image is listed twice")
            complete = all(set(structures) <= set(rows) for image in images for rows in image.scores.values())
            _check(complete, place, "an image has no scores of a structure")
            found[model, site] = images
    return found


def _read(path: Path, kind: Any, where: str) -> Any:
    raw = read_json(path, TableError, where=where, do=_AGAIN)
    check_format(raw, TableError, where)
    return parse(kind, raw, TableError, where=where, do=_AGAIN, machine_written=True)


def _check(holds: bool, where: str, what: str) -> None:
    if not holds:
        raise TableError(what, where=where, do=_AGAIN)
