"""The runs of an experiment: method x variant x held-out site x seed, each with its own study."""

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from fedfms.errors import StudyError
from fedfms.methods import METHODS, make_method, method_options, resolve_study
from fedfms.reporting.tables import Key
from fedfms.schema import STRICT, parse, read_yaml
from fedfms.study import PHANTOM, PHANTOM_SITES, Study, check_sites_known, find_study, find_yaml, load_study, yaml_names

TABLES = "tables"  # folder of packaged experiments in `fedfms/studies`
_WHERE = "table"
_SET_BY_EXPERIMENT = ("method", "seed", "sites", "held_out", "data.protocol")

Overrides = Annotated[Mapping[str, Any], BeforeValidator(lambda value: {} if value is None else value)]


@dataclasses.dataclass(frozen=True)
class Run:
    """A planned run."""

    key: Key
    study: Study

    @property
    def name(self) -> str:
        """Name of its folder: letters, digits, `.`, `-`, `=` and `_`, parts joined by `+`."""
        parts = (self.key.method, self.key.variant, self.key.held_out or "", f"seed{self.key.seed}")
        return "+".join(re.sub(r"[^A-Za-z0-9._=-]", "_", part) for part in parts if part)


@dataclass(frozen=True, config=STRICT)
class Experiment:
    """Methods compared on one study. The YAML files in `studies/tables` have these keys."""

    study: str
    """A YAML file, or the name of a packaged study."""
    title: str = ""
    protocol: Literal["held-out", "personal"] = "held-out"
    methods: tuple[str, ...] = ("fedmsa", "fedsam", "fedunet", "local", "msa")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    sites: tuple[str, ...] = ()
    """Empty: the study's sites."""
    held_out: tuple[str, ...] = ()
    """Sites to hold out, one at a time; empty: each site."""
    overrides: tuple[str, ...] = ()
    """KEY=VALUE overrides of the study, for all runs."""
    preset: str | None = None
    variants: Mapping[str, Overrides] = field(default_factory=lambda: {"": {}})
    """Overrides of the study (dotted keys) by label. A method is run with a variant only if it has all of the variant's
    `method_options`, and only if the resulting study differs from those of earlier variants."""
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Methods to run with a variant, by label; default: all methods."""

    def __post_init__(self) -> None:
        for name, values in (("methods", self.methods), ("seeds", self.seeds), ("variants", self.variants)):
            if not values or len(set(values)) != len(values):
                raise StudyError(f"{name} must be distinct, at least one", where=_WHERE)
        if self.protocol == "personal" and self.held_out:
            what = f"held_out names {list(self.held_out)}, but the protocol personal holds no site out"
            raise StudyError(what, where=_WHERE, do="use --protocol held-out, or leave held_out out")
        if unknown := sorted(set(self.only) - set(self.variants)):
            raise StudyError(f"only names {unknown}", where=_WHERE, do=f"one of {sorted(self.variants)}")
        for label, changes in self.variants.items():
            if fixed := sorted(set(changes) & set(_SET_BY_EXPERIMENT)):
                what = f"variant {label!r} sets {fixed}"
                raise StudyError(what, where=_WHERE, do="use keys of the study that the experiment itself does not set")

    def runs(self) -> list[Run]:
        """All runs; those of one method and variant are adjacent.

        Raises:
            StudyError: an unknown site, an invalid method or study, or two runs with the same folder name.
        """
        runs = list(self._runs())
        if not runs:
            raise StudyError("no method has the options of any variant", where=_WHERE, do="name other methods")
        if len({run.name for run in runs}) != len(runs):
            raise StudyError("two runs would share a folder", where=_WHERE, do="use simpler labels for the variants")
        return runs

    def _runs(self) -> Iterator[Run]:
        sites = self._all_sites()
        seen: list[Study] = []
        for method, (variant, changes) in itertools.product(self.methods, self.variants.items()):
            if not _has_options(method, changes) or method not in self.only.get(variant, self.methods):
                continue
            for held_out, seed in itertools.product(self._held_out(sites), self.seeds):
                study = self._study(method, changes, seed, sites, held_out)
                if study not in seen:  # a U-Net, for example, ignores a variant's initial weights
                    yield Run(Key(method, seed, held_out, variant), study)
                seen.append(study)

    def _all_sites(self) -> tuple[str, ...]:
        base = load_study(find_study(self.study), preset=self.preset, overrides=self.overrides)
        named = (*base.sites, *base.held_out) if base.sites else ()
        phantom = PHANTOM_SITES if base.data.dataset == PHANTOM else ()
        check_sites_known(base, self.sites, "--sites", phantom)  # the phantom accepts any name, even a mistyped one
        sites = self.sites or named or phantom
        if not sites:
            raise StudyError("the study names no sites", where=base.name, do="name them with --sites a,b,c")
        return sites

    def _held_out(self, sites: Sequence[str]) -> tuple[str | None, ...]:
        if self.protocol == "personal":
            return (None,)
        if unknown := sorted(set(self.held_out) - set(sites)):
            raise StudyError(f"--held-out names {unknown}", where=_WHERE, do=f"one of {list(sites)}")
        if len(sites) < 2:
            what = "the only site is held out, and no site is left to train"
            raise StudyError(what, where=_WHERE, do="name two sites")
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


def _has_options(method: str, changes: Mapping[str, Any]) -> bool:
    """Whether a method has all the options that a variant sets; an unknown method is reported later, by the study."""
    options = {key.removeprefix("method_options.") for key in changes if key.startswith("method_options.")}
    return method not in METHODS or options <= set(method_options(method))


def load_experiment(name: str, *, overrides: Sequence[str] = (), **values: Any) -> Experiment:
    """The experiment of a table (a YAML file, or the name of a packaged one) or of a single study.

    Args:
        overrides: added to the experiment's own overrides.
        values: other fields, which replace the experiment's own unless None.

    Raises:
        StudyError: no such table or study, an unknown key, or an invalid value.
    """
    path = find_yaml(name, TABLES)
    if path is None and find_yaml(name) is None:
        known = f"a study ({', '.join(yaml_names())}), or a table ({', '.join(yaml_names(TABLES))})"
        raise StudyError(f"no study and no table {name!r}", where=_WHERE, do=f"name a YAML file, {known}")
    raw = {"study": name} if path is None else _read(path, name)
    if values.get("protocol") == "personal" and values.get("held_out") is None:
        raw.pop("held_out", None)  # belongs to the table's own protocol
    raw |= {key: value for key, value in values.items() if value is not None}
    experiment = parse(Experiment, raw, StudyError, where=_WHERE)
    return dataclasses.replace(experiment, overrides=(*experiment.overrides, *overrides))


def _read(path: Path, name: str) -> dict[str, Any]:
    content = read_yaml(path, StudyError, where=_WHERE)
    table = isinstance(content, dict) and "study" in content  # else the file is a study
    return {"title": path.stem, **content} if table else {"study": name}
