"""The `fedfms` command."""

import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module

import fedfms
from fedfms.cli import (
    completion,
    cost,
    export,
    job,
    listing,
    nnunet,
    predict,
    preflight,
    report,
    resume,
    run,
    sites,
    splits,
    submit,
    table,
)
from fedfms.cli.options import Parser
from fedfms.errors import FedfmsError

_COMMANDS = (
    run, job, nnunet, table, cost, sites, predict, export, preflight, submit, resume, report, splits, listing,
    completion,
)  # fmt: skip
# commands with subcommands, imported only when used
_GROUPS = {
    "prepare": "convert raw images and masks into the format that fedfms trains on, or check converted data",
    "kits": "make, open, renew and revoke the startup kits of a federation",
}
_EXAMPLE = """\
example:
  fedfms run fedmsa --study phantom
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code: 0 success, 1 an error in one line, 2 wrong usage, 130 Ctrl-C."""
    args = make_parser().parse_args(argv)
    try:
        result = args.run(args)
        if isinstance(result, str):
            print(result)
            return 0
        return int(result or 0)
    except FedfmsError as error:
        return _fail(error.line(), 1)
    except KeyboardInterrupt as interrupt:
        return _fail(str(interrupt) or "interrupted; run the same command again", 130)
    except BrokenPipeError:  # the reader, for example `head`, has closed the pipe
        sys.stdout = None  # otherwise Python flushes it at exit, and fails again
        return 0
    except OSError as error:  # its own text would contain the path
        reason = error.strerror or type(error).__name__
        return _fail(f"a file cannot be read or written: {reason}; check names, permissions and disk space", 1)


def _fail(message: str, code: int) -> int:
    print(f"fedfms: {message}", file=sys.stderr)
    return code


def make_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(prog="fedfms", description=fedfms.__doc__, epilog=_EXAMPLE)
    parser.add_argument("--version", action="version", version=f"fedfms {fedfms.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, help in _GROUPS.items():
        commands.add_parser(name, help=help, add_subcommands=partial(_add_subcommands, name))
    for module in _COMMANDS:
        module.add_commands(commands)
    return parser


def _add_subcommands(name: str, group: Parser) -> None:
    import_module(f"fedfms.cli.{name}").add_commands(group)
