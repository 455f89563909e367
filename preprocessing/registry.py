"""The data sets, by name. A new one: a file here, and a line below.

Its file has `NAME` (the subcommand, and the data set's name in a study), `HELP` (one line), a docstring (sites,
expected layout, structures, label rule, licence, citations, where the raw data are asked for: it is the
command's help), `add_options(parser)` (its own options, each with its default), and `recipe(arguments)`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType

from preprocessing import brain, fundus, hippocampus, nuclei, polyp, prostate
from preprocessing.recipe import Recipe


@dataclass(frozen=True)
class DataSet:
    """A data set as the command line sees it: one line and a page of help, its options, its recipe of them."""

    name: str
    help: str
    about: str
    add_options: Callable[[argparse.ArgumentParser], None]
    recipe: Callable[[argparse.Namespace], Recipe]


def of_module(module: ModuleType) -> DataSet:
    """The data set that a file of this package describes."""
    return DataSet(module.NAME, module.HELP, module.__doc__ or "", module.add_options, module.recipe)


DATASETS: Mapping[str, DataSet] = {
    brain.NAME: of_module(brain),
    fundus.NAME: of_module(fundus),
    hippocampus.NAME: of_module(hippocampus),
    nuclei.NAME: of_module(nuclei),
    polyp.NAME: of_module(polyp),
    prostate.NAME: of_module(prostate),
}
