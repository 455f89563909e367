"""Checks a method's keyword options: the annotations of `__init__` declare their types and ranges."""

from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, Concatenate, ParamSpec, TypeVar, get_type_hints

from pydantic import Field

from fedfms.errors import StudyError
from fedfms.methods.base import Method
from fedfms.schema import Float, parse

M = TypeVar("M", bound=Method)
P = ParamSpec("P")

NonNegative = Annotated[Float, Field(ge=0)]
Positive = Annotated[Float, Field(gt=0)]
Fraction = Annotated[Float, Field(gt=0, le=1)]  # 0 is excluded


def checked(init: Callable[Concatenate[M, P], None]) -> Callable[Concatenate[M, P], None]:
    """Decorate a method's `__init__` to raise a StudyError for an option of the wrong type or out of range."""
    kinds: dict[str, Any] = get_type_hints(init, include_extras=True)

    @wraps(init)
    def wrapper(self: M, *args: P.args, **options: P.kwargs) -> None:
        for name, value in options.items():
            options[name] = parse(kinds.get(name, Any), value, StudyError, where=f"method {self.name}", key=name)
        init(self, *args, **options)

    return wrapper
