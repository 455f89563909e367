"""The Python interface: `import fedfms`, then `fedfms.load_study(...)`, `fedfms.run(...)`, `fedfms.predict(...)`.

Each function does what the command of that name does, and raises a `fedfms.errors.FedfmsError` of one line.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedfms.errors import DataError, StudyError
from fedfms.settings import SiteSettings, load_settings
from fedfms.study import Study

if TYPE_CHECKING:
    from fedfms.flare.recipe import FedfmsRecipe
    from fedfms.inference.inputs import InputRule
    from fedfms.inference.loading import LoadedModel
    from fedfms.inference.predict import Outcome
    from fedfms.preprocessing.convert import Summary
    from fedfms.provisioning.deployment import NewKit

__all__ = [
    "RunResult", "SiteSettings", "Study", "build_job", "export_model", "load_settings", "load_study", "make_kits",
    "predict", "prepare", "recipe", "run",
]  # fmt: skip
_STUDY = "study.json"  # in the folder of a run


def load_study(
    study: str | Path, method: str | None = None, *, preset: str | None = None, rounds: int | None = None,
    sites: Sequence[str] | None = None, held_out: Sequence[str] | None = None, seed: int | None = None,
    checkpoint: str | Path | None = None, overrides: Mapping[str, Any] | None = None,
) -> Study:  # fmt: skip
    """A study, resolved for its method.

    Args:
        study: a YAML file, or the name of a packaged study (`fedfms list`).
        method: default: the study's.
        sites: default: the study's, without the held-out ones.
        held_out: sites that score the global model and do not train.
        checkpoint: a file of pre-trained weights; the study stores its name and SHA-256.
        overrides: study keys, e.g. {"train.lr": 1e-3}.

    Raises:
        StudyError: an unknown name or key, or a value that is not valid.
        CheckpointError: the checkpoint does not fit the study.
    """
    from fedfms.experiments.choice import choose_study

    values: dict[str, Any] = {"train.rounds": rounds, "seed": seed}
    return choose_study(
        str(study), method, preset=preset, overrides=overrides or {}, sites=_names("sites", sites),
        held_out=_names("held_out", held_out), checkpoint=None if checkpoint is None else Path(checkpoint), **values,
    )  # fmt: skip


def _names(what: str, names: Sequence[str] | None) -> list[str] | None:
    if isinstance(names, str):
        raise StudyError(f"{what} is one text", do=f"write a list: {what}=[{names!r}]")
    return None if names is None else list(names)


def prepare(
    source: str, raw: str | Path, out: str | Path, *, site: str | None = None, dataset: str | None = None,
    rule: str | Path | None = None, workers: int = 2, **options: Any,
) -> list[Summary]:  # fmt: skip
    """Convert raw images and masks; returns a summary of each site, with the faults of single cases.

    Args:
        source: a command of `fedfms prepare`: a published data set, in the layout that its `--help` shows, or `pairs`:
            your own `images/` and `labels/`.
        site: convert this site only; of `pairs`, its name.
        dataset, rule: of `pairs`, the name of the data set, and its rule file.
        options: of a published data set, e.g. structures="disc".

    Raises:
        DataError: of the first site that cannot be converted; also an unknown option, or a folder without access.
    """
    from fedfms.preprocessing.convert import convert_site, list_sites
    from fedfms.preprocessing.keywords import PAIRS, pairs_recipe, published_recipe
    from fedfms.preprocessing.raw import require_folder, split_by_access

    raw, out = Path(raw), Path(out)
    require_folder(raw, "raw")
    if source == PAIRS:
        recipe = pairs_recipe(dataset, site, None if rule is None else Path(rule), options)
    elif dataset is not None or rule is not None:
        raise DataError("dataset and rule belong to your own data", where=source, do="leave them out, or name `pairs`")
    else:
        recipe = published_recipe(source, options)
        if site is None and (closed := split_by_access(raw)[1]):
            raise DataError(f"{closed} folders in raw cannot be read", where=source, do="allow it, or name a site")
    found = list_sites(raw, recipe)
    sites = [name for name in found if site in (None, name)]
    if not sites:
        what = "no site" if site is None else f"no site {site!r}"
        raise DataError(f"{what} in raw; found: {found}", where=source, do=f"see `fedfms prepare {source} --help`")
    return [convert_site(raw, out, name, recipe, workers) for name in sites]


def build_job(study: Study, out: str | Path) -> Path:
    """Write the NVFLARE job folder of a study; returns it (`fedfms.flare.job.build_job`)."""
    from fedfms.flare import job

    return job.build_job(study, Path(out))


@dataclass(frozen=True)
class RunResult:
    """The result of `run`.

    Attributes:
        model: the file of the global model, for `predict` and `export_model`.
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

    def site_model(self, site: str) -> Path:
        """The file of the model that a site uses: its personal one, or the global one if the method has none."""
        own = self.folder / site / "models" / "personal_final.pt"
        return own if own.is_file() else self.model


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
        StudyError: the study names no sites, or the folder holds something else.
        FedfmsError: of a site, with the site and the round.
    """
    from fedfms.experiments.choice import name_phantom_sites
    from fedfms.experiments.inprocess_engine import read_rounds, run_in_process
    from fedfms.experiments.plan import Run
    from fedfms.experiments.result import RESULT
    from fedfms.files import locked
    from fedfms.reporting.tables import Key
    from fedfms.schema import read_json

    folder, study = Path(out), name_phantom_sites(study)
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
        _claim(folder, study)
        if not (folder / RESULT).is_file():
            run_in_process(Run(Key(study.method, study.seed), study), chosen, folder, after_round)
        content = read_json(folder / RESULT, StudyError, do="name another folder")
    return RunResult(folder, folder / "server.pt", content["curve"], content["models"])


def _claim(folder: Path, study: Study) -> None:
    """Record the study of a new run, or check that the run in `folder` is of this study."""
    from fedfms.files import write_atomic
    from fedfms.schema import read_json

    path, do = folder / _STUDY, "name another folder"
    if path.is_file():
        if read_json(path, StudyError, do=do) != study.to_dict():
            raise StudyError(f"{folder.name} holds a run of another study", where="run", do=do)
    elif any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise StudyError(f"{folder.name} contains something other than a run", where="run", do=do)
    else:
        write_atomic(path, json.dumps(study.to_dict(), indent=1))


def predict(
    model: str | Path, images: str | Path, out: str | Path, *, checkpoint: str | Path | None = None,
    overlays: bool = False, settings: SiteSettings | None = None,
) -> list[Outcome]:  # fmt: skip
    """Write the masks of an image, a volume, or a folder of them to `out`; returns an outcome for each input.

    Args:
        model: a model file of a run, or an export; one without a site's private tensors gives a warning.
        checkpoint: the pre-trained weights that the study started from, if the settings name no folder.

    Raises:
        FedfmsError: the model cannot be loaded, or there is no input.
    """
    from fedfms.inference.inputs import find_inputs
    from fedfms.inference.outputs import OutputFolder
    from fedfms.inference.predict import predict as predict_inputs

    loaded, rule = _open(model, checkpoint, settings or load_settings())
    inputs = find_inputs(Path(images), rule, Path(out))
    batch = loaded.study.train.batch_size
    folder = OutputFolder(Path(out), loaded.file.about())
    return predict_inputs(loaded, inputs, folder, batch_size=batch, overlays=overlays)


def export_model(
    model: str | Path, out: str | Path, *, checkpoint: str | Path | None = None,
    formats: Sequence[str] = ("safetensors", "onnx", "bundle"), licence: str = "not stated",
) -> list[str]:  # fmt: skip
    """Export a model with its card, as safetensors, ONNX and MONAI bundle; returns the names of the files.

    Args:
        model, checkpoint: as for `predict`.

    Raises:
        FedfmsError: the model cannot be loaded, or the export cannot be written.
    """
    from fedfms.inference.export import export

    loaded, rule = _open(model, checkpoint, replace(load_settings(), device="cpu"))  # a trace stores its device
    return export(loaded, rule, Path(out), formats=formats, licence=licence)


def _open(model: str | Path, checkpoint: str | Path | None, settings: SiteSettings) -> tuple[LoadedModel, InputRule]:
    from fedfms.inference.loading import open_model

    path = None if checkpoint is None else Path(checkpoint)
    loaded, rule = open_model(Path(model), checkpoint=path, settings=settings)
    if loaded.note:
        warnings.warn(loaded.note, stacklevel=3)
    return loaded, rule


def make_kits(project: str | Path, out: str | Path, passphrase: str) -> list[NewKit]:
    """Create a federation: its root, encrypted with `passphrase`, and a kit for each participant.

    Raises:
        ProvisioningError: the project file is not valid, the passphrase is too short, or the folder exists.
    """
    from fedfms.provisioning.deployment import create_federation
    from fedfms.provisioning.passphrase import check_length

    check_length(passphrase)
    return create_federation(Path(project), Path(out), passphrase)


def recipe(
    method: str, study: str | Path | Study, *, name: str = "", preset: str | None = None, rounds: int | None = None,
    sites: Sequence[str] | None = None, held_out: Sequence[str] | None = None, seed: int | None = None,
    checkpoint: str | Path | None = None, overrides: Mapping[str, Any] | None = None,
) -> FedfmsRecipe:  # fmt: skip
    """An NVFLARE recipe: `recipe("fedmsa", study="phantom", rounds=3).execute(SimEnv(num_clients=3))`.

    Args:
        study: as for `load_study`, whose other arguments follow; or what it returned, without other arguments.
        name: of the job; default: STUDY-METHOD.

    Raises:
        StudyError: as `load_study`; or a loaded study is of another method, or has other arguments.
    """
    from fedfms.flare.recipe import FedfmsRecipe

    values = (preset, rounds, sites, held_out, seed, checkpoint, overrides)
    if not isinstance(study, Study):
        study = load_study(
            study, method, preset=preset, rounds=rounds, sites=sites, held_out=held_out, seed=seed,
            checkpoint=checkpoint, overrides=overrides,
        )  # fmt: skip
    elif study.method != method or any(value is not None for value in values):
        what = f"the study is loaded already, for method {study.method}"
        raise StudyError(what, where=study.name, do="give its method, rounds, sites and overrides to load_study")
    return FedfmsRecipe(study, name)
