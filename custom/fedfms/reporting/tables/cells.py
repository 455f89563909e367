"""What the cells of a table left, read back and checked.

A cell is one run of the table: a method (in a variant), a seed and, in the protocol `held-out`, the site that is held
out. A finished one has `<out>/cells/<cell>/result.json`, and beside it the scores of single images, which the sites
that are at hand left in `<cell>/<site>/scores/<model>.json`. A file that is not what it must be is an error: a table
is made of whole cells or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedfms.errors import FedfmsError
from fedfms.reporting.movement import mean_over_rounds
from fedfms.reporting.scores import clean_number
from fedfms.study import Study
from fedfms.training.metrics import METRICS, VOLUME
from fedfms.training.metrics import MODES as BY_IMAGE

FORMAT = 1
MODES = (*BY_IMAGE, VOLUME)  # the last only where a case has several slices
MODELS = ("final", "best")
PROTOCOLS = ("held-out", "personal")
_AGAIN = "remove this cell's folder and run the table again"


class TableError(FedfmsError):
    """The cells of a table are missing or damaged, or the table cannot be written."""


@dataclass(frozen=True)
class Key:
    """Which cell of the table."""

    method: str
    seed: int
    held_out: str | None = None  # None: the protocol `personal`
    variant: str = ""  # "" or as in "L=4"

    @property
    def line(self) -> tuple[str, str]:
        """The line of the table that it belongs to: method and variant."""
        return self.method, self.variant


@dataclass(frozen=True)
class Numbers:
    """Means over a site's images; None where the site withholds them, or nothing was counted."""

    dice: float | None
    iou: float | None
    dice_sd: float | None = None
    iou_sd: float | None = None
    images: int | None = None
    empty: int | None = None

    def of(self, metric: str) -> float | None:
        """The mean of "dice" or "iou"."""
        value: float | None = getattr(self, metric)
        return value

    def sd(self, metric: str) -> float | None:
        """Its sample standard deviation over images."""
        value: float | None = getattr(self, f"{metric}_sd")
        return value


@dataclass(frozen=True)
class SiteScores:
    """A model's scores at a site: by mode and structure, {} where the site told none."""

    part: str | None
    images: int | None
    held_out: bool
    scores: Mapping[str, Mapping[str, Numbers]]


@dataclass(frozen=True)
class Image:
    """The scores of one image: mode -> structure -> metric -> value, None where there is nothing to score."""

    key: str
    case: str
    scores: Mapping[str, Mapping[str, Mapping[str, float | None]]]


@dataclass(frozen=True)
class Cell:
    """A finished cell."""

    name: str
    key: Key
    study: Study
    protocol: str
    models: Mapping[str, Mapping[str, SiteScores]]  # "final", perhaps "best" -> site
    rounds: Mapping[str, int]  # of each model
    curve: tuple[tuple[int, Mapping[str, float | None]], ...]  # round, Dice of the received model by site
    shift: Mapping[str, float]  # by layer: how far a round moves it, mean over rounds
    traffic: Mapping[str, Any]
    seconds: Mapping[str, Any]
    machine: Mapping[str, Any]
    versions: Mapping[str, Any]
    images: Mapping[tuple[str, str], tuple[Image, ...]]  # (model, site), where the site's scores are at hand

    def numbers(self, model: str, site: str, mode: str, structure: str) -> Numbers | None:
        """The scores of a structure; None where the site told none."""
        entry = self.models.get(model, {}).get(site)
        return entry.scores.get(mode, {}).get(structure) if entry else None


@dataclass(frozen=True)
class Cells:
    """All finished cells, in the order of their folders' names, and how many folders have no result."""

    finished: tuple[Cell, ...]
    unfinished: int


