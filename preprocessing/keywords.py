"""The recipe that keyword arguments describe: what `fedfms prepare` reads from its options."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from fedfms.errors import DataError
from fedfms.names import NAME_RULE, is_name
from fedfms.preprocessing import pairs
from fedfms.preprocessing.recipe import Recipe
from fedfms.preprocessing.registry import DATASETS

PAIRS = "pairs"  # your own data


class _Options(argparse.ArgumentParser):
    """The options of a data set, whose errors are exceptions."""

    def error(self, message: str) -> NoReturn:
        raise DataError(message, where=self.prog, do=f"see `fedfms prepare {self.prog} --help`")


def published_recipe(source: str, options: Mapping[str, Any]) -> Recipe:
    """The recipe of a registered data set.

    Args:
        options: by name, without dashes; a list stands for a comma-separated text.

    Raises:
        DataError: an unknown data set or option, or a value that is not valid.
    """
    if source not in DATASETS:
        raise DataError(f"unknown data set {source!r}", do=f"`{PAIRS}` for your own, or one of {sorted(DATASETS)}")
    parser = _Options(prog=source, add_help=False, allow_abbrev=False)
    DATASETS[source].add_options(parser)
    words = [f"--{name.replace('_', '-')}={_text(value)}" for name, value in options.items()]
    return DATASETS[source].recipe(parser.parse_args(words))


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def pairs_recipe(dataset: str | None, site: str | None, rule: Path | None, options: Mapping[str, Any]) -> Recipe:
    """The recipe of a site's own images and masks.

    Args:
        options: must be empty: its options are in the rule file.

    Raises:
        DataError: an option, a name that is missing or not valid, or a wrong rule file.
    """
    if options:
        raise DataError(f"unknown options {sorted(options)}", where=PAIRS, do="write them into the rule file")
    for what, name in (("site", site), ("dataset", dataset)):
        if name is None or not is_name(name):
            raise DataError(f"{what} cannot be {name!r}", where=PAIRS, do=NAME_RULE)
    return pairs.load_recipe(str(dataset), str(site), rule)
