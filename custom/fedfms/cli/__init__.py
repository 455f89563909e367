"""The `fedfms` command."""

import argparse
import sys
from collections.abc import Sequence

import fedfms
from fedfms.cli import (
    cost,
    export,
    job,
    listing,
    nnunet,
    predict,
    preflight,
    report,
    resume,
    sites,
    splits,
    submit,
    table,
)
from fedfms.errors import FedfmsError

_COMMANDS = (job, nnunet, table, cost, sites, predict, export, preflight, submit, resume, report, splits, listing)
_EXAMPLE = """\
example, a federation of three sites on this machine:
  fedfms job build fedmsa --study phantom --out jobs/fedmsa
  nvflare simulator jobs/fedmsa -w workspace -n 3 -t 3
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code: 0 success, 1 an error in one line, 2 wrong usage, 130 Ctrl-C."""
    args = _parser().parse_args(argv)
    try:
        result = args.run(args)
        if isinstance(result, str):
            print(result)
            return 0
        return int(result or 0)
    except FedfmsError as error:
        return _fail(error.line(), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # the reader, for example `head`, has closed the pipe
        sys.stdout = None  # otherwise Python flushes it at exit, and fails again
        return 0
    except OSError as error:  # its own text would contain the path
        reason = error.strerror or type(error).__name__
        return _fail(f"a file cannot be read or written: {reason}; check names and permissions", 1)


def _fail(message: str, code: int) -> int:
    print(f"fedfms: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedfms", description=fedfms.__doc__, epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"fedfms {fedfms.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in _COMMANDS:
        module.add_commands(commands)
    return parser
