"""What a table says of its cells beside their numbers: where they were run, and whether they were run alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedfms.reporting.tables.cells import Cell
from fedfms.reporting.tables.sheets import NONE, many
from fedfms.reporting.tables.summary import Block


def unlike(block: Block) -> list[str]:
    """What of schedule and data is not the same in all cells, as notes; variants are meant to differ, and left out.

    nnU-Net's augmentation is its own, so that of no method is looked at.
    """
    plain = [cell.study for cell in block.cells if not cell.key.variant]
    notes = []
    for section in ("train", "data"):
        told = [dataclasses.asdict(getattr(study, section)) for study in plain]
        for name in told[0] if told else ():
            values = sorted({str(values[name]) for values in told})
            if len(values) > 1 and name not in ("augment", "cache"):
                notes.append(f"Not all cells were run alike: {section}.{name} is {' or '.join(values)}.")
    return notes


def made_with(cells: Iterable[Cell]) -> list[tuple[str, str]]:
    """Machines and versions of the cells, name by name; where cells differ, every value with its number of cells."""
    told: dict[str, list[str]] = {}
    for cell in cells:
        for of in (cell.machine, cell.versions):
            for name, value in _flat(of):
                told.setdefault(name, []).append(value)
    return [(name, values[0] if len({*values}) == 1 else _each(values)) for name, values in told.items()]


def _each(values: Sequence[str]) -> str:
    return "; ".join(f"{value} ({many(values.count(value), 'cell')})" for value in sorted({*values}))


def _flat(raw: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in raw.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}".replace("_", " "), NONE if value is None else str(value)
