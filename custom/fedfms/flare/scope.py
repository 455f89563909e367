"""A site's own rule on what leaves it: a task-result filter that the site's `local/privacy.json` names, not the job.

It goes through the whole reply, whatever made it: arrays must lie under the name of a tensor that the site has
allowed, be no larger than that tensor, and stay within limits on number and bytes; beside them only numbers and short
words. A reply that is anything else is refused whole, with a line in the site's log and audit that the server gets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReturnCode, Shareable, make_reply
from nvflare.fuel.sec.audit import AuditService

from fedfms.flare.wire import REASON

ACTION = "fedfms.result_refused"  # in the site's audit.txt
MAX_NUMBERS = 2_000  # of a report: structures times modes times metrics times sites of a pool
MAX_WORD, MAX_REASON = 64, 500  # characters
_WORD = re.compile(r"[A-Za-z0-9_.+-]*")


class SharedOnly(Filter):
    """Lets the tensors of the allowed studies leave, numbers and short words beside them, and nothing else.

    Args:
        tensors: the largest number of elements of each tensor that may leave, by its name.
        max_mb: of all arrays of a reply together (1e6 bytes).
        max_tensors: arrays of a reply.
    """

    def __init__(self, tensors: Mapping[str, int], max_mb: float, max_tensors: int) -> None:
        super().__init__()
        if not isinstance(tensors, dict) or not all(type(size) is int and size > 0 for size in tensors.values()):
            raise ValueError("tensors must be numbers of elements by name")
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
        arrays = size = numbers = 0
        failed = shareable.get_return_code() not in (None, ReturnCode.OK)
        for path, value in _leaves(dict(shareable)):
            if isinstance(value, np.ndarray):
                arrays, size = arrays + 1, size + value.nbytes
                problem = self._array(path, value)
            elif value is None or isinstance(value, bool | int | float | np.number):
                numbers, problem = numbers + 1, None
            else:
                problem = _other(path, value, failed)
            problem = problem or _name(path)
            if problem:
                return problem
        if arrays > self._max_tensors:
            return f"there are {arrays} tensors (at most {self._max_tensors})"
        if size > self._max_bytes:
            return f"there are {size / 1e6:.1f} MB (at most {self._max_bytes / 1e6:.1f})"
        return f"there are {numbers} numbers (at most {MAX_NUMBERS})" if numbers > MAX_NUMBERS else None

    def _array(self, path: tuple[str, ...], array: np.ndarray) -> str | None:
        allowed = [self._tensors[part] for part in path if part in self._tensors]
        if not allowed:
            return "there is a tensor that the site has not allowed"
        if array.dtype.hasobject or array.dtype.kind not in "biuf":
            return "there is a tensor of something else than numbers"
        return "a tensor is larger than the one that the site has allowed" if array.size > max(allowed) else None


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All that lies in nested dicts and lists, with the keys on the way to it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner, path)
    else:
        yield path, value


def _other(path: tuple[str, ...], value: Any, failed: bool) -> str | None:
    """Of what is neither array nor number: a short word, or the reason of a failure."""
    text = getattr(value, "value", value)  # NVFLARE's enumerations are words
    if not isinstance(text, str):
        return f"there is a {type(value).__name__}"
    if failed and path[-1:] == (REASON,):
        return "the reason is too long" if len(text) > MAX_REASON else None
    return None if len(text) <= MAX_WORD and _WORD.fullmatch(text) else "there is a text that is no word"


def _name(path: tuple[str, ...]) -> str | None:
    """A key is read at the server as well: it must not be a way out for text."""
    if all(isinstance(part, str) and len(part) <= 200 and part.isprintable() for part in path):
        return None
    return "there is a key that is no name"
