"""The `fedfms` command: build jobs, make reports, list what there is."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

import fedfms
from fedfms.cli import cost, export, nnunet, predict, preflight, resume, sites, submit, table
from fedfms.cli.files import comma, not_negative, numbers, positive, settings_here
from fedfms.cli.report import show
from fedfms.errors import FedfmsError, StudyError
from fedfms.study import PHANTOM, PHANTOM_SITES, Study, check_sites_known, find_study, load_study

_FEW = 3  # images whose mean score tells of none of them
_EXAMPLES = """\
examples:
  fedfms job build fedmsa --study phantom --out jobs/fedmsa
  fedfms job build fedmsa --study polyp --checkpoint weights/lite_medsam.pth --rounds 5 \\
      --held-out kvasir_seg_vestreviken_no --set data.max_images=24 --out polyp-fedmsa
  fedfms job build fedsam --study polyp --preset paper --out polyp-paper
  nvflare simulator jobs/fedmsa -w workspace -n 3 -t 3
  fedfms report workspace
  fedfms splits polyp --root DATA --check custom/fedfms/studies/splits/polyp.json
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 a fault told in one line, 2 wrong usage, 130 Ctrl-C."""
    args = _parser().parse_args(argv)
    try:
        told = args.run(args)
        if isinstance(told, str):
            print(told)
            return 0
        return int(told or 0)
    except FedfmsError as error:
        print(f"fedfms: {error.line()}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fedfms: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, `head` for instance, has seen enough
        sys.stdout = None  # Python would flush it at exit, and fail again
    except OSError as error:  # a path that the system does not take; its own text would name it
        why = error.strerror or type(error).__name__  # a library's own kinds may have no text of the system's
        print(f"fedfms: a file cannot be read or written: {why}; check names and rights", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedfms", description=fedfms.__doc__, epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"fedfms {fedfms.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_job(commands.add_parser("job", help="build NVFLARE jobs"))
    nnunet.add_commands(commands)
    table.add_commands(commands)
    cost.add_commands(commands)
    sites.add_commands(commands)
    predict.add_commands(commands)
    export.add_commands(commands)
    preflight.add_commands(commands)
    submit.add_commands(commands)
    resume.add_commands(commands)
    report = commands.add_parser(
        "report", help="table, curves and results.json of a run, made again; exit code 1 if the run is not valid"
    )
    report.add_argument("workspace", type=Path, help="a simulator's workspace, or a run's folder")
    report.add_argument("--out", type=Path, help="where to write (default: in the run's folder)")
    report.set_defaults(run=_report)
    _add_splits(commands.add_parser("splits", help="who is in which part, as digests that name nobody"))
    listing = commands.add_parser("list", help="methods, backbones, presets, studies and tables")
    listing.set_defaults(run=_list)
    return parser


def _add_job(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    build = commands.add_parser(
        "build", help="make the job folder of a method on a study", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    build.add_argument("method", help="as `fedfms list` names them; all: each of them, into OUT/METHOD")
    build.add_argument("--study", required=True, help="a YAML file, or the name of a packaged study")
    build.add_argument("--out", required=True, type=Path, help="the job folder to write")
    build.add_argument("--preset", help="schedule and backbone of `fedfms list`, laid over the study's")
    build.add_argument("--backbone", help="as `fedfms list` names them, of the method's family")
    build.add_argument("--checkpoint", type=Path, help="weights to start from; the job holds its name and SHA-256 only")
    build.add_argument("--plan", type=Path, help="nnU-Net's, as `fedfms plan` makes it from the sites' fingerprints")
    build.add_argument("--rounds", type=positive)
    build.add_argument("--seed", type=not_negative)
    build.add_argument("--sites", help="a,b,c: the sites that train (default: the study's; '': whoever takes part)")
    build.add_argument("--held-out", help="a,b: sites that score the global model and do not train")
    build.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any key of the study, e.g. train.lr=1e-3"
    )
    build.add_argument(
        "--phantom", action="store_true", help="embedded phantom images instead of the study's data: a run with no data"
    )
    build.add_argument("--bundle-code", action="store_true", help="copy this package into the job")
    build.set_defaults(run=_job_build)


def _add_splits(parser: argparse.ArgumentParser) -> None:
    parser.description = "Write a study's splits, or compare them with a file: numbers and digests, no image, no id."
    parser.add_argument("study", help="a YAML file, or the name of a packaged study")
    parser.add_argument("--root", type=Path, help="the data root (default: the one in this site's settings)")
    parser.add_argument("--sites", type=comma, default=[], help="a,b,c (default: the study's, or the file's)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any key of the study")
    parser.add_argument(
        "--protocol", action="append", choices=("held-out", "personal"), help="default: both, or the file's"
    )
    parser.add_argument("--seeds", type=numbers, default=[], help="default 0,1,2, or the file's")
    parser.add_argument("--of", default="", metavar="TEXT", help="which images these are, for readers of the file")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, metavar="FILE", help="write here (default: print)")
    where.add_argument("--check", type=Path, metavar="FILE", help="compare with it; exit code 1 if anything differs")
    parser.set_defaults(run=_splits)


def _splits(args: argparse.Namespace) -> int:
    from fedfms.data import splitfile

    study = load_study(find_study(args.study), overrides=args.set)
    check_sites_known(study, args.sites, "--sites")
    settings = settings_here(args.root)
    if args.check is not None:
        content = splitfile.load_splits(args.check)
        found = splitfile.compare_splits(study, settings, content, args.sites, args.protocol or (), args.seeds)
        print("\n".join([*found.notes, *(found.differences or ["the same splits"])]))
        return 1 if found.differences else 0
    sites = args.sites or [*study.sites, *study.held_out]
    if not args.sites and not study.sites:
        raise StudyError("the study names no sites that train", where=study.name, do="name them all with --sites a,b,c")
    protocols, seeds = args.protocol or ["held-out", "personal"], args.seeds or [0, 1, 2]
    made = splitfile.make_splits(study, settings, sites, protocols, seeds, args.of)
    if args.out is None:
        print(splitfile.to_text(made), end="")
    else:
        splitfile.save_splits(made, args.out)
        print(args.out)
    return 0


def _job_build(args: argparse.Namespace) -> None:
    from fedfms.flare.job import build_job
    from fedfms.methods import METHODS, make_method, resolve_study
    from fedfms.reporting.cost.traffic import plan
    from fedfms.settings import SiteSettings
    from fedfms.training.build import check_weights

    notes = []
    for name in sorted(METHODS) if args.method == "all" else [args.method]:
        study = _study_of(args, name)
        study = resolve_study(study, make_method(name, study.method_options))
        if args.checkpoint is not None:  # now, and not at each site
            check_weights(study, SiteSettings(checkpoints=args.checkpoint.resolve().parent))
        out = build_job(study, args.out / name if args.method == "all" else args.out, bundle_code=args.bundle_code)
        model = f"{study.model.backbone} at {study.model.input_px} px from {study.model.initial_weights}"
        pooled = "the data of all sites are pooled where site `pool` runs, and nothing is federated"
        print(f"{out}: {name} on {study.name}, {model}; {pooled if METHODS[name].centralised else plan(study).text()}")
        notes.append(_untold(study))
    for note in filter(None, dict.fromkeys(notes)):
        print(note)


def _untold(study: Study) -> str:
    """Better known before a run than after: its sites will score on too few images to tell of them."""
    from fedfms.data.splits import scored

    images = [study.data.max_images, study.data.phantom_images if study.data.dataset == PHANTOM else None]
    most, least = min((n for n in images if n is not None), default=None), study.federation.min_cases
    if most is None or (aside := scored(study.data.protocol, most)) >= least:
        return ""
    may = f", or --set federation.min_cases={aside} where that may be told" if aside >= _FEW else ""
    return (
        f"note: of {most} images a site scores on about {aside}, and no score of fewer than {least} leaves it: "
        f"no curve, no best model; give it more images{may}"
    )


def _study_of(args: argparse.Namespace, method: str) -> Study:
    """The study that the command line means, for a method."""
    from fedfms.flare.job import with_checkpoint
    from fedfms.methods import METHODS

    path = find_study(args.study)
    held_out = None if args.held_out is None else comma(args.held_out)
    sites = None if args.sites is None else comma(args.sites)
    base = load_study(path, preset=args.preset, overrides=args.set)
    if not args.phantom:  # any name is a phantom's
        check_sites_known(base, sites or (), "--sites")
        check_sites_known(base, held_out or (), "--held-out")
    if sites is None and held_out:
        sites = _without(held_out, base)
    pools = method in METHODS and METHODS[method].centralised
    if pools and not sites and not base.sites and (args.phantom or base.data.dataset == PHANTOM):
        apart = base.held_out if held_out is None else held_out
        # a pool must know which
        sites = [site for site in PHANTOM_SITES if site not in apart]
    return load_study(
        path,
        preset=args.preset,
        overrides=args.set,
        **{
            "method": method,
            "seed": args.seed,
            "sites": sites,
            "held_out": held_out,
            "model.backbone": args.backbone,
            "method_options.plan": None if args.plan is None else nnunet.read_plan(args.plan),
            "train.rounds": args.rounds,
            "data.dataset": PHANTOM if args.phantom else None,
            **({} if args.checkpoint is None else with_checkpoint(args.checkpoint)),
        },
    )


def _without(held_out: list[str], study: Study) -> list[str]:
    """The study's training sites but for the held-out ones; none where the study names none."""
    left = [name for name in study.sites if name not in held_out]
    if study.sites and not left:
        raise StudyError("every site is held out", where=study.name, do="leave one that trains")
    return left


def _report(args: argparse.Namespace) -> int:
    from fedfms.reporting import make_report

    return show(make_report(args.workspace, args.out))


def _list(args: argparse.Namespace) -> None:
    from fedfms.experiments.plan import TABLES, load_grid
    from fedfms.methods import METHODS
    from fedfms.models import BACKBONES
    from fedfms.study import PRESETS, yaml_names

    table = Table("what", "names")
    table.add_row("methods", "\n".join(f"{name} ({method.paper})" for name, method in METHODS.items()))
    table.add_row("backbones", ", ".join(BACKBONES))
    table.add_row("presets", ", ".join(PRESETS))
    table.add_row("studies", ", ".join(yaml_names()))
    table.add_row("tables", "\n".join(f"{name} ({load_grid(name).title})" for name in yaml_names(TABLES)))
    Console().print(table)
