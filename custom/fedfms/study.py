"""A study: what is trained, on whose data, how, for how long. YAML -> frozen dataclasses -> job config, one way.

An unknown key or a value of another type is an error: a study that loads is a study that is meant."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fedfms.errors import StudyError
from fedfms.presets import PRESETS
from fedfms.study_rules import check, check_known

PHANTOM = "phantom"
PHANTOM_SITES = ("site-1", "site-2", "site-3")  # of a study that names none; any name is a phantom's


@dataclass(frozen=True)
class Structure:
    """One thing to segment: its name, and the label values of the data set that belong to it."""

    name: str
    values: tuple[int, ...] = (1,)


@dataclass(frozen=True)
class DataSpec:
    """Which data, and how they become batches."""

    dataset: str = PHANTOM
    structures: tuple[Structure, ...] = (Structure("structure"),)
    protocol: str = "held-out"  # held-out (9:1 training, validation) | personal (8:2 training, test)
    max_images: int | None = None  # of a site, chosen by seed and patient; None = all
    max_bad_images: int = 0  # of a site: so many damaged or missing ones are left out; more are an error
    crop_px: int | None = None  # random square crop in training, at native resolution
    # none | flip | photometric: flips, and gamma, gain, offset, colour and noise | nnunet: `fedfms.data.nnunet`
    augment: str = "none"
    cache: bool = True  # decoded slices in memory; outputs of a frozen prefix on the site's disk
    phantom_images: int = 56  # a site, in the embedded phantom; a tenth, six, is enough to tell scores of (min_cases)
    phantom_px: int = 128
    phantom_shift: str = "look"  # look: sites differ in look | strong: in polarity and colours too


@dataclass(frozen=True)
class ModelSpec:
    """Which network, and how it starts."""

    backbone: str = "vit_b"
    input_px: int = 1024
    stem: str = "auto"  # tiny_vit only: mobile_sam | lite_medsam | auto: lite_medsam up to 256 px
    head: str = "auto"  # token (C = 1 only) | conv | auto: token for C = 1, conv for C > 1
    normalise: str = "none"  # none: 0..1 as it is | sam: SAM's pixel mean and s.d.
    window_pad: str = "sam"  # sam: after norm1 | reference: before it, as the paper's code
    adapter_ratio: float = 0.25
    adapter_act: str = "relu"  # relu | gelu
    adapter_init: str = "zero"  # zero: round 0 is the pre-trained function | reference: torch's default
    checkpoint: str | None = None  # a file name in the site's checkpoint folder; None = random weights
    checkpoint_sha256: str | None = None

    @property
    def start(self) -> str:
        """What the network starts from, for people."""
        return self.checkpoint or "random weights"


@dataclass(frozen=True)
class TrainSpec:
    """The schedule at a site."""

    rounds: int = 100
    local_epochs: int = 1
    batch_size: int = 6
    lr: float = 1e-4
    lr_schedule: str = "constant"  # constant | cosine | poly: of the rounds, `fedfms.methods.schedule`
    beta1: float = 0.9
    beta2: float = 0.999
    loss: str = "bce"  # bce | dice_bce
    pos_weight: float = 2.0
    # float32 | bfloat16 | float16 (on CUDA only): of the forward pass; loss, sums and trained tensors stay float32
    precision: str = "float32"


@dataclass(frozen=True)
class FederationSpec:
    """Who must answer, how long the server waits, and what the sites tell it beside their updates."""

    min_sites: int | None = None  # None: all named sites; two where none is named
    required_sites: tuple[str, ...] = ()  # a study without them is not valid: `fedfms.report.validity`
    wait_s: int = 3600  # for the others, once min_sites have answered
    round_timeout_s: int = 86_400  # of a round, for all of it: a site that never answers ends a round, not the study
    min_cases: int = 5  # no score of fewer images leaves a site, whose own settings may ask for more
    wire: str = "float32"  # float32 | bfloat16 | float16 | int8: how tensors travel in training; see `fedfms.wire`
    combine: str = "mean"  # mean | median | trimmed_mean | krum | multi_krum | norm_clip; see `fedfms.guard.rules`
    faulty_sites: int = 1  # that a rule other than the mean is to bear
    max_share: float | None = None  # of a round's samples that one site may count for; None: as FedAvg says
    norm_factor: float | None = 10.0  # an update so many times as long as the median one is not taken as it is
    norm_action: str = "reject"  # reject | clip: such an update to that length
    tracking: str = "tensorboard"  # tensorboard | mlflow | none: where the rounds' numbers go live, at the server


@dataclass(frozen=True)
class Study:
    """Everything a run needs, but for what belongs to a site (`fedfms.settings`)."""

    name: str
    title: str = ""
    method: str = "fedmsa"
    method_options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    sites: tuple[str, ...] = ()  # empty = whoever takes part in the run
    held_out: tuple[str, ...] = ()  # take no part in training; score each global model on all their data
    data: DataSpec = DataSpec()
    model: ModelSpec = ModelSpec()
    train: TrainSpec = TrainSpec()
    federation: FederationSpec = FederationSpec()

    def __post_init__(self) -> None:
        check(self)

    @property
    def structure_names(self) -> tuple[str, ...]:
        """Names of the structures, in the order of the model's output channels."""
        return tuple(structure.name for structure in self.data.structures)

    @property
    def min_sites(self) -> int:
        """Sites whose update a round needs: what the study says, else all that it names, else two."""
        return self.federation.min_sites or len(self.sites) or 2

    def check_known(self, sites: Iterable[str], what: str, unnamed: Sequence[str] = ()) -> None:
        """See that the sites which `what`, an option, names are the study's; one that names none knows those `unnamed`
        and its held-out ones, or all.

        Raises:
            StudyError: some are not.
        """
        check_known(self, list(sites), what, unnamed)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and scalars: what a job's JSON holds. `Study.from_dict` is its inverse."""
        plain: dict[str, Any] = _plain(self)
        return plain

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Study:
        """The study that `raw` describes.

        Raises:
            StudyError: an unknown key, a value of the wrong type, or values that do not go together.
        """
        study: Study = _build(cls, raw, str(raw.get("name", "study")))
        return study


