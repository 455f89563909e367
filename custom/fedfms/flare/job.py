"""From a study to an NVFLARE job folder: JSON without code and weights, the same bytes for the same study.

A job contains the whole study, resolved, but no path of a site (`fedfms.settings`).
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import AliasPath, Field
from pydantic.dataclasses import dataclass

import fedfms
from fedfms.errors import StudyError
from fedfms.files import replace_folder
from fedfms.flare.messages import SUBMIT_MODEL, TRAIN, VAL_DICE, VALIDATE
from fedfms.flare.nvflare_cli import LENIENT
from fedfms.flare.resume import CLIENT_CONFIG, job_ids, sent_study
from fedfms.flare.tracking import receiver, sender
from fedfms.methods import (
    make_method,
    plugin_origins,
    required_updates,
    resolve_study,
    selects_best_model,
    training_sites,
)
from fedfms.schema import parse, read_json
from fedfms.study import Study

APP = "app"
_SERVER = "config_fed_server.json"
_NOTE = "README.txt"
_ANOTHER = "name another folder"

_BYOC = """\
NVFLARE runs components of other packages only in a job that has this folder, or where the site's
`local/resources.json` allows `fedfms.` by name.
"""
_INSTALLED = "It holds no code: the package is installed at the site.\n"
_NOT_BUNDLED = shutil.ignore_patterns("__pycache__", "*.pyc", "preprocessing", "provisioning", "cli", "__main__.py")
_BUNDLED = "It holds a copy of the package, for sites that have none installed.\n"


def build_job(study: Study, out: Path, *, bundle_code: bool = False, resume: Sequence[str] = ()) -> Path:
    """Write the job folder of a study, resolved for its method, to `out`, replacing an older job; returns `out`.

    Args:
        bundle_code: copy this package into the job, for sites without it.
        resume: ids of the jobs that this one resumes (`fedfms.flare.resume`), the oldest first.

    Raises:
        StudyError: the study's method or backbone is unknown, or they are incompatible; it uses MLflow, which is not
            installed; `out` contains something other than a job.
    """
    method = make_method(study.method, study.method_options)
    study = resolve_study(study, method)
    if method.centralised and not study.sites:
        raise StudyError(
            f"{study.method} pools the data of all sites, but the study names no sites", where=study.name,
            do="name them: sites=[a, b]",
        )  # fmt: skip
    try:
        target = out.resolve()
        if not _is_replaceable(target):
            what = f"{out.name} contains something other than a job of this package"
            raise StudyError(what, where="job build", do=_ANOTHER)
        replace_folder(target, partial(_write, study, out.name, bundle_code, job_ids(resume)))
    except OSError as error:
        raise StudyError(f"cannot write {out.name} ({error.strerror})", where="job build", do=_ANOTHER) from None
    return out


def _is_replaceable(folder: Path) -> bool:
    """Whether `folder` does not exist, is empty, or is a job of `build_job` without additional files."""
    if not folder.is_dir():
        return not folder.exists()
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    ours = {"meta.json", f"{APP}/config/{_SERVER}", f"{APP}/config/{CLIENT_CONFIG}", f"{APP}/custom/{_NOTE}"}
    bundled = f"{APP}/custom/fedfms/"
    known = (name.startswith(bundled) or Path(name).name.startswith(".__nvfl_") for name in files - ours)
    return not files or (ours <= files and all(known))


def _write(study: Study, name: str, bundle_code: bool, resume: Sequence[str], folder: Path) -> None:
    custom, config = folder / APP / "custom", folder / APP / "config"
    custom.mkdir(parents=True)
    config.mkdir()
    extra: dict[str, Any] = {"resume": list(resume)} if resume else {}
    if origins := plugin_origins(study):
        extra["plugins"] = {origin.distribution: origin.version for origin in origins}
    files = {
        folder / "meta.json": _meta(study, name),
        config / _SERVER: _server(study, extra),
        config / CLIENT_CONFIG: _client(study, extra),
    }
    for path, content in files.items():
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (custom / _NOTE).write_text(_BYOC + (_BUNDLED if bundle_code else _INSTALLED), encoding="utf-8")
    if bundle_code:
        package = Path(fedfms.__file__).parent
        shutil.copytree(package, custom / "fedfms", ignore=_NOT_BUNDLED)


def read_study(job: Path) -> Study:
    """The study in a job folder, as its sites receive it.

    Raises:
        StudyError: it is not a job of this package, or its study is not valid.
    """
    raw = sent_study(job / APP / "config" / CLIENT_CONFIG)
    if raw is None:
        raise StudyError("this is not a job of this package", where=job.name, do="name its folder")
    try:
        return Study.from_dict(raw)
    except StudyError as error:
        raise error.at(job.name) from None
    except (AttributeError, TypeError):
        raise StudyError("its study is not valid", where=job.name, do="make it with `fedfms job build`") from None


@dataclass(frozen=True, config=LENIENT)
class _Client:
    """Of a job's configuration of a site: the packages of plug-ins that it was built with."""

    plugins: dict[str, str] = Field(
        default_factory=dict, validation_alias=AliasPath("executors", 0, "executor", "args", "plugins")
    )


