"""CPU tuning: the process retains freed memory for the next step, and oneDNN multiplies float32 matrices.

Results are equal up to the order of sums. A site can turn it off (`cpu_tuning: false`).
"""

import ctypes
import platform
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch

from fedfms.machine import cpu_vendor_and_flags

_onednn: Any = torch.backends.mkldnn  # older torch releases lack `matmul` there
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # mallopt's parameters, from glibc's malloc.h
_TOLERANCE = 1e-6  # relative error of a float32 matrix product; bfloat16's is 1,000 times larger
_TEST_SIZES = (64, 200, 768)  # sides of the test matrices
_retaining = threading.Event()


def retain_freed_memory() -> None:
    """Tell glibc's allocator to retain large freed blocks for the next step; no effect with other C libraries.

    By default, glibc returns a large block to the system, which zeroes it page by page when a tensor of the same size
    is allocated a moment later. The setting holds for the main thread, in which NVFLARE runs a site's tasks: blocks
    of other threads lie in arenas, which shrink regardless.
    """
    if _glibc() and not _retaining.is_set():
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, -1)
        _retaining.set()


def release_memory() -> None:
    """Return retained, unused memory to the system once; blocks freed later are retained again."""
    if _retaining.is_set():
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def releasing_memory() -> Iterator[None]:
    """Call `release_memory` on exit: other sites may share the machine while this one waits."""
    try:
        yield
    finally:
        release_memory()


class _OneDNNMatmul:
    """Reentrant context in which oneDNN multiplies float32 matrices, for the whole process.

    The first to enter sets torch's switch, the last to leave restores it. Inside,
    `torch.get_float32_matmul_precision()` raises a RuntimeError: torch's old and new interfaces do not mix.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth, self._before = 0, ""

    def __enter__(self) -> None:
        with self._lock:
            if not self._depth:
                self._before = _onednn.matmul.fp32_precision
                _onednn.matmul.fp32_precision = "bf16"
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._depth -= 1
            if not self._depth:
                _onednn.matmul.fp32_precision = self._before


_onednn_context = _OneDNNMatmul()


def onednn_matmul() -> AbstractContextManager[None]:
    """Context in which oneDNN multiplies float32 matrices, if it is exact and known to be faster on this CPU.

    torch's default is MKL, which does not use AVX-512 on other makers' CPUs than Intel's. The only switch to oneDNN
    also permits bfloat16 products. A CPU without AMX has no such kernels, so oneDNN computes in float32 there;
    `onednn_is_exact` verifies that.
    """
    return _onednn_context if _mkl_lacks_avx512() and onednn_is_exact() else nullcontext()


@cache
def onednn_is_exact() -> bool:
    """Whether oneDNN's products have float32 precision on this CPU, measured on random matrices."""
    generator = torch.Generator().manual_seed(0)
    with _onednn_context:
        return all(_max_error(side, generator) < _TOLERANCE for side in _TEST_SIZES)


def _max_error(side: int, generator: torch.Generator) -> float:
    """Largest relative error of a product and of a batched product, over all transpositions of the factors."""
    left, right = (torch.randn(2, side, side, generator=generator) for _ in range(2))
    errors = []
    for a in (left, left.mT):
        for b in (right, right.mT):
            exact = a.double() @ b.double()
            for product, truth in ((a @ b, exact), (a[0] @ b[0], exact[0])):
                errors.append(float((product - truth).norm() / truth.norm()))
    return max(errors)


@cache
def _mkl_lacks_avx512() -> bool:
    """Whether this is an AMD CPU with AVX-512, and a torch release with the switch."""
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512" and cpu_vendor_and_flags()[0] == "AuthenticAMD"
    return bool(wide and _onednn.is_available() and hasattr(_onednn, "matmul"))


@cache
def _glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