_FOLDERS = (Path("jobs/studies"), Path(__file__).parents[2] / "jobs" / "studies")


def find_yaml(name: str, kind: str = "") -> Path | None:
    """The file of that name, or the YAML of that name in `jobs/studies/kind`; None where there is neither."""
    places = (Path(name), *(folder / kind / f"{name}.yaml" for folder in _FOLDERS))
    return next((path for path in places if path.is_file()), None)


def yaml_names(kind: str = "") -> list[str]:
    """The names that `find_yaml` knows, sorted."""
    return sorted({path.stem for folder in _FOLDERS for path in (folder / kind).glob("*.yaml")})


def find_study(name: str) -> Path:
    """The YAML of a study: a file, or a name in `jobs/studies` of this folder or of the package's checkout.

    Raises:
        StudyError: there is none of that name.
    """
    path = find_yaml(name)
    if path is not None:
        return path
    raise StudyError(f"no study {name!r}", where="study", do=f"a YAML file, or one of {yaml_names()}")


def load_study(path: Path, *, preset: str | None = None, overrides: Sequence[str] = (), **values: Any) -> Study:
    """Read a study's YAML; a preset, then `key=value` overrides, then `values` (dotted keys) are laid over it.

    Raises:
        StudyError: the file is missing or not YAML; an unknown key, preset or type.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StudyError(
            f"cannot read {path.name}", where="study", do="name a file or a study in jobs/studies"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StudyError(f"{path.name} is not valid YAML", where="study", do="check its indentation") from error
    if not isinstance(raw, dict):
        raise StudyError(f"{path.name} must be a mapping", where="study", do="start from jobs/studies/phantom.yaml")
    raw.setdefault("name", path.stem)
    if preset is not None:
        if preset not in PRESETS:
            raise StudyError(f"unknown preset {preset!r}", where=raw["name"], do=f"known ones: {sorted(PRESETS)}")
        raw = _merge(raw, PRESETS[preset])
    for text in overrides:
        raw = _merge(raw, _override(text, raw["name"]))
    for key, value in values.items():
        if value is not None:
            raw = _merge(raw, _nested(key, value))
    return Study.from_dict(raw)


def _override(text: str, where: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    try:
        if equals:
            return _nested(key.strip(), yaml.safe_load(value))
    except yaml.YAMLError:
        pass
    raise StudyError(f"override {text!r} is not key=value", where=where, do="as in train.lr=0.001 or sites=[a, b]")


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    nested: dict[str, Any] = value
    return nested


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _build(cls: type, raw: Any, where: str) -> Any:
    """A dataclass from a mapping, each value of the type that its field declares."""
    if not isinstance(raw, Mapping):
        raise StudyError(f"expected a mapping, got {raw!r}", where=where)
    hints = typing.get_type_hints(cls)
    for key in raw:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"known ones: {sorted(hints)}"
            raise StudyError(f"unknown key {key!r}", where=where, do=advice)
    values = {key: _coerce(hints[key], value, f"{where}.{key}") for key, value in raw.items()}
    missing = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory and f.name not in values]
    if missing:
        raise StudyError(f"missing {missing}", where=where)
    return cls(**values)


def _coerce(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _coerce(next(a for a in args if a is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, where)
    if origin is tuple:
        if isinstance(value, str | bytes) or not isinstance(value, Sequence):
            raise StudyError(f"expected a list, got {value!r}", where=where)
        return tuple(_coerce(args[0], item, where) for item in value)
    if origin is not None:  # Mapping
        if not isinstance(value, Mapping):
            raise StudyError(f"expected a mapping, got {value!r}", where=where)
        return dict(value)
    if hint is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:  # YAML 1.1 reads 1e-4 as text
            return float(value)
        except ValueError:
            pass
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise StudyError(f"expected {hint.__name__}, got {value!r}", where=where)
    return value
