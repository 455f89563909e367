"""`fedfms run`: a federation on this machine, from a study to its report, in NVFLARE's simulator."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from fedfms.cli.files import site_settings
from fedfms.cli.options import Commands, add_command, add_shared, positive
from fedfms.cli.study import add_study_options, description, resolved_study, suppression_note
from fedfms.errors import StudyError, TrainingError

if TYPE_CHECKING:
    from fedfms.reporting import Report
    from fedfms.settings import SiteSettings
    from fedfms.study import Study

_DESCRIPTION = """\
Run a method on a study with all its sites on this machine, in NVFLARE's simulator, and print the report.

The same command resumes an interrupted run after its last finished round, and prints the report of a finished one.
NVFLARE's own output is in OUT/log.txt. Exit code: 0 if the run is valid, 1 if it is not, 130 after Ctrl-C.
"""
_LOG = "log.txt"
_MAX_DIFFERENCES = 3


def add_commands(commands: Commands) -> None:
    """Add `fedfms run`."""
    run = add_command(
        commands, "run", _run, help="run a method on a study with all its sites on this machine",
        description=_DESCRIPTION,
        example="fedfms run fedmsa --study polyp --root DATA --checkpoint weights/lite_medsam.pth --rounds 5",
    )  # fmt: skip
    run.add_argument("method", help="see `fedfms list`")
    run.add_argument("--out", type=Path, metavar="OUT", help="the run's folder (default: workspace/STUDY-METHOD)")
    add_shared(run, "--root")
    add_study_options(run)
    run.add_argument("--threads", type=positive, metavar="N", help="sites in parallel (default: as memory allows)")


def _run(args: argparse.Namespace) -> int:
    from fedfms.cli.report import finished, show
    from fedfms.files import locked
    from fedfms.flare.simulator_runs import run_workspace

    console, settings = Console(), site_settings(args.root, checkpoint=args.checkpoint)
    study = resolved_study(args, args.method, named_sites=True)
    if not study.sites:
        raise StudyError("the study names no sites", where=study.name, do="name those that train: --sites A,B")
    folder: Path = args.out or Path("workspace") / f"{study.name}-{study.method}"
    _check_folder(folder, study)
    with locked(folder) as lock:
        report = finished(run_workspace(folder))
        if report is None:
            _check_sites(study, settings, console)
            report = _train(study, settings, folder, lock, args.threads, console)
        else:
            console.print(f"{folder.name} is complete; its report:", markup=False, highlight=False)
    return show(report)


def _check_folder(folder: Path, study: Study) -> None:
    """Check that `folder` is new, or holds a run of the same study.

    Raises:
        StudyError: it has other content, or another study.
    """
    from fedfms.flare.job import read_study
    from fedfms.flare.simulator_runs import RUN_FILES, run_job

    name, do = folder.resolve().name, "name another folder: --out"
    if folder.exists() and not folder.is_dir():
        raise StudyError(f"{name} is a file", where="--out", do=do)
    job = run_job(folder)
    if not job.is_dir():  # new, or interrupted when it had no job
        if folder.is_dir() and any(
            path.name[0] != "." and path.name not in {_LOG, *RUN_FILES} for path in folder.iterdir()
        ):
            raise StudyError(f"{name} contains something other than a run", where="--out", do=do)
        return
    old, new = _flat(read_study(job).to_dict()), _flat(study.to_dict())
    differing = [f"{key} {old.get(key)!r}, now {new.get(key)!r}" for key in new if new[key] != old.get(key)]
    if differing:
        more = f" and {len(differing) - _MAX_DIFFERENCES} more" if len(differing) > _MAX_DIFFERENCES else ""
        what = f"{name} holds a run of another study: {'; '.join(differing[:_MAX_DIFFERENCES])}{more}"
        raise StudyError(what, where="--out", do=do)


def _flat(values: object, prefix: str = "") -> dict[str, object]:
    """Dotted keys of nested mappings."""
    if not isinstance(values, dict):
        return {prefix.removesuffix("."): values}
    return {key: value for name, inner in values.items() for key, value in _flat(inner, f"{prefix}{name}.").items()}


def _check_sites(study: Study, settings: SiteSettings, console: Console) -> None:
    """Open every site's data and check the weights, so that a fault is found before the run starts.

    Raises:
        FedfmsError: of the first site or file that does not fit.
    """
    from fedfms.data import open_site
    from fedfms.methods import METHODS, POOL, training_sites
    from fedfms.training.build import check_weights

    check_weights(study, settings)
    trained = study.sites if METHODS[study.method].centralised else training_sites(study)
    names = [*trained, *study.held_out]
    counts = []
    with console.status("opening the sites' data"):
        for name in names:
            data = open_site(study, name, settings)
            part = data.scored_part if name in study.held_out else "train"
            counts.append(f"{name} {len(data.parts[part])}" + (" (held out)" if name in study.held_out else ""))
    pooled = f", pooled as site `{POOL}`" if METHODS[study.method].centralised else ""
    lines = [description(study), f"{study.train.rounds} rounds; images: {', '.join(counts)}{pooled}"]
    console.print(*lines, *suppression_note(study), sep="\n", markup=False, highlight=False, soft_wrap=True)


def _train(
    study: Study, settings: SiteSettings, folder: Path, lock: int, threads: int | None, console: Console
) -> Report:
    """Run the remaining rounds, with a line for each.

    Raises:
        TrainingError: the simulator failed; the reason is its own, or the last error in the log.
        KeyboardInterrupt: with a line that says after which round the same command resumes.
    """
    from fedfms.cli.run_progress import RunProgress
    from fedfms.flare.simulator_runs import run_study, run_workspace
    from fedfms.reporting import make_report

    log = folder / _LOG
    console.print(f"NVFLARE's output: {log}", markup=False, highlight=False, soft_wrap=True)
    with log.open("ab") as file, RunProgress(study, folder, console) as progress:
        begin = file.tell()
        try:
            run_study(study, settings, folder, lock, threads=threads, log=file, watch=progress.poll)
        except TrainingError as error:
            progress.poll(last=True)
            reason = progress.failure(log.read_bytes()[begin:].decode(errors="replace")) or error.what
            raise TrainingError(reason, where=folder.resolve().name, do=f"see {log}") from None
        except KeyboardInterrupt:
            after = f" after round {progress.done} of {study.train.rounds}" if progress.done else ""
            raise KeyboardInterrupt(f"interrupted{after}; the same command resumes the run") from None
        progress.poll(last=True)
    return make_report(run_workspace(folder))
