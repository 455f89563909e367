"""The text of an error reply, which leaves the site."""

import pytest

from fedfms.errors import DataError
from fedfms.flare.messages import REASON, error_reply


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            DataError("the image of slice 0 is damaged", where="site c, case ff04af5f14389a4f", do="run the check"),
            "site c: the image of slice 0 is damaged; run the check",
        ),
        (DataError("it is empty", where="case ff04af5f14389a4f").at("site c, round 0"), "site c, round 0: it is empty"),
        (DataError("case ff04af5f14389a4f: no image").at("site c"), "site c: no image"),
        (DataError("the loss is nan", where="site in case").at("round 2"), "round 2, site in case: the loss is nan"),
    ],
)  # fmt: skip
def test_an_error_reply_names_no_case(error: DataError, expected: str) -> None:
    assert error_reply(error).get_header(REASON) == expected
