"""Set torch's number of threads at a site that shares its machine with other sites, as all sites of a simulator do.

By default each process uses every core. Three sites on two cores then wait for each other at every step, and small
networks train at least ten times slower.
"""

import os

import psutil
import torch

from fedfms.machine import THREADS, threads_for


def share_cores(threads: int) -> int:
    """Set torch's number of threads and return it.

    `threads` if not 0, else OMP_NUM_THREADS if set, else an even share of the cores among the sites that NVFLARE runs
    on this machine.
    """
    if threads or THREADS not in os.environ:  # torch has read the variable if it is set
        torch.set_num_threads(threads_for(threads, _local_sites()))
    return torch.get_num_threads()


def _local_sites() -> int:
    """Number of processes with the same parent and the same module as this one, itself included."""
    own = psutil.Process()
    parent, module = own.parent(), _module(own)
    if parent is None or not module:
        return 1
    return max(1, sum(_module(child) == module for child in parent.children()))


def _module(process: psutil.Process) -> str:
    """The module that a process runs (`python -m MODULE`); empty if there is none or the process has ended."""
    try:
        line = process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""
    return line[line.index("-m") + 1] if "-m" in line[:-1] else ""
