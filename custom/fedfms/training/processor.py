"""How a process computes on the machine's own processor: memory that is freed stays with it, and float32 products go
by the library that uses all of the processor. The numbers are the same but for the order of sums.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from fedfms.machine import processor

_onednn: Any = torch.backends.mkldnn  # older releases of torch have no `matmul` there
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # mallopt's names for what it sets, in glibc's malloc.h
_TOLERANCE = 1e-6  # of a float32 product's length; bfloat16's is 1,000 times that
_SIDES = (64, 200, 768)  # of the products that are looked at


@cache
def keep_freed_memory() -> None:
    """Leave large blocks that are freed with this process, for the next step to take; on glibc alone.

    Left to itself, glibc gives each block over 32 MiB back to the system, which fills it with zeros, page by page,
    when a moment later a tensor of the same size is made: a third of a step's time. `give_back` ends the hold.
    """
    if _glibc():
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, -1)


def give_back() -> None:
    """Hand the memory that nothing uses back to the system: a site that waits for the others holds its model alone."""
    if _glibc():
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def float32_products() -> Iterator[None]:
    """Inside, torch's products of float32 matrices are oneDNN's, where those are exact and known to be faster.

    torch takes MKL's, which keeps AVX-512 from the processors of other makers than its own. It has no switch for the
    library but this one, by which a caller also lets products be made of bfloat16; a processor without AMX has no
    kernels for that, and oneDNN computes in float32 (`products_are_exact` looks before the switch is used).
    """
    if not (_keeps_avx512_from() and products_are_exact()):
        yield
        return
    switch = _onednn.matmul
    before = switch.fp32_precision
    switch.fp32_precision = "bf16"
    try:
        yield
    finally:
        switch.fp32_precision = before


@cache
def products_are_exact() -> bool:
    """Whether products under the switch of `float32_products` have float32's digits, on this processor."""
    draw = torch.Generator().manual_seed(0)
    switch = _onednn.matmul
    before = switch.fp32_precision
    switch.fp32_precision = "bf16"
    try:
        return all(_error(side, draw) < _TOLERANCE for side in _SIDES)
    finally:
        switch.fp32_precision = before


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
def _keeps_avx512_from() -> bool:
    """Whether this is a processor of AMD's with AVX-512, and a torch that has the switch."""
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512" and processor()[0] == "AuthenticAMD"
    return bool(wide and _onednn.is_available() and hasattr(_onednn, "matmul"))


@cache
def _glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
