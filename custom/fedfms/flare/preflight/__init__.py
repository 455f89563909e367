"""What a site looks at before a study: each check by itself, so that one fault never hides the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from fedfms.errors import FedfmsError
from fedfms.flare.messages import public_line
from fedfms.flare.preflight import data, host, job, kit, server
from fedfms.flare.preflight.context import FAIL, Context, Finding, fail


@dataclass(frozen=True)
class Check:
    """A check by its name in the table; `study`: it needs a job."""

    name: str
    look: Callable[[Context], Finding]
    study: bool = False


@dataclass(frozen=True)
class Row:
    """A check's name, and what it found."""

    check: str
    state: str  # pass | warn | FAIL
    seen: str
    do: str


CHECKS: tuple[Check, ...] = (
    Check("settings", kit.settings),
    Check("kit", kit.files),
    Check("certificate", kit.certificates),
    Check("package", host.package),
    Check("port", server.port),
    Check("TLS", server.tls),
    Check("clock", server.clock),
    Check("disk", host.disk),
    Check("job", job.taken, study=True),
    Check("what leaves", job.leaves, study=True),
    Check("data", data.images, study=True),
    Check("weights", data.weights, study=True),
    Check("card", host.card, study=True),
    Check("memory", host.memory, study=True),
    Check("link", server.link, study=True),
)


def preflight(context: Context) -> Iterator[Row]:
    """A row a check, as it is found; those that need a study only where a job is named."""
    for check in CHECKS:
        if context.job is not None or not check.study:
            found = _found(check, context)
            yield Row(check.name, found.state, found.seen, found.do)


def failed(rows: Iterable[Row]) -> list[str]:
    """Names of the checks that fail."""
    return [row.check for row in rows if row.state == FAIL]


def _found(check: Check, context: Context) -> Finding:
    try:
        return check.look(context)
    except FedfmsError as error:
        told = public_line(type(error)(error.what, where=error.where))
        return fail(told, error.do)
    except OSError as error:  # its own text would name the path
        why = error.strerror or type(error).__name__
        return fail(f"a file cannot be read: {why}", "check rights and mounts")
    except Exception as error:  # noqa: BLE001 - a check that breaks is a fault to see, and no end of the others
        return fail(f"it broke: an unexpected {type(error).__name__}", "tell the lead, with this package's version")
