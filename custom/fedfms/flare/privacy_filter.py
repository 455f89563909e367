"""A site's privacy filter: it blocks every task result that holds more than the tensors on the site's allow-list.

The site's kit configures the filter in `local/privacy.json`; a job cannot change it. The filter walks through the whole
reply. Each array must lie under the name of an allowed tensor and take at most the bytes of that tensor (no compressed
form takes more). The number and total bytes of arrays are limited. Apart from arrays, only a limited number of numbers
and short words may leave. Any other reply is blocked as a whole. The reason goes to the site's log, its audit log and
the server.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, ReturnCode, Shareable, make_reply
from nvflare.fuel.sec.audit import AuditService

from fedfms.flare.messages import REASON
from fedfms.units import size_text

ACTION = "fedfms.result_rejected"  # in the site's audit.log
MAX_NUMBERS = 2_000  # in a report: structures x modes x metrics x pooled sites
MAX_TEXT = 40_000  # characters of all words and of all keys that are not tensor names: 20 for each number
MAX_WORD, MAX_KEY, MAX_REASON = 64, 200, 500  # characters
_WORD = re.compile(r"[A-Za-z0-9_.+-]*")
_MAX_INT = 2**63  # Python's integers are unbounded: one could encode an image
_REASON_PATH = (ReservedHeaderKey.HEADERS, REASON)


@dataclass
class _Totals:
    """Counts over the part of a reply that has been checked."""

    arrays: int = 0
    nbytes: int = 0
    numbers: int = 0
    text: int = 0


class PrivacyFilter(Filter):
    """Lets allowed tensors, numbers and short words leave the site, and nothing else.

    Args:
        tensors: allow-list: maximum bytes of each tensor, by name.
        max_mb: maximum size of all arrays of a reply together (1e6 bytes).
        max_tensors: maximum number of arrays in a reply.
    """

    def __init__(self, tensors: Mapping[str, int], max_mb: float, max_tensors: int) -> None:
        super().__init__()
        if not isinstance(tensors, dict) or not all(type(size) is int and size > 0 for size in tensors.values()):
            raise ValueError("tensors must map names to positive numbers of bytes")
        self._tensors, self._max_bytes, self._max_tensors = dict(tensors), float(max_mb) * 1e6, int(max_tensors)

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """The reply unchanged, or an error reply with the rejection reason in its place."""
        reason = self.rejection_reason(shareable)
        if reason is None:
            return shareable
        site, task = fl_ctx.get_identity_name(), fl_ctx.get_prop(FLContextKey.TASK_NAME)
        message = f"site {site}: the site's privacy filter blocks this result: {reason}"
        self.log_error(fl_ctx, f"fedfms: task {task}: {message}", fire_event=False)
        AuditService.add_event(
            user=str(site), action=ACTION, ref=str(fl_ctx.get_job_id()), msg=f"task {task}: {message}"
        )
        reply: Shareable = make_reply(ReturnCode.TASK_RESULT_FILTER_ERROR)
        reply.set_header(REASON, message)
        return reply

    def rejection_reason(self, shareable: Shareable) -> str | None:
        """Why the reply may not leave the site; None if it may."""
        totals = _Totals()
        failed = shareable.get_return_code() not in (None, ReturnCode.OK)
        for path, value in _walk(dict(shareable)):
            if type(value) is np.ndarray:
                reason = self._check_array(path, value, totals)
            elif isinstance(value, Mapping):
                reason = self._check_keys(value, totals)
            else:
                reason = _check_scalar(path, value, failed, totals)
            reason = reason or self._check_totals(totals)  # in each step: a self-nested value never ends
            if reason:
                return reason
        return None

    def _check_array(self, path: tuple[Any, ...], array: np.ndarray, totals: _Totals) -> str | None:
        totals.arrays, totals.nbytes = totals.arrays + 1, totals.nbytes + array.nbytes
        allowed = [self._tensors[part] for part in path if part in self._tensors]
        if not allowed:
            return "a tensor is not on the site's allow-list"
        if array.dtype.hasobject or array.dtype.kind not in "biuf":
            return "a tensor is not numeric"
        return "a tensor is larger than the site allows" if array.nbytes > max(allowed) else None

    def _check_keys(self, value: Mapping[Any, Any], totals: _Totals) -> str | None:
        """The server can read keys too: they must not smuggle text."""
        totals.text += 1
        for key in value:
            if not isinstance(key, str) or len(key) > MAX_KEY or not key.isprintable():
                return "a key is not a short printable text"
            totals.text += 1 if key in self._tensors else len(key) + 1
        return None

    def _check_totals(self, totals: _Totals) -> str | None:
        if totals.arrays > self._max_tensors:
            return f"more than {self._max_tensors} tensors"
        if totals.nbytes > self._max_bytes:
            return f"more than {size_text(self._max_bytes)}"
        if totals.numbers > MAX_NUMBERS:
            return f"more than {MAX_NUMBERS} numbers and words"
        return f"more than {MAX_TEXT} characters of text" if totals.text > MAX_TEXT else None


def _walk(value: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield `value` and all values nested in its dicts and lists, each with the keys that lead to it."""
    remaining: list[tuple[tuple[Any, ...], Any]] = [((), value)]
    while remaining:
        path, value = remaining.pop()
        yield path, value
        if isinstance(value, Mapping):
            remaining += [((*path, key), inner) for key, inner in value.items()]
        elif isinstance(value, list | tuple):
            remaining += [(path, inner) for inner in value]


def _check_scalar(path: tuple[Any, ...], value: Any, failed: bool, totals: _Totals) -> str | None:
    """Check a value that is neither an array nor a dict: a list, a number, a short word, or a failure's reason."""
    totals.numbers += 1
    if value is None or isinstance(value, bool | list | tuple):
        return None
    if isinstance(value, int | float | np.number):
        small = -_MAX_INT <= value < _MAX_INT if isinstance(value, int) else getattr(value, "nbytes", 8) <= 8
        return None if small else "a number has more than eight bytes"
    text = getattr(value, "value", value)  # NVFLARE's enumerations are words
    if not isinstance(text, str):
        return f"a value is of type {type(value).__name__}"
    totals.text += len(text)
    if failed and path == _REASON_PATH:
        return "the reason is too long" if len(text) > MAX_REASON else None
    return None if len(text) <= MAX_WORD and _WORD.fullmatch(text) else "a text is not a short word"
