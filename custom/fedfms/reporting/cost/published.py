"""The papers' figures of cost, and ours in the units that explain them.

The papers do not state all of their units. FedSCA's "357.4M" and "56.2M" are MiB of float32; its "34.9G" and "5.5G" are
sites x rounds x parameters / 2^30 in one direction, a count and not bytes; FedRA, FedSA and FedSCA are 2/3, 1/2 and
1/36 of 5.5G. FedFMS's "B" of parameters are millions. Its FLOPs count a multiply-add as two, for a batch of 6, as does
a counter that considers linear and convolution layers only and sets the backward pass to twice the forward pass of the
trained layers: this gives 13.34 and 5.53 for SAM and MSA, where the paper prints 13.4 and 5.7. (The third adapter and
the padded tokens of its code would add to that.)
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any

from pydantic.dataclasses import dataclass

from fedfms.errors import StudyError
from fedfms.methods import method_options
from fedfms.reporting.scores import OPEN
from fedfms.schema import parse_bytes
from fedfms.study import Study

TABLES = ("fedfms_table2.json", "fedsca_table3.json")
FLOAT32_BYTES = 4


@dataclass(frozen=True, config=OPEN)
class Setting:
    """The experiment behind a paper's table."""

    backbone: str
    input_px: int
    batch_size: int | None
    sites: int
    rounds: int


@dataclass(frozen=True, config=OPEN)
class Figure:
    """A figure of a paper: as printed, and its value in the unit that explains it (a key of `_UNITS`)."""

    label: str
    method: str
    options: Mapping[str, Any]
    quantity: str
    printed: str
    value: int | float
    unit: str
    share_of_all: tuple[int, int] | None = None  # of the parameters that FedAvg sends


@dataclass(frozen=True, config=OPEN)
class PaperTable:
    """A paper's table of cost."""

    source: str
    setting: Setting
    rows: tuple[Figure, ...]


# unit -> the name of our figure (see `compared`), and the amount of it that is one unit
_UNITS: Mapping[str, tuple[str, float]] = {
    "million parameters": ("trained", 1e6),
    "MiB of float32": ("trained", 2**20 / FLOAT32_BYTES),
    "2^30 parameters sent": ("sent", 2**30),
    "2^20 parameters sent": ("sent", 2**20),
    "tera-FLOP by layers": ("by_layers", 1e12),
    "MiB of the card": ("gpu_mib", 1),
    "seconds on the card": ("predict_s", 1),
    "minutes": ("minutes", 1),  # of a whole study: the paper does not state its sites' numbers of images
}
_PARAMETERS = ("trained", "sent")


@cache
def tables() -> tuple[PaperTable, ...]:
    """The papers' tables."""
    folder = files("fedfms.reporting") / "published"
    return tuple(parse_bytes(PaperTable, (folder / name).read_bytes(), StudyError, where=name) for name in TABLES)


def sent_over(parameters: float, sites: int, rounds: int) -> float:
    """Parameters that all sites send (or receive) over all rounds."""
    return parameters * sites * rounds


def in_setting(study: Study, setting: Setting) -> Study:
    """The study with the paper's number of sites and rounds, without compression."""
    train = replace(study.train, rounds=setting.rounds)
    federation = replace(study.federation, compression="none")
    return with_sites(replace(study, train=train, federation=federation), setting.sites)


def with_sites(study: Study, count: int) -> Study:
    """The study with `count` training sites with generated names, and no held-out sites."""
    names = tuple(f"site-{index + 1}" for index in range(count))
    return replace(study, sites=names, held_out=(), federation=replace(study.federation, min_sites=None))


def rows_of(study: Study, table: PaperTable) -> list[Figure]:
    """The paper's figures of the study's method and options; empty for another backbone than the paper's."""
    if study.model.backbone != table.setting.backbone:
        return []
    defaults = method_options(study.method)
    chosen = {key: value for key, value in study.method_options.items() if value != defaults[key]}
    return [row for row in table.rows if (row.method, row.options) == (study.method, chosen)]


def compared(study: Study, table: PaperTable, row: Figure, ours: Mapping[str, float | None]) -> dict[str, Any]:
    """A figure of the paper and ours in its unit; for parameters also both in MB (1e6 bytes) of float32.

    A figure of a training step has one of ours only if input size and batch are the paper's.

    Args:
        ours: "trained" parameters; parameters "sent" in one direction, by all sites in all rounds of the paper's
            setting; FLOPs of a step "by_layers"; measured on a GPU, or None: "predict_s" and "gpu_mib".
    """
    setting, (name, scale) = table.setting, _UNITS[row.unit]
    same_step = (study.model.input_px, study.train.batch_size) == (setting.input_px, setting.batch_size)
    of_parameters, value = name in _PARAMETERS, ours.get(name)
    return {
        "source": table.source,
        "label": row.label,
        "quantity": row.quantity,
        "printed": row.printed,
        "unit": row.unit,
        "paper": row.value,
        "ours": value / scale if value is not None and (same_step or of_parameters) else None,
        "paper_mb": row.value * scale * FLOAT32_BYTES / 1e6 if of_parameters else None,
        "ours_mb": value * FLOAT32_BYTES / 1e6 if value is not None and of_parameters else None,
    }
