"""The Python interface: `import fedfms`, then `fedfms.load_study(...)`, `fedfms.run(...)`, `fedfms.predict(...)`.

Each function does what the command of that name does. All errors are `fedfms.errors.FedfmsError`s of one line.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedfms import study as studies
from fedfms.errors import DataError, StudyError
from fedfms.settings import SiteSettings, load_settings
from fedfms.study import PHANTOM, PHANTOM_SITES, Study, find_study

if TYPE_CHECKING:
    from fedfms.flare.recipe import FedfmsRecipe
    from fedfms.inference.predict import Outcome
    from fedfms.preprocessing.convert import Summary
    from fedfms.provisioning.deployment import NewKit

__all__ = [
    "RunResult", "SiteSettings", "Study", "build_job", "export_model", "load_settings", "load_study", "make_kits",
    "predict", "prepare", "recipe", "run",
]  # fmt: skip


def load_study(
    study: str | Path, method: str | None = None, *, preset: str | None = None, rounds: int | None = None,
    sites: Sequence[str] | None = None, held_out: Sequence[str] | None = None, seed: int | None = None,
    checkpoint: str | Path | None = None, overrides: Mapping[str, Any] | None = None,
) -> Study:  # fmt: skip
    """A study, resolved for its method.

    Args:
        study: a YAML file, or the name of a packaged study (`fedfms list`).
        method: default: the study's.
        checkpoint: a file of pre-trained weights; the study stores its name and SHA-256.
        overrides: study keys, e.g. {"train.lr": 1e-3}.

    Raises:
        StudyError: an unknown name or key, or a value that is not valid.
        CheckpointError: the checkpoint cannot be read.
    """
    from fedfms.flare.job import with_checkpoint
    from fedfms.methods import make_method, resolve_study

    named: dict[str, Any] = {
        "method": method, "train.rounds": rounds, "sites": None if sites is None else list(sites),
        "held_out": None if held_out is None else list(held_out), "seed": seed,
        **({} if checkpoint is None else with_checkpoint(Path(checkpoint))),
    }  # fmt: skip
    loaded = studies.load_study(find_study(str(study)), preset=preset, **{**(overrides or {}), **_given(named)})
    return resolve_study(loaded, make_method(loaded.method, loaded.method_options))


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def prepare(
    dataset: str, raw: str | Path, out: str | Path, *, site: str | None = None, rule: str | Path | None = None,
    options: Sequence[str] = (), workers: int = 2,
) -> list[Summary]:  # fmt: skip
    """Convert raw images and masks; returns a summary for each site.

    Args:
        dataset: a name of `fedfms prepare --help`, with its layout of `raw`; or, with `site`, the name of your own data
            set, whose `raw` has `images/` and `labels/`.
        site: convert this site only.
        rule: the rule file of your own data (`fedfms prepare pairs --help`).
        options: of the data set, as on the command line, e.g. ["--eye", "left"].

    Raises:
        DataError: the raw folder has another layout, or a folder cannot be read or written.
    """
    from fedfms.preprocessing import pairs
    from fedfms.preprocessing.convert import convert_site, list_sites
    from fedfms.preprocessing.registry import DATASETS

    raw, out = Path(raw), Path(out)
    if dataset in DATASETS:
        parser = argparse.ArgumentParser(exit_on_error=False)
        DATASETS[dataset].add_options(parser)
        recipe = DATASETS[dataset].recipe(parser.parse_args(list(options)))
    elif site is not None:
        recipe = pairs.load_recipe(dataset, site, None if rule is None else Path(rule))
    else:
        raise DataError(f"{dataset} is not a known data set", do=f"one of {sorted(DATASETS)}, or name a site")
    found = list_sites(raw, recipe)
    if site is not None and site not in found:
        raise DataError(f"no site {site!r} in the raw folder", do=f"one of {found}")
    return [convert_site(raw, out, name, recipe, workers) for name in found if site in (None, name)]


def build_job(study: Study, out: str | Path) -> Path:
    """Write the NVFLARE job folder of a study; returns it (`fedfms.flare.job.build_job`)."""
    from fedfms.flare import job

    return job.build_job(study, Path(out))


@dataclass(frozen=True)
class RunResult:
    """The result of `run`.

    Attributes:
        model: the file of the global model, for `predict` and `export_model`; methods with personal models have theirs
            in `folder/SITE/models`.
        curve: one entry per received model and one for the final one: {"round", "dice": {site: mean Dice}}.
        models: {"final" | "best": {"round", "sites": {site: result of `Site.evaluate`}}}.
    """

    folder: Path
    model: Path
    curve: list[dict[str, Any]]
    models: dict[str, Any]

    def dice(self, model: str = "final") -> dict[str, float | None]:
        """The mean Dice of a model at each site; None where it is suppressed."""
        return {site: (entry["scores"] or {}).get("dice") for site, entry in self.models[model]["sites"].items()}


def run(
    study: Study, out: str | Path, *, settings: SiteSettings | None = None, data_root: str | Path | None = None,
    checkpoints: str | Path | None = None, on_round: Callable[[int, dict[str, float | None]], None] | None = None,
) -> RunResult:  # fmt: skip
    """Run a study with all its sites in this process, without NVFLARE, to the same numbers; a stopped run resumes.

    Args:
        out: the run's folder; it receives everything that the run writes.
        settings: of the sites; default: `load_settings()`.
        data_root, checkpoints: replace those of the settings.
        on_round: called after each round with its number (from 0) and the Dice of the received model at each site.

    Raises:
        FedfmsError: with the site and the round.
    """
    from fedfms.experiments.inprocess_engine import read_rounds, run_in_process
    from fedfms.experiments.plan import Run
    from fedfms.experiments.result import RESULT
    from fedfms.files import locked
    from fedfms.reporting.tables import Key
    from fedfms.schema import read_json

    folder = Path(out)
    if not study.sites and study.data.dataset == PHANTOM:
        study = replace(study, sites=tuple(name for name in PHANTOM_SITES if name not in study.held_out))
    if not study.sites:
        raise StudyError("the study names no sites", where=study.name, do="name those that train: sites=[...]")
    chosen = settings or load_settings()
    if data_root is not None:
        chosen = replace(chosen, data_root=Path(data_root).resolve())
    if checkpoints is not None:
        chosen = replace(chosen, checkpoints=Path(checkpoints).resolve())

    def after_round() -> None:
        if on_round is not None:
            row = read_rounds(folder)[-1]
            on_round(row["round"], row["dice"])

    with locked(folder):
        result = folder / RESULT
        if result.is_file():
            if read_json(result, StudyError)["study"] != study.to_dict():
                raise StudyError(f"{folder.name} holds a run of another study", do="name another folder")
        else:
            run_in_process(Run(Key(study.method, study.seed), study), chosen, folder, after_round)
        content = read_json(result, StudyError)
    return RunResult(folder, folder / "server.pt", content["curve"], content["models"])


def predict(
    model: str | Path, images: str | Path, out: str | Path, *, checkpoint: str | Path | None = None,
    overlays: bool = False, settings: SiteSettings | None = None,
) -> list[Outcome]:  # fmt: skip
    """Write the masks of an image, a volume, or a folder of them to `out`; returns an outcome for each input.

    Args:
        model: a model file of a run, or an export.
        checkpoint: the pre-trained weights that the study started from, if the settings name no folder.

    Raises:
        FedfmsError: the model cannot be loaded, or there is no input.
    """
    from fedfms.inference.inputs import find_inputs
    from fedfms.inference.loading import open_model
    from fedfms.inference.outputs import OutputFolder
    from fedfms.inference.predict import predict as predict_inputs

    path = None if checkpoint is None else Path(checkpoint)
    loaded, rule = open_model(Path(model), checkpoint=path, settings=settings or load_settings())
    inputs = find_inputs(Path(images), rule, Path(out))
    batch = loaded.study.train.batch_size
    folder = OutputFolder(Path(out), loaded.file.about())
    return predict_inputs(loaded, inputs, folder, batch_size=batch, overlays=overlays)


def export_model(
    model: str | Path, out: str | Path, *, checkpoint: str | Path | None = None,
    formats: Sequence[str] = ("safetensors", "onnx", "bundle"), licence: str = "not stated",
) -> list[str]:  # fmt: skip
    """Export a model with its card, as safetensors, ONNX and MONAI bundle; returns the names of the files.

    Raises:
        FedfmsError: the model cannot be loaded, or the export cannot be written.
    """
    from fedfms.inference.export import export
    from fedfms.inference.loading import open_model

    path = None if checkpoint is None else Path(checkpoint)
    loaded, rule = open_model(Path(model), checkpoint=path, settings=replace(load_settings(), device="cpu"))
    return export(loaded, rule, Path(out), formats=formats, licence=licence)


def make_kits(project: str | Path, out: str | Path, passphrase: str) -> list[NewKit]:
    """Create a federation: its root, encrypted with `passphrase`, and a kit for each participant.

    Raises:
        ProvisioningError: the project file is not valid, or the folder exists.
    """
    from fedfms.provisioning.deployment import create_federation

    return create_federation(Path(project), Path(out), passphrase)


def recipe(method: str, study: str | Path | Study, *, name: str = "", **values: Any) -> FedfmsRecipe:
    """An NVFLARE recipe: `recipe("fedmsa", study="phantom", rounds=3).execute(SimEnv(num_clients=3))`.

    Args:
        values: as for `load_study`.

    Raises:
        StudyError: as `load_study`.
    """
    from fedfms.flare.recipe import FedfmsRecipe

    loaded = replace(study, method=method) if isinstance(study, Study) else load_study(study, method, **values)
    return FedfmsRecipe(loaded, name)
