"""Where a fault happened, and what of the machine's own faults a person can mend: a full disk, too little memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fedfms.errors import FedfmsError, TrainingError
from fedfms.files import no_room
from fedfms.training.micro_batch import out_of_memory

MAKE_ROOM = "make room in the folder of its runs; what was there before is whole"


@contextmanager
def error_context(where: str) -> Iterator[None]:
    """Tell the faults inside in one line, with their place; others go through as they are.

    Raises:
        FedfmsError: with `where`.
    """
    try:
        yield
    except FedfmsError as error:
        raise error.at(where) from error
    except OSError as error:
        if not no_room(error):
            raise
        what = f"what the site keeps of the run cannot be written ({error.strerror})"
        raise TrainingError(what, where=where, do=MAKE_ROOM) from error
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        do = "write a smaller `micro_batch` in the site's settings, or see what else runs on its machine"
        raise TrainingError("memory ran out", where=where, do=do) from error
