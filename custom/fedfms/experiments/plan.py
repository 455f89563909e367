"""Which runs a table needs: method x variant x held-out site x seed, each a study of its own."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from fedfms.errors import StudyError
from fedfms.methods import METHODS, make_method, method_options, resolve_study
from fedfms.study import PHANTOM, PHANTOM_SITES, Study, check_sites_known, find_study, find_yaml, load_study, yaml_names

TABLES = "tables"  # folder in `fedfms/studies`
PROTOCOLS = ("held-out", "personal")
_LISTS = ("methods", "seeds", "sites", "held_out", "overrides")
_OWN = ("method", "seed", "sites", "held_out", "data.protocol")  # what the table itself sets


@dataclass(frozen=True)
class Cell:
    """One run: its place in the table and the study that it is."""

    method: str
    variant: str
    seed: int
    held_out: str | None
    study: Study

    @property
    def name(self) -> str:
        """Its folder's name: letters, digits, dots, dashes and underscores."""
        parts = (self.method, self.variant, self.held_out or "", f"seed{self.seed}")
        return "+".join(re.sub(r"[^A-Za-z0-9._=-]", "_", part) for part in parts if part)

    def place(self) -> dict[str, Any]:
        """For JSON: where it stands in the table."""
        return {"method": self.method, "variant": self.variant, "seed": self.seed, "held_out": self.held_out}


@dataclass(frozen=True)
class Grid:
    """What is compared. `variants`: overrides of the study (dotted keys) by label; a method that has not all of a
    variant's `method_options`, or whose study it leaves as another variant's, is not run with it. `only`: the methods
    with which a variant is run, where it is not all of them.
    """

    study: str
    title: str = ""
    protocol: str = "held-out"
    methods: tuple[str, ...] = ("fedmsa", "fedsam", "fedunet", "local", "msa")
    seeds: tuple[int, ...] = (0,)
    sites: tuple[str, ...] = ()  # empty: the study's
    held_out: tuple[str, ...] = ()  # empty: each site in its turn
    overrides: tuple[str, ...] = ()  # KEY=VALUE, for all runs
    preset: str | None = None
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise StudyError(f"protocol is {self.protocol!r}", where="table", do=f"one of {list(PROTOCOLS)}")
        for name, values in (("methods", self.methods), ("seeds", self.seeds), ("variants", self.variants)):
            if not values or len(set(values)) != len(values):
                raise StudyError(f"{name} must be distinct, at least one", where="table")
        if self.protocol == "personal" and self.held_out:
            what = f"held_out names {list(self.held_out)}, and the protocol personal holds no site out"
            raise StudyError(what, where="table", do="say --protocol held-out, or leave it out")
        if unknown := sorted(set(self.only) - set(self.variants)):
            raise StudyError(f"only names {unknown}", where="table", do=f"one of {sorted(self.variants)}")

    def cells(self) -> list[Cell]:
        """All runs, those of one method and variant together.

        Raises:
            StudyError: an unknown site, a method or a study that cannot be, or two runs of one name.
        """
        cells = list(self._cells())
        if not cells:
            raise StudyError("no method takes any of the variants", where="table", do="name other methods")
        names = [cell.name for cell in cells]
        if len(set(names)) != len(names):
            raise StudyError("two runs would have one folder", where="table", do="give the variants plainer names")
        return cells

    def _cells(self) -> Iterator[Cell]:
        base = load_study(find_study(self.study), preset=self.preset, overrides=self.overrides)
        sites = self._sites(base)
        seen: list[Study] = []
        for method, (variant, changes) in itertools.product(self.methods, self.variants.items()):
            if not _takes(method, changes) or method not in self.only.get(variant, self.methods):
                continue
            for held_out, seed in itertools.product(self._held_out(sites), self.seeds):
                study = self._study(method, changes, seed, sites, held_out)
                if study not in seen:  # weights to start from, for one, are nothing to a U-Net
                    yield Cell(method, variant, seed, held_out, study)
                seen.append(study)

    def _sites(self, base: Study) -> tuple[str, ...]:
        named = (*base.sites, *base.held_out) if base.sites else ()
        phantom = PHANTOM_SITES if base.data.dataset == PHANTOM else ()
        check_sites_known(base, self.sites, "--sites", phantom)  # any name makes a phantom: a mistyped one, too
        sites = self.sites or named or phantom
        if not sites:
            raise StudyError("the study names no sites", where=base.name, do="name them with --sites a,b,c")
        return sites

    def _held_out(self, sites: Sequence[str]) -> tuple[str | None, ...]:
        if self.protocol == "personal":
            return (None,)
        unknown = sorted(set(self.held_out) - set(sites))
        if unknown:
            raise StudyError(f"--held-out names {unknown}", where="table", do=f"one of {list(sites)}")
        if len(sites) < 2:
            raise StudyError("a site is held out, and none is left that trains", where="table", do="name two sites")
        return self.held_out or tuple(sites)

    def _study(
        self, method: str, changes: Mapping[str, Any], seed: int, sites: Sequence[str], held_out: str | None
    ) -> Study:
        overrides = [*self.overrides, *(f"{key}={json.dumps(value)}" for key, value in changes.items())]
        study = load_study(
            find_study(self.study), preset=self.preset, overrides=overrides,
            **{
                "method": method,
                "seed": seed,
                "sites": [site for site in sites if site != held_out],
                "held_out": [] if held_out is None else [held_out],
                "data.protocol": self.protocol,
            },
        )  # fmt: skip
        return resolve_study(study, make_method(method, study.method_options))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


