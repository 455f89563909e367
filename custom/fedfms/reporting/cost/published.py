"""The papers' figures of cost, and ours in the units that make sense of them.

The papers do not say all of their units. FedSCA's "357.4M" and "56.2M" are MiB of float32; its "34.9G" and "5.5G" are
sites x rounds x parameters / 2^30, one direction: a count, no bytes; FedRA, FedSA and FedSCA are 2/3, 1/2 and 1/36 of
5.5G. FedFMS's "B" of parameters are millions; its FLOPs are two a multiply-add, for a batch of 6, as a counter has them
that looks at linear and convolution layers and takes backward for twice the forward of what is trained: 13.34 and 5.53
for SAM and MSA, where 13.4 and 5.7 are printed. (Its code's third adapter and padded tokens would come on top.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from fedfms.methods import method_options
from fedfms.study import Study

TABLES = ("fedfms_table2.json", "fedsca_table3.json")
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Own:
    """What a method costs here: parameters trained; those sent in one direction by all sites in all rounds of the
    paper's setting; FLOPs of a step as counters of layers have them; seconds and MiB if measured on a card.
    """

    trained: int
    sent: float
    by_layers: int
    predict_s: float | None
    card_mib: int | None
    minutes: None = None  # of a whole study: the paper does not say how many images its sites have


# unit -> which figure of `Own` it is of, and how much of it one is
_UNITS: Mapping[str, tuple[str, float]] = {
    "million parameters": ("trained", 1e6),
    "MiB of float32": ("trained", 2**20 / FLOAT32_BYTES),
    "2^30 parameters sent": ("sent", 2**30),
    "2^20 parameters sent": ("sent", 2**20),
    "tera-FLOP by layers": ("by_layers", 1e12),
    "MiB of the card": ("card_mib", 1),
    "seconds on the card": ("predict_s", 1),
    "minutes": ("minutes", 1),
}
_PARAMETERS = ("trained", "sent")


@cache
def tables() -> tuple[Mapping[str, Any], ...]:
    """The papers' tables: source, setting, and a row a figure."""
    folder = files("fedfms.reporting") / "published"
    return tuple(json.loads((folder / name).read_text(encoding="utf-8")) for name in TABLES)


def sent_over(parameters: float, sites: int, rounds: int) -> float:
    """Parameters that all sites send (or all are sent) over all rounds."""
    return parameters * sites * rounds


def in_setting(study: Study, table: Mapping[str, Any]) -> Study:
    """The study with the paper's number of sites and rounds, and tensors that travel in float32."""
    setting, federation = table["setting"], replace(study.federation, compression="none")
    there = replace(study, train=replace(study.train, rounds=setting["rounds"]), federation=federation)
    return with_sites(there, setting["sites"])


def with_sites(study: Study, count: int) -> Study:
    """The study with so many sites of any names that train, and none held out."""
    federation = replace(study.federation, min_sites=None)
    names = tuple(f"site-{index + 1}" for index in range(count))
    return replace(study, sites=names, held_out=(), federation=federation)


def rows_of(study: Study, table: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The paper's figures of the study's method and options; none for another backbone than the paper's."""
    if study.model.backbone != table["setting"]["backbone"]:
        return []
    defaults = method_options(study.method)
    chosen = {key: value for key, value in study.method_options.items() if value != defaults[key]}
    return [row for row in table["rows"] if (row["method"], row["options"]) == (study.method, chosen)]


def beside(study: Study, table: Mapping[str, Any], row: Mapping[str, Any], own: Own) -> dict[str, Any]:
    """A figure of the paper with ours in its unit, and both in MB (1e6 bytes) of float32 where they are of parameters.

    What is of a step has one of ours where input and batch are the paper's.
    """
    setting, (of, scale) = table["setting"], _UNITS[row["unit"]]
    step = (study.model.input_px, study.train.batch_size) == (setting["input_px"], setting["batch_size"])
    of_parameters = of in _PARAMETERS
    value: float | None = getattr(own, of) if step or of_parameters else None
    return {
        "source": table["source"],
        "label": row["label"],
        "quantity": row["quantity"],
        "printed": row["printed"],
        "unit": row["unit"],
        "paper": row["value"],
        "ours": None if value is None else value / scale,
        "paper_mb": row["value"] * scale * FLOAT32_BYTES / 1e6 if of_parameters else None,
        "ours_mb": getattr(own, of) * FLOAT32_BYTES / 1e6 if of_parameters else None,
    }
