"""Plain JSON values, checked: what is not as expected is a `DataError` that says where."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

from fedfms.errors import DataError

CONVERT = "convert the site again with `python -m preprocessing`"


def exact(raw: Any, cls: type, where: str) -> dict[str, Any]:
    """`raw`, if it is an object with just the fields of the dataclass `cls`.

    Raises:
        DataError: it is not.
    """
    if not isinstance(raw, dict):
        raise DataError("expected an object", where=where, do=CONVERT)
    known = {f.name for f in fields(cls)}
    if set(raw) != known:
        wrong = [f"unknown {sorted(set(raw) - known)}"] if set(raw) - known else []
        wrong += [f"missing {sorted(known - set(raw))}"] if known - set(raw) else []
        raise DataError(f"keys: {', '.join(wrong)}", where=where, do=CONVERT)
    return raw


def of(value: Any, kind: type, where: str) -> Any:
    """`value`, if it is of that kind; true and false are no numbers.

    Raises:
        DataError: it is not.
    """
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise DataError(f"expected {kind.__name__}", where=where, do=CONVERT)
    return value


def finite(value: Any, where: str) -> float:
    """`value` as a float, if it is a finite number.

    Raises:
        DataError: it is not.
    """
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    try:
        number = float(value) if good else math.nan
    except OverflowError:  # JSON's whole numbers have no bound
        number = math.inf
    if not math.isfinite(number):
        raise DataError("expected a finite number", where=where, do=CONVERT)
    return number
