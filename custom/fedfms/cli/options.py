"""How commands declare their options: one helper, one table of shared options, and parsers of option values."""

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

Commands = Any  # argparse's `_SubParsersAction`, whose type is private
Run = Callable[[argparse.Namespace], "str | int | None"]


class Parser(argparse.ArgumentParser):
    """A parser that reports wrong usage in one line, and adds its subcommands when it is first used.

    Args:
        add_subcommands: adds them to the parser. They import what other commands do not need.
    """

    def __init__(self, *args: Any, add_subcommands: Callable[["Parser"], None] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": argparse.RawDescriptionHelpFormatter, **kwargs})
        self._add_subcommands = add_subcommands

    def complete(self) -> None:
        """Add the subcommands, of which completion scripts need all."""
        add, self._add_subcommands = self._add_subcommands, None
        if add is not None:
            add(self)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's."""
        self.complete()
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Report wrong usage in one line, with exit code 2."""
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def add_command(
    commands: Commands, name: str, run: Run, *, help: str, example: str, description: str = "", epilog: str = ""
) -> Parser:
    """Add a command that calls `run`; its `--help` ends with `example`.

    Args:
        description: shown by its `--help`; default: `help`, which the list of commands shows.
        epilog: text before the example.
    """
    parser: Parser = commands.add_parser(
        name, help=help, description=description or f"{help[0].upper()}{help[1:]}.",
        epilog=f"{epilog}\n\nexample:\n  {example}".lstrip(),
    )  # fmt: skip
    parser.set_defaults(run=run)
    return parser


def comma(text: str) -> list[str]:
    """`a,b` -> its names."""
    return [name for name in text.split(",") if name]


def at_least(least: int) -> Callable[[str], int]:
    """A parser of whole numbers that are not below `least`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a number, {least} or more")
        return int(text)

    return parse


positive = at_least(1)


def positive_float(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError("must be a number above 0")
    return value


def numbers(text: str) -> list[int]:
    """`0,1,2` -> its whole numbers."""
    if not all(part.isdecimal() for part in text.split(",")):
        raise argparse.ArgumentTypeError("must be numbers, for example 0,1,2")
    return [int(part) for part in text.split(",")]


_SHARED: Mapping[str, Mapping[str, Any]] = {
    "study": {"help": "a YAML file, or the name of a packaged study"},
    "--backbone": {"help": "see `fedfms list`"},
    "--preset": {"help": "a schedule and backbone that replace the study's; see `fedfms list`"},
    "--set": {"action": "append", "default": [], "metavar": "KEY=VALUE", "help": "any study key, e.g. train.lr=1e-3"},
    "--rounds": {"type": positive, "metavar": "N", "help": "rounds of training (default: the study's)"},
    "--sites": {"type": comma, "metavar": "A,B", "help": "sites (default: the study's)"},
    "--held-out": {"type": comma, "metavar": "A,B", "help": "sites that score the global model and do not train"},
    "--seeds": {"type": numbers, "metavar": "N,N", "help": "seeds, for example 0,1,2"},
    "--checkpoint": {"type": Path, "metavar": "FILE", "help": "the pre-trained weights that the study starts from"},
    "--root": {"type": Path, "metavar": "DIR", "help": "the data root (default: the one in this site's settings)"},
    "--site-settings": {
        "type": Path, "metavar": "FILE", "help": "a fedfms_site.yaml (default: the file named by FEDFMS_SITE)",
    },
    "--kit": {"type": Path, "metavar": "DIR", "required": True, "help": "the folder of an opened kit"},
    "--json": {"type": Path, "metavar": "FILE", "help": "write the numbers to this file"},
}  # fmt: skip


def add_shared(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add options that have the same meaning in several commands."""
    for name in names:
        parser.add_argument(name, **_SHARED[name])
