"""A site's own rule on what leaves it: a task-result filter that the site's `local/privacy.json` names, not the job.

It goes through the whole reply, whatever made it: arrays must lie under the name of a tensor that the site has
allowed, take no more bytes than that tensor (no compressed form does), and stay within limits on number and bytes;
beside them only numbers and short words, and only so many. A reply that is anything else is refused whole, with a line
in the site's log and audit that the server gets.
"""

from __future__ import annotations

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

ACTION = "fedfms.result_refused"  # in the site's audit.log
MAX_NUMBERS = 2_000  # of a report: structures times modes times metrics times sites of a pool
MAX_TEXT = 40_000  # characters of all keys that are no tensor's name, and of all words: 20 beside each number
MAX_WORD, MAX_KEY, MAX_REASON = 64, 200, 500  # characters
_WORD = re.compile(r"[A-Za-z0-9_.+-]*")
_LARGEST = 2**63  # Python's integers have no end, and could hold an image
_REASON_PATH = (ReservedHeaderKey.HEADERS, REASON)


@dataclass
class _Sums:
    """Of a reply, as far as it was gone through."""

    arrays: int = 0
    nbytes: int = 0
    numbers: int = 0
    text: int = 0


class SharedOnly(Filter):
    """Lets the tensors of the allowed studies leave, numbers and short words beside them, and nothing else.

    Args:
        tensors: the largest number of bytes of each tensor that may leave, by its name.
        max_mb: of all arrays of a reply together (1e6 bytes).
        max_tensors: arrays of a reply.
    """

    def __init__(self, tensors: Mapping[str, int], max_mb: float, max_tensors: int) -> None:
        super().__init__()
        if not isinstance(tensors, dict) or not all(type(size) is int and size > 0 for size in tensors.values()):
            raise ValueError("tensors must be numbers of bytes by name")
        self._tensors, self._max_bytes, self._max_tensors = dict(tensors), float(max_mb) * 1e6, int(max_tensors)

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """The reply as it is, or one that says why it may not leave."""
        reason = self.refusal(shareable)
        if reason is None:
            return shareable
        site, task = fl_ctx.get_identity_name(), fl_ctx.get_prop(FLContextKey.TASK_NAME)
        told = f"site {site}: the site's own policy lets no result leave in which {reason}"
        self.log_error(fl_ctx, f"fedfms: task {task}: {told}", fire_event=False)
        AuditService.add_event(user=str(site), action=ACTION, ref=str(fl_ctx.get_job_id()), msg=f"task {task}: {told}")
        reply: Shareable = make_reply(ReturnCode.TASK_RESULT_FILTER_ERROR)
        reply.set_header(REASON, told)
        return reply

    def refusal(self, shareable: Shareable) -> str | None:
        """What is in the reply that may not leave; None if there is nothing."""
        sums = _Sums()
        failed = shareable.get_return_code() not in (None, ReturnCode.OK)
        for path, value in _parts(dict(shareable)):
            if type(value) is np.ndarray:
                problem = self._array(path, value, sums)
            elif isinstance(value, Mapping):
                problem = self._keys(value, sums)
            else:
                problem = _other(path, value, failed, sums)
            problem = problem or self._too_much(sums)  # at once: what is nested in itself has no end
            if problem:
                return problem
        return None

    def _array(self, path: tuple[Any, ...], array: np.ndarray, sums: _Sums) -> str | None:
        sums.arrays, sums.nbytes = sums.arrays + 1, sums.nbytes + array.nbytes
        allowed = [self._tensors[part] for part in path if part in self._tensors]
        if not allowed:
            return "there is a tensor that the site has not allowed"
        if array.dtype.hasobject or array.dtype.kind not in "biuf":
            return "there is a tensor of something else than numbers"
        return "a tensor is larger than the one that the site has allowed" if array.nbytes > max(allowed) else None

    def _keys(self, value: Mapping[Any, Any], sums: _Sums) -> str | None:
        """A key is read at the server as well: it must not be a way out for text."""
        sums.text += 1
        for key in value:
            if not isinstance(key, str) or len(key) > MAX_KEY or not key.isprintable():
                return "there is a key that is no name"
            sums.text += 1 if key in self._tensors else len(key) + 1
        return None

    def _too_much(self, sums: _Sums) -> str | None:
        if sums.arrays > self._max_tensors:
            return f"there are more than {self._max_tensors} tensors"
        if sums.nbytes > self._max_bytes:
            return f"there are more than {size_text(self._max_bytes)}"
        if sums.numbers > MAX_NUMBERS:
            return f"there are more than {MAX_NUMBERS} numbers and words"
        return f"there are more than {MAX_TEXT} characters of text" if sums.text > MAX_TEXT else None


def _parts(value: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """All that lies in nested dicts and lists, and these themselves, with the keys on the way to it."""
    left: list[tuple[tuple[Any, ...], Any]] = [((), value)]
    while left:
        path, value = left.pop()
        yield path, value
        if isinstance(value, Mapping):
            left += [((*path, key), inner) for key, inner in value.items()]
        elif isinstance(value, list | tuple):
            left += [(path, inner) for inner in value]


def _other(path: tuple[Any, ...], value: Any, failed: bool, sums: _Sums) -> str | None:
    """Of what is neither array nor dict: a list, a number, a short word, or the reason of a failure."""
    sums.numbers += 1
    if value is None or isinstance(value, bool | list | tuple):
        return None
    if isinstance(value, int | float | np.number):
        return _number(value)
    text = getattr(value, "value", value)  # NVFLARE's enumerations are words
    if not isinstance(text, str):
        return f"there is a {type(value).__name__}"
    sums.text += len(text)
    if failed and path == _REASON_PATH:
        return "the reason is too long" if len(text) > MAX_REASON else None
    return None if len(text) <= MAX_WORD and _WORD.fullmatch(text) else "there is a text that is no word"


def _number(value: Any) -> str | None:
    if isinstance(value, int):
        return None if -_LARGEST <= value < _LARGEST else "there is a number of more than eight bytes"
    return "there is a number of more than eight bytes" if getattr(value, "nbytes", 8) > 8 else None
