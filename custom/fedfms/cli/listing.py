"""`fedfms list`: methods, backbones, presets, studies and tables."""

import argparse
from typing import Any

from rich.console import Console
from rich.table import Table

from fedfms.cli.options import Commands, add_command
from fedfms.plugins import Registry


def add_commands(commands: Commands) -> None:
    """Add `fedfms list`."""
    add_command(
        commands, "list", _list, help="list methods, backbones, presets, studies and tables", example="fedfms list"
    )


def _list(_: argparse.Namespace) -> None:
    from fedfms.experiments.plan import TABLES, load_experiment
    from fedfms.methods import METHODS
    from fedfms.models import BACKBONES
    from fedfms.preprocessing.registry import DATASETS
    from fedfms.study import PRESETS, yaml_names

    def names(registry: Registry[Any]) -> str:
        """The names, with the package that a plug-in's comes from."""
        entries = ((name, registry.origin(name)) for name in registry.usable())
        return ", ".join(name if origin is None else f"{name} (of package {origin})" for name, origin in entries)

    def method_line(name: str, paper: str) -> str:
        origin = METHODS.origin(name)
        return f"{name} ({paper})" + ("" if origin is None else f", of package {origin}")

    table = Table("what", "names")
    table.add_row("methods", "\n".join(method_line(name, each.paper) for name, each in METHODS.usable().items()))
    table.add_row("backbones", names(BACKBONES))
    table.add_row("data sets", names(DATASETS))
    table.add_row("presets", ", ".join(PRESETS))
    table.add_row("studies", ", ".join(yaml_names()))
    table.add_row("tables", "\n".join(f"{name} ({load_experiment(name).title})" for name in yaml_names(TABLES)))
    console = Console()
    console.print(table)
    for registry in (METHODS, BACKBONES, DATASETS):
        for line in registry.problems():
            console.print(line, markup=False, highlight=False, soft_wrap=True)
