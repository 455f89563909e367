"""`fedfms completion`: a script that completes commands, options, names and files in a shell."""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fedfms.cli.options import Commands, Parser, add_command

_SHELLS = ("bash", "zsh", "fish")
_WHERE = """\
Write the script once, and again after an upgrade or a new plug-in. The next shell then completes on the TAB key:
  fedfms completion bash > ~/.local/share/bash-completion/completions/fedfms
  fedfms completion zsh > ~/.zfunc/_fedfms     (with `fpath+=~/.zfunc` before `compinit` in ~/.zshrc)
  fedfms completion fish > ~/.config/fish/completions/fedfms.fish

The folder must exist. In bash without the package bash-completion, read the file in ~/.bashrc: `source FILE`.
"""


def add_commands(commands: Commands) -> None:
    """Add `fedfms completion`."""
    completion = add_command(
        commands, "completion", _completion, help="print a script that completes commands in your shell",
        epilog=_WHERE, example="fedfms completion bash > ~/.local/share/bash-completion/completions/fedfms",
    )  # fmt: skip
    completion.add_argument("shell", choices=_SHELLS, help="your shell")


def _completion(args: argparse.Namespace) -> str:
    import shtab

    from fedfms.cli import make_parser
    from fedfms.experiments.plan import TABLES
    from fedfms.methods import METHODS
    from fedfms.models import BACKBONES
    from fedfms.study import PRESETS, yaml_names

    parser = make_parser()
    names: dict[str, Iterable[str]] = {"method": METHODS, "backbone": BACKBONES, "preset": PRESETS}
    study = _names_or_files("study", yaml_names())
    complete = {
        "study": study,
        "on": study,
        "table study": _names_or_files("table", [*yaml_names(), *yaml_names(TABLES)]),
    }
    for command, action in _actions(parser):
        # shtab reads these attributes; this parser parses nothing
        if action.type is Path:
            action.complete = shtab.DIRECTORY if action.metavar == "DIR" else shtab.FILE  # type: ignore[attr-defined]
        elif action.dest in names:
            action.choices = sorted(names[action.dest])
        elif action.dest in complete:
            action.complete = complete.get(f"{command} {action.dest}", complete[action.dest])  # type: ignore[attr-defined]
    return str(shtab.complete(parser, args.shell))


def _actions(parser: Parser) -> Iterator[tuple[str, argparse.Action]]:
    """Every argument of every command, with the command's own name."""
    parser.complete()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
        else:
            yield parser.prog.split()[-1], action


def _names_or_files(what: str, names: Iterable[str]) -> dict[str, Any]:
    """What shtab needs to complete an argument that is one of `names` or a file."""
    words, function = " ".join(names), f"_fedfms_{what}_or_file"
    bash = f'{function}() {{\n  compgen -W "{words}" -- "$1"\n  compgen -f -- "$1"\n}}'
    zsh = f'{function}() {{\n  _alternative "names:{what}:({words})" "files:file:_files"\n}}'
    fish = f"{words} (__fish_complete_path (commandline -ct))"
    return {"bash": function, "zsh": function, "fish": fish, "preamble": {"bash": bash, "zsh": zsh}}