def required_plugins(job: Path) -> dict[str, str]:
    """The packages of plug-ins that a job was built with, {distribution: version}.

    Raises:
        StudyError: it is not a job of this package.
    """
    where, do = job.name, "make it with `fedfms job build`"
    raw = read_json(job / APP / "config" / CLIENT_CONFIG, StudyError, where=where, do=do)
    return parse(_Client, raw, StudyError, where=where, do=do).plugins


def brings_code(job: Path) -> bool:
    """Whether a job's `app/custom` contains more than our note, which is removed when the job is submitted."""
    custom = job / APP / "custom"
    return custom.is_dir() and not {path.name for path in custom.iterdir()} <= {_NOTE}


def with_checkpoint(path: Path) -> dict[str, str]:
    """The overrides with which a study names a weight file: name and SHA-256, never the folder.

    Raises:
        StudyError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    except OSError as error:
        what = f"cannot read checkpoint {path.name} ({error.strerror})"
        raise StudyError(what, where="job build", do="name another file") from error
    return {"model.checkpoint": path.name, "model.checkpoint_sha256": digest.hexdigest()}


def _meta(study: Study, name: str) -> dict[str, Any]:
    named = [*training_sites(study), *study.held_out] if study.sites else []
    return {
        "name": name,
        "resource_spec": {},
        "min_clients": required_updates(study),
        "deploy_map": {APP: ["server", *named] if named else ["@ALL"]},
    }


def _server(study: Study, extra: Mapping[str, Any]) -> dict[str, Any]:
    generator = "nvflare.app_common.shareablegenerators.full_model_shareable_generator.FullModelShareableGenerator"
    locator = "nvflare.app_opt.pt.file_model_locator.PTFileModelLocator"
    selector = _component("selector", "fedfms.flare.selector.AcceptedModelSelector", key_metric=VAL_DICE)
    filters = [{"path": "fedfms.flare.dispatch.DispatchFilter", "args": {}}]
    return {
        "format_version": 2,
        "task_data_filters": [{"tasks": [TRAIN, VALIDATE], "filters": filters}],
        "workflows": _workflows(study, resumed="resume" in extra),
        "components": [
            _component("persistor", "fedfms.flare.persistor.SharedModelPersistor", study=study.to_dict(), **extra),
            _component("shareable_generator", generator),
            _component(
                "aggregator", "fedfms.flare.aggregator.RoundServerAggregator", min_sites=required_updates(study)
            ),
            *([selector] if selects_best_model(study) else []),
            _component("locator", locator, pt_persistor_id="persistor"),
            _component("recorder", "fedfms.flare.recorder.Recorder"),
            *receiver(study),
        ],
    }


def _workflows(study: Study, *, resumed: bool) -> list[dict[str, Any]]:
    federation = study.federation
    nvflare = "nvflare.app_common.workflows"
    return [
        _component(
            "train",
            "fedfms.flare.controller.ResumedScatterAndGather" if resumed
            else f"{nvflare}.scatter_and_gather.ScatterAndGather",
            # NVFLARE counts every answer, also of held-out sites, before it starts the straggler timeout.
            min_clients=required_updates(study) + (len(study.held_out) if study.sites else 0),
            ignore_result_error=True,  # the aggregator decides, and reports the reasons of all sites
            num_rounds=study.train.rounds,
            start_round=0,
            wait_time_after_min_received=federation.straggler_timeout_s,
            train_timeout=federation.round_timeout_s,
            allow_empty_global_weights=True,  # method `local` shares nothing
            aggregator_id="aggregator",
            persistor_id="persistor",
            shareable_generator_id="shareable_generator",
            train_task_name=TRAIN,
        ),
        _component(
            "evaluate", f"{nvflare}.global_model_eval.GlobalModelEval",
            model_locator_id="locator", validation_timeout=federation.straggler_timeout_s,
        ),
    ]  # fmt: skip


def _client(study: Study, extra: Mapping[str, Any]) -> dict[str, Any]:
    executor = {"path": "fedfms.flare.executor.SiteExecutor", "args": {"study": study.to_dict(), **extra}}
    return {
        "format_version": 2,
        "executors": [{"tasks": [TRAIN, VALIDATE, SUBMIT_MODEL], "executor": executor}],
        "components": sender(study),
    }


def _component(id_: str, path: str, **args: Any) -> dict[str, Any]:
    return {"id": id_, "path": path, "args": args}
