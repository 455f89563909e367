"""How a process computes on the machine's own processor: memory that is freed stays with it for the next step, and
float32 products go by the library that uses all of the processor. The numbers are the same but for the order of sums.
"""

from __future__ import annotations

import ctypes
import platform
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch

from fedfms.machine import maker_and_flags

_onednn: Any = torch.backends.mkldnn  # older releases of torch have no `matmul` there
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # mallopt's names for what it sets, in glibc's malloc.h
_TOLERANCE = 1e-6  # of a float32 product's length; bfloat16's is 1,000 times that
_SIDES = (64, 200, 768)  # of the products that are looked at
_kept = threading.Event()


def keep_freed_memory() -> None:
    """Leave large blocks that are freed with this process, for the next step to take; on glibc alone.

    Left to itself, glibc gives a large block back to the system, which fills it with zeros, page by page, when a moment
    later a tensor of the same size is made. It holds for the main thread, in which FLARE runs a site's tasks: blocks of
    other threads lie in arenas that shrink all the same.
    """
    if _glibc() and not _kept.is_set():
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, -1)
        _kept.set()


def give_back() -> None:
    """Hand memory that is kept and that nothing uses to the system; what is freed from here on is kept again."""
    if _kept.is_set():
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def giving_back() -> Iterator[None]:
    """`give_back` at the end, however it ends: other sites may share the machine while this one waits."""
    try:
        yield
    finally:
        give_back()


class _ByOneDNN:
    """Inside, products of float32 matrices are oneDNN's, in the whole process: the first to enter turns torch's switch,
    and the last to leave puts it back. In between `torch.get_float32_matmul_precision()` raises a RuntimeError: torch
    takes the older way of asking for a mixture with this one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside, self._before = 0, ""

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = _onednn.matmul.fp32_precision
                _onednn.matmul.fp32_precision = "bf16"
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                _onednn.matmul.fp32_precision = self._before


_by_onednn = _ByOneDNN()


def float32_products() -> AbstractContextManager[None]:
    """Inside, torch's products of float32 matrices are oneDNN's, where those are exact and known to be faster.

    torch takes MKL's, which keeps AVX-512 from the processors of other makers than its own. It has no switch for the
    library but this one, by which a caller also lets products be made of bfloat16; a processor without AMX has no
    kernels for that, and oneDNN computes in float32 (`products_are_exact` looks before the switch is used).
    """
    return _by_onednn if _mkl_withholds_avx512() and products_are_exact() else nullcontext()


@cache
def products_are_exact() -> bool:
    """Whether products under the switch of `float32_products` have float32's digits, on this processor."""
    draw = torch.Generator().manual_seed(0)
    with _by_onednn:
        return all(_error(side, draw) < _TOLERANCE for side in _SIDES)


def _error(side: int, draw: torch.Generator) -> float:
    """Relative, of a product and of two at once, the largest of all ways in which the factors may lie."""
    left, right = (torch.randn(2, side, side, generator=draw) for _ in range(2))
    errors = []
    for a in (left, left.mT):
        for b in (right, right.mT):
            truth = a.double() @ b.double()
            for found, true in ((a @ b, truth), (a[0] @ b[0], truth[0])):
                errors.append(float((found - true).norm() / true.norm()))
    return max(errors)


@cache
def _mkl_withholds_avx512() -> bool:
    """Whether this is a processor of AMD's with AVX-512, and a torch that has the switch."""
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512" and maker_and_flags()[0] == "AuthenticAMD"
    return bool(wide and _onednn.is_available() and hasattr(_onednn, "matmul"))


@cache
def _glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
