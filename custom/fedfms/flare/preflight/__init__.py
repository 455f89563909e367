"""Checks that a site runs before a study. Each check is independent, so that one fault never hides another."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from fedfms.errors import FedfmsError
from fedfms.flare.messages import public_line
from fedfms.flare.preflight import data, host, job, kit, server
from fedfms.flare.preflight.context import FAIL, Context, Finding, fail


@dataclass(frozen=True)
class Check:
    """A check and its name in the table; `study`: it needs a job."""

    name: str
    run: Callable[[Context], Finding]
    study: bool = False


@dataclass(frozen=True)
class Row:
    """The result of a check: state ("pass", "warn" or "FAIL"), what it found, and what to do."""

    check: str
    state: str
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
    Check("job", job.accepted, study=True),
    Check("plug-ins", job.plug_ins, study=True),
    Check("privacy filter", job.privacy_filter, study=True),
    Check("data", data.images, study=True),
    Check("weights", data.weights, study=True),
    Check("card", host.card, study=True),
    Check("memory", host.memory, study=True),
    Check("link", server.link, study=True),
)


def preflight(context: Context) -> Iterator[Row]:
    """Run the checks and yield a row for each; checks that need a study run only if a job is given."""
    for check in CHECKS:
        if context.job is not None or not check.study:
            found = _run(check, context)
            yield Row(check.name, found.state, found.seen, found.do)


def failed(rows: Iterable[Row]) -> list[str]:
    """Names of the checks that failed."""
    return [row.check for row in rows if row.state == FAIL]


def _run(check: Check, context: Context) -> Finding:
    try:
        return check.run(context)
    except FedfmsError as error:
        return fail(public_line(type(error)(error.what, where=error.where)), error.do)
    except OSError as error:  # its own text would show the path
        return fail(f"a file cannot be read: {error.strerror or type(error).__name__}", "check permissions and mounts")
    except Exception as error:  # noqa: BLE001 - a bug in one check must not stop the others
        return fail(f"unexpected {type(error).__name__} in the check", "report it to the lead with the package version")
