"""The registered data sets, by name.

To add a data set, write a module here and add it to the tuple below. The module defines:
  NAME                  the command, and the name of the data set in a study
  HELP                  one line for the list of commands
  a docstring           the page of `NAME --help`: sites, expected layout, structures, label rule, patients, licence,
                        citations, and where to request the raw data
  add_options(parser)   adds the data set's own options, each with a default
  recipe(arguments)     returns the `Recipe` under these options
Then add its layout to tests/preprocessing/layouts.py; the tests over the registry cover it from there.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from fedfms.plugins import Registry
from fedfms.preprocessing import brain, fundus, hippocampus, nuclei, polyp, prostate
from fedfms.preprocessing.recipe import Recipe


@dataclass(frozen=True)
class DataSet:
    """A data set for the command line."""

    name: str
    help: str  # one line
    about: str  # the help page
    add_options: Callable[[argparse.ArgumentParser], None]
    recipe: Callable[[argparse.Namespace], Recipe]


def of_module(module: ModuleType) -> DataSet:
    """The data set that a module of this package defines."""
    return DataSet(module.NAME, module.HELP, module.__doc__ or "", module.add_options, module.recipe)


def _checked(name: str, found: Any) -> DataSet:
    """A plug-in's data set."""
    if not isinstance(found, ModuleType):
        raise TypeError("it is not a module")
    if missing := [each for each in ("NAME", "HELP", "add_options", "recipe") if not hasattr(found, each)]:
        raise TypeError(f"the module lacks {', '.join(missing)}")
    if name != found.NAME:
        raise TypeError(f"its NAME is not {name!r}")
    return of_module(found)


DATASETS = Registry(
    "fedfms.datasets", "data set",
    {module.NAME: of_module(module) for module in (brain, fundus, hippocampus, nuclei, polyp, prostate)}, _checked,
)  # fmt: skip
