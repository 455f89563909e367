"""`fedfms list`: methods, backbones, presets, studies and tables."""

import argparse

from rich.console import Console
from rich.table import Table

from fedfms.cli.options import Commands, add_command


def add_commands(commands: Commands) -> None:
    """Add `fedfms list`."""
    add_command(
        commands, "list", _list, help="list methods, backbones, presets, studies and tables", example="fedfms list"
    )


def _list(_: argparse.Namespace) -> None:
    from fedfms.experiments.plan import TABLES, load_experiment
    from fedfms.methods import METHODS
    from fedfms.models import BACKBONES
    from fedfms.study import PRESETS, yaml_names

    table = Table("what", "names")
    table.add_row("methods", "\n".join(f"{name} ({method.paper})" for name, method in METHODS.items()))
    table.add_row("backbones", ", ".join(BACKBONES))
    table.add_row("presets", ", ".join(PRESETS))
    table.add_row("studies", ", ".join(yaml_names()))
    table.add_row("tables", "\n".join(f"{name} ({load_experiment(name).title})" for name in yaml_names(TABLES)))
    Console().print(table)