def read_cells(out: Path) -> Cells:
    """The cells below `out`/cells.

    Raises:
        TableError: there is no finished cell, two are the same, or a file is damaged.
        StudyError: a cell's study is one of another version.
    """
    folders = sorted(path for path in (out / "cells").glob("*") if path.is_dir())
    done = [folder for folder in folders if (folder / "result.json").is_file()]
    if not done:
        raise TableError("there is no finished cell", where="table", do="run `fedfms table` without --render")
    cells = tuple(_read_cell(folder) for folder in done)
    seen: dict[Any, str] = {}
    for cell in cells:
        same = seen.setdefault((cell.key, cell.study.name), cell.name)
        if same != cell.name:
            raise TableError(f"it is the same as {same}", where=_place(cell.name), do="remove one of the two folders")
    return Cells(cells, len(folders) - len(done))


def _read_cell(folder: Path) -> Cell:
    where = _place(folder.name)
    raw = _object(_json(folder / "result.json", where), where, "the result")
    if raw.get("format") != FORMAT:
        raise TableError(
            f"its format is {raw.get('format')!r}, not {FORMAT}", where=where,
            do="make the table with the version that ran it",
        )  # fmt: skip
    study = Study.from_dict(_object(raw.get("study"), where, "study"))
    key = _key(raw.get("cell"), where)
    _check(raw.get("protocol") in PROTOCOLS, where, "protocol is unknown")
    _check((key.held_out is None) == (raw["protocol"] == "personal"), where, "held_out and protocol do not fit")
    models = _object(raw.get("models"), where, "models")
    _check("final" in models and set(models) <= set(MODELS), where, f"models are not {' and '.join(MODELS)}")
    sites = {name: _sites(model, study, f"{where}, {name} model") for name, model in models.items()}
    named = {site for of_model in sites.values() for site in of_model}
    _check(key.held_out is None or key.held_out in named, where, "the held-out site has no scores")
    texts = (key.method, key.variant, study.name, study.title, *study.structure_names, *sorted(named))
    _check(all(text.isprintable() for text in texts), where, "a name has characters that cannot be printed")
    return Cell(
        name=folder.name, key=key, study=study, protocol=raw["protocol"], models=sites,
        rounds={name: _count(model.get("round"), where, "round") or 0 for name, model in models.items()},
        curve=_curve(raw.get("curve"), where),
        shift=_shift(raw.get("curve") or (), where),
        traffic=_object(raw.get("traffic") or {}, where, "traffic"),
        seconds=_object(raw.get("seconds") or {}, where, "seconds"),
        machine=_object(raw.get("machine") or {}, where, "machine"),
        versions=_object(raw.get("versions") or {}, where, "versions"),
        images=_all_images(folder, named, study.structure_names, where),
    )  # fmt: skip


def _key(raw: Any, where: str) -> Key:
    raw = _object(raw, where, "cell")
    method, seed, held_out, variant = (raw.get(name) for name in ("method", "seed", "held_out", "variant"))
    _check(isinstance(method, str) and method != "", where, "method is no name")
    _check(isinstance(seed, int) and not isinstance(seed, bool), where, "seed is no whole number")
    _check(held_out is None or isinstance(held_out, str), where, "held_out is no name")
    _check(isinstance(variant, str), where, "variant is no text")
    return Key(str(method), int(seed or 0), held_out, str(variant))


def _sites(raw: Any, study: Study, where: str) -> dict[str, SiteScores]:
    sites = _object(_object(raw, where, "the model").get("sites"), where, "sites")
    return {site: _site(entry, study.structure_names, f"{where}, site {site}") for site, entry in sites.items()}


def _site(raw: Any, structures: Iterable[str], where: str) -> SiteScores:
    raw = _object(raw, where, "the site's entry")
    _check(raw.get("part") in ("val", "test", "all", None), where, "part is unknown")
    _check(isinstance(raw.get("held_out"), bool), where, "held_out is neither true nor false")
    scores: dict[str, dict[str, Numbers]] = {}
    if raw.get("scores") is not None:
        told = _object(raw["scores"], where, "scores")
        for mode in MODES:
            if mode in told or mode != "volume":
                by_structure = _object(told.get(mode), where, f"scores of mode {mode}")
                scores[mode] = {
                    name: _numbers(by_structure.get(name), f"{where}, {mode}, {name}") for name in structures
                }
    return SiteScores(raw.get("part"), _count(raw.get("images"), where, "images"), raw["held_out"], scores)


