"""How many threads torch should take at a site that shares its machine, as all sites of a simulator do.

Each process takes every core by itself: with three sites on two cores they wait for each other at every step, and
small networks then train ten times slower and more.
"""

from __future__ import annotations

import os

import psutil
import torch

from fedfms.machine import THREADS, threads_for


def share_cores(threads: int) -> int:
    """Set torch's threads and return their number: `threads`, or where that is 0 what OMP_NUM_THREADS says, or
    else this process's share of the cores among those that NVFLARE has started beside it.
    """
    if threads or THREADS not in os.environ:  # where that is set, torch has read it
        torch.set_num_threads(threads_for(threads, _sites_here()))
    return torch.get_num_threads()


def _sites_here() -> int:
    """Processes of one parent that run the same module as this one, itself included."""
    own = psutil.Process()
    parent, module = own.parent(), _module(own)
    if parent is None or not module:
        return 1
    return max(1, sum(_module(child) == module for child in parent.children()))


def _module(process: psutil.Process) -> str:
    """The module that a process was started with (`python -m MODULE`); empty if it was not, or is gone."""
    try:
        line = process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""
    return line[line.index("-m") + 1] if "-m" in line[:-1] else ""
