"""Options of methods are checked against their annotations, also without the registry."""

from typing import Any

import pytest

from fedfms.errors import StudyError
from fedfms.methods import METHODS, method_options
from fedfms.methods.fedra import FedRA
from fedfms.methods.sgca import SGCA


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": "much"}, "method sgca: alpha: expected float, got 'much'"),
        ({"alpha": True}, "method sgca: alpha: expected float, got True"),
        ({"beta": float("inf")}, "method sgca: beta is inf; it must be a finite number"),
        ({"scale": 1}, "method sgca: scale is 1; one of 'mean', 'none'"),
    ],
)
def test_wrong_types_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError) as caught:
        SGCA(**options)
    assert caught.value.line() == message


def test_whole_numbers_and_exponents_without_a_point_are_floats() -> None:
    method = SGCA(alpha=2, beta="1e-4")  # type: ignore[arg-type]  # YAML 1.1 reads 1e-4 as text
    assert (method._alpha, method._beta) == (2.0, 1e-4)
    assert FedRA(fraction=1)._fraction == 1.0


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_defaults_are_in_range(name: str) -> None:
    METHODS[name](**method_options(name))