def _numbers(raw: Any, where: str) -> Numbers:
    raw = _object(raw, where, "scores")
    shares = {name: _share(raw.get(name), where, name) for name in METRICS}
    sds = {f"{name}_sd": _share(raw.get(f"{name}_sd"), where, f"{name}_sd") for name in METRICS}
    counts = {name: _count(raw.get(name), where, name) for name in ("images", "empty")}
    return Numbers(**shares, **sds, **counts)  # type: ignore[arg-type]


def _curve(raw: Any, where: str) -> tuple[tuple[int, Mapping[str, float | None]], ...]:
    _check(raw is None or isinstance(raw, list), where, "curve is no list")
    points = {}
    for entry in raw or ():
        entry = _object(entry, where, "a point of the curve")
        round_ = _count(entry.get("round"), where, "round of the curve")
        dice = _object(entry.get("dice"), where, "dice of the curve")
        _check(round_ is not None and round_ not in points, where, "the curve's rounds are not one after the other")
        points[round_ or 0] = {site: _share(value, where, "dice of the curve") for site, value in dice.items()}
    return tuple(sorted(points.items()))


def _shift(rounds: Iterable[Mapping[str, Any]], where: str) -> Mapping[str, float]:
    told = [_object(entry["shift"], where, "shift of the curve") for entry in rounds if "shift" in entry]
    fine = all(isinstance(value, float) and value >= 0 for row in told for value in row.values())
    _check(fine, where, "shift of the curve holds what is no number")
    return mean_over_rounds(told)


def _all_images(
    folder: Path, sites: Iterable[str], structures: Iterable[str], where: str
) -> dict[tuple[str, str], tuple[Image, ...]]:
    found = {}
    for path in sorted(folder.glob("*/scores/*.json")):
        site, model = path.parent.parent.name, path.stem
        if site in sites and model in MODELS:
            place = f"{where}, site {site}, scores of the {model} model"
            raw = _object(_json(path, place), place, "the file")
            _check(raw.get("format") == FORMAT and isinstance(raw.get("images"), list), place, "images are missing")
            images = tuple(_image(entry, structures, place) for entry in raw["images"])
            _check(len({image.key for image in images}) == len(images), place, "an image is there twice")
            found[model, site] = images
    return found


def _image(raw: Any, structures: Iterable[str], where: str) -> Image:
    raw = _object(raw, where, "an image's entry")
    _check(isinstance(raw.get("key"), str) and isinstance(raw.get("case"), str), where, "an image has no key or case")
    scores: dict[str, dict[str, dict[str, float | None]]] = {}
    for mode, told in _object(raw.get("scores"), where, "an image's scores").items():
        by_structure = _object(told, where, "an image's scores")
        scores[mode] = {}
        for name in structures:
            values = _object(by_structure.get(name), where, "an image's scores")
            scores[mode][name] = {metric: _share(values.get(metric), where, metric) for metric in METRICS}
    return Image(raw["key"], raw["case"], scores)


def _json(path: Path, where: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise TableError("its scores or its result cannot be read as JSON", where=where, do=_AGAIN) from None


def _object(raw: Any, where: str, what: str) -> dict[str, Any]:
    _check(isinstance(raw, dict), where, f"{what} is missing, or no JSON object")
    checked: dict[str, Any] = raw
    return checked


def _share(value: Any, where: str, what: str) -> float | None:
    number = clean_number(value)
    _check(value is None or (number is not None and 0 <= number <= 1), where, f"{what} is no number in 0..1")
    return None if number is None else float(number)


def _count(value: Any, where: str, what: str) -> int | None:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    _check(value is None or whole, where, f"{what} is no count")
    return value if whole else None


def _check(holds: bool, where: str, what: str) -> None:
    if not holds:
        raise TableError(what, where=where, do=_AGAIN)


def _place(name: str) -> str:
    return f"cell {name}"
