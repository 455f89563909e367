"""Typed parsing of JSON and YAML: pydantic checks the types, and a fault becomes one line for a person."""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import pydantic
import yaml
from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, from_json, to_jsonable_python

from fedfms.errors import FedfmsError

T = TypeVar("T")

# Frozen, no unknown keys, no conversion between types; the text under a field is its description.
STRICT = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


def _number(value: Any) -> Any:
    """YAML 1.1 reads `1e-4` as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


Float = Annotated[float, BeforeValidator(_number), pydantic.Field(allow_inf_nan=False)]
"""A finite number; a whole one and YAML's `1e-4` are accepted."""


def parse(
    kind: type[T], raw: Any, error: type[FedfmsError], *, where: str = "", do: str = "", key: str = "",
    machine_written: bool = False,
) -> T:  # fmt: skip
    """An object of `kind` from plain data (dicts, lists, texts, numbers, None).

    Args:
        error: what to raise.
        where: the file or study, for the error.
        do: advice for faults that need no advice of their own.
        key: dotted key under which `raw` stands, for the error.
        machine_written: no person typed the data: the error omits the value and always gives the advice `do`.

    Raises:
        FedfmsError: of type `error`, with the first fault; or whatever a check of `kind` raises.
    """
    try:
        text = json.dumps(raw, default=str)
    except (RecursionError, TypeError):
        raise error("the data are not plain: nested too deeply, or a key is not text", where=where, do=do) from None
    return parse_bytes(kind, text, error, where=where, do=do, key=key, machine_written=machine_written)


def parse_bytes(
    kind: type[T], text: str | bytes, error: type[FedfmsError], *, where: str = "", do: str = "", key: str = "",
    machine_written: bool = False,
) -> T:  # fmt: skip
    """An object of `kind` from JSON text, as `parse`, but faster for large files: no Python objects in between.

    Raises:
        FedfmsError: as `parse`; of type `error` where the text is not JSON.
    """
    try:
        # As JSON, a strict check takes a list for a tuple and a text for a path, and still no "3" for 3.
        return TypeAdapter(kind).validate_json(text, strict=True)
    except ValidationError as found:
        what, advice = _line(found.errors(include_url=False)[0], kind, key, machine_written)
        raise error(what, where=where, do=advice or do) from None
    except FedfmsError as fault:  # of a check that the type makes by itself
        raise (fault.at(where) if where else fault) from None
    except (RecursionError, TypeError):
        raise error("the data are not plain: nested too deeply, or a key is not text", where=where, do=do) from None


def to_plain(value: Any) -> dict[str, Any]:
    """Plain dicts, lists, texts and numbers of an object, as JSON has them; `parse` is the inverse."""
    plain: dict[str, Any] = to_jsonable_python(value)
    return plain


def read_json(path: Path, error: type[FedfmsError], *, where: str = "", do: str = "") -> Any:
    """The content of a JSON file.

    Raises:
        FedfmsError: of type `error`: the file cannot be read or is not JSON.
    """
    return parse_json(_read(path, error, path.name, where, do), error, what=path.name, where=where, do=do)


def parse_json(
    text: str | bytes, error: type[FedfmsError], *, what: str = "the text", where: str = "", do: str = ""
) -> Any:
    """The content of JSON text, which may come from outside: depth is limited.

    Raises:
        FedfmsError: of type `error`.
    """
    try:
        return from_json(text)
    except (ValueError, RecursionError) as fault:
        raise error(f"{what} is not valid JSON ({str(fault).splitlines()[0]})", where=where, do=do) from None


def read_yaml(path: Path, error: type[FedfmsError], *, what: str = "", where: str = "", do: str = "") -> Any:
    """The content of a YAML file, read by the safe loader; None for an empty one.

    Args:
        what: name of the file in errors; empty: the file's own name.

    Raises:
        FedfmsError: of type `error`: the file cannot be read or is not YAML; the line is named.
    """
    what = what or path.name
    try:
        return yaml.safe_load(_read(path, error, what, where, do))
    except yaml.MarkedYAMLError as fault:
        line = f" (line {fault.problem_mark.line + 1}: {fault.problem})" if fault.problem_mark else ""
        raise error(f"{what} is not valid YAML{line}", where=where, do=do) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        raise error(f"{what} is not valid YAML", where=where, do=do) from None


def mapping(raw: Any, error: type[FedfmsError], *, what: str, where: str = "", do: str = "") -> dict[str, Any]:
    """`raw`, if it is a mapping.

    Raises:
        FedfmsError: of type `error`.
    """
    if not isinstance(raw, Mapping):
        raise error(f"{what} must be a mapping", where=where, do=do)
    return dict(raw)


def _read(path: Path, error: type[FedfmsError], what: str, where: str, do: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as fault:
        raise error(f"cannot read {what} ({fault.strerror})", where=where, do=do) from None


_BOUNDS: Mapping[str, str] = {
    "greater_than": "above {gt:g}", "greater_than_equal": "{ge:g} or more",
    "less_than": "below {lt:g}", "less_than_equal": "{le:g} at most",
    "finite_number": "a finite number",
    "too_short": "a list of {min_length} or more", "too_long": "a list of {max_length} at most",
}  # fmt: skip
_KINDS = {"string": "str", "tuple": "list", "dict": "mapping", "dataclass": "mapping"}  # others: as they are


def _line(fault: ErrorDetails, of: Any, key: str, machine_written: bool) -> tuple[str, str]:
    """What is wrong, and what to do where the fault tells that by itself."""
    kind, value, context = fault["type"], fault["input"], fault.get("ctx", {})
    parts = [str(part) for part in (*filter(None, key.split(".")), *fault["loc"])]
    name = ".".join(parts)
    if kind == "json_invalid":
        return f"not valid JSON ({context['error']})", ""
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        inside = f" in {'.'.join(parts[:-1])}" if parts[:-1] else ""
        advice = "" if machine_written else did_you_mean(parts[-1], _keys(of, fault["loc"][:-1]))
        return f"unknown key {parts[-1]!r}{inside}", advice
    if kind == "missing":
        return f"missing key {name!r}", ""
    must = ""
    if kind in _BOUNDS:
        must = f"it must be {_BOUNDS[kind].format(**context)}"
    elif kind == "literal_error":
        must = f"one of {context['expected'].replace(' or ', ', ')}"
    if must:
        return (f"{name}: {must}", "") if machine_written else (f"{name} is {value!r}", must)
    what = fault["msg"]
    if kind.endswith(("_type", "_parsing", "_from_float")):
        stem = kind.partition("_")[0]
        what = f"expected {_KINDS.get(stem, stem)}" + ("" if machine_written else f", got {value!r}")
    return f"{name}: {what}" if name else what, ""


def _keys(of: Any, loc: Sequence[str | int]) -> Iterable[str]:
    """Names of the fields of the type at `loc` inside the type `of`."""
    for part in loc:
        of = next((one for one in _inside(of) if is_dataclass(one) or get_origin(one)), None)
        if is_dataclass(of):
            of = get_type_hints(of)[str(part)]
        else:  # a list or a mapping: `part` is an index or a key
            of = get_args(of)[-1 if get_origin(of) is not tuple else 0]
    return next((get_type_hints(one) for one in _inside(of) if is_dataclass(one)), {})


def _inside(of: Any) -> list[Any]:
    """The members of a union, or the type itself."""
    return list(get_args(of)) if get_origin(of) in (Union, UnionType) else [of]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Advice on an unknown word: the nearest known one, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known ones: {names}" if names else "there are none"
