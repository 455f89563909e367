"""Adds the place (site, round) to errors, and turns a full disk or a lack of memory into one-line errors."""

from collections.abc import Iterator
from contextlib import contextmanager

from fedfms.errors import FedfmsError, TrainingError
from fedfms.files import is_disk_full
from fedfms.training.micro_batch import out_of_memory

MAKE_ROOM = "make room in the run folder; files from before are intact"


@contextmanager
def error_context(where: str) -> Iterator[None]:
    """Raise expected errors inside with `where` added; unexpected ones pass unchanged.

    Raises:
        FedfmsError: an error of that class, a full disk, or too little memory.
    """
    try:
        yield
    except FedfmsError as error:
        raise error.at(where) from error
    except OSError as error:
        if not is_disk_full(error):
            raise
        what = f"the site's files of the run cannot be written ({error.strerror})"
        raise TrainingError(what, where=where, do=MAKE_ROOM) from error
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        do = "set a smaller `micro_batch` in the site's settings, or stop other processes on the machine"
        raise TrainingError("out of memory", where=where, do=do) from error