def _takes(method: str, changes: Mapping[str, Any]) -> bool:
    """Whether a method has all the options that a variant sets."""
    if method not in METHODS:
        return True  # the study says what is wrong
    options = {key.removeprefix("method_options.") for key in changes if key.startswith("method_options.")}
    return options <= set(method_options(method))


def load_grid(name: str, **values: Any) -> Grid:
    """The grid of a study, or of a table (a YAML file, or the name of a packaged one), with `values` laid
    over it where they are given.

    Raises:
        StudyError: neither; an unknown key; a value that cannot be.
    """
    path = find_yaml(name, TABLES)
    if path is None and find_yaml(name) is None:
        there = f"a study ({', '.join(yaml_names())}), or a table ({', '.join(yaml_names(TABLES))})"
        raise StudyError(f"no study and no table {name!r}", where="table", do=f"name a YAML file, {there}")
    raw: dict[str, Any] = {"study": name}
    if path is not None:
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError, UnicodeDecodeError):
            raise StudyError(f"{path.name} cannot be read as YAML", where="table") from None
        if isinstance(content, dict) and "study" in content:
            raw = {"title": path.stem, **content}
    if values.get("protocol") == "personal" and values.get("held_out") is None:
        raw.pop("held_out", None)  # the table's own, for its own protocol
    overrides = [*_frozen("overrides", raw.get("overrides")), *(values.pop("overrides", None) or ())]
    raw |= {key: value for key, value in values.items() if value is not None} | {"overrides": overrides}
    known = {f.name for f in dataclasses.fields(Grid)}
    if unknown := sorted(str(key) for key in set(raw) - known):
        raise StudyError(f"unknown keys {unknown}", where="table", do=f"known ones: {sorted(known)}")
    return Grid(**{key: _frozen(key, value) for key, value in raw.items()})


def _frozen(key: str, value: Any) -> Any:
    if key == "variants":
        return _variants(value)
    if key == "only":
        if not isinstance(value, dict):
            raise StudyError("only must be a mapping of methods by variant", where="table")
        return {str(label): _frozen("methods", methods) for label, methods in value.items()}
    if key in _LISTS:
        kind = int if key == "seeds" else str
        value = [] if value is None else value
        if not isinstance(value, list | tuple) or not all(type(each) is kind for each in value):
            raise StudyError(f"{key} is {value!r}", where="table", do=f"a list of {kind.__name__}")
        return tuple(value)
    if value is not None and not isinstance(value, str):
        raise StudyError(f"{key} is {value!r}", where="table", do="a text")
    return value


def _variants(value: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict) or not all(isinstance(each or {}, dict) for each in value.values()):
        raise StudyError("variants must be a mapping of overrides by label", where="table")
    made = {str(label): dict(changes or {}) for label, changes in value.items()}
    for label, changes in made.items():
        for key in changes:
            if not isinstance(key, str) or key in _OWN:
                what = f"variant {label!r} sets {key!r}"
                raise StudyError(what, where="table", do="a key of the study that the table itself does not set")
    return made
