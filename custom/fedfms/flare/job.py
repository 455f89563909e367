"""From a study to an NVFLARE job folder: JSON only, no code and no weights, the same bytes for the same study.

The whole study is in the job, resolved; a site's own paths are not (`fedfms.settings`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import fedfms
from fedfms.errors import StudyError
from fedfms.files import replace_folder
from fedfms.flare.messages import SUBMIT_MODEL, TRAIN, VAL_DICE, VALIDATE
from fedfms.flare.resume import CLIENT_CONFIG, job_ids, sent_study
from fedfms.flare.tracking import receiver, sender
from fedfms.methods import make_method, required_updates, resolve_study, selects_best_model, training_sites
from fedfms.study import Study

APP = "app"
_SERVER = "config_fed_server.json"
_NOTE = "README.txt"
_ELSEWHERE = "name another folder"

_BYOC = """\
NVFLARE runs components of other packages only in a job that has this folder, or where the site's
`local/resources.json` allows `fedfms.` by name.
"""
_INSTALLED = "It holds no code: the package is installed at the site.\n"
_BUNDLED = "It holds a copy of the package, for sites that have none installed.\n"


def build_job(study: Study, out: Path, *, bundle_code: bool = False, resume: Sequence[str] = ()) -> Path:
    """Write the job folder of a study, as its method takes it, to `out`, replacing an older job; returns `out`.

    Args:
        bundle_code: put a copy of this package into the job, for sites that have none.
        resume: ids of the jobs that this one goes on from (`fedfms.flare.resume`), the oldest first.

    Raises:
        StudyError: the study's method or backbone is unknown, or they do not go together; it wants MLflow, which is
            not installed; `out` holds something that is no job.
    """
    method = make_method(study.method, study.method_options)
    study = resolve_study(study, method)
    if method.centralised and not study.sites:
        raise StudyError(
            f"{study.method} pools the data of the sites, and the study names none", where=study.name,
            do="name them: sites=[a, b]",
        )  # fmt: skip
    try:
        target = out.resolve()
        if not _replaceable(target):
            raise StudyError(f"{out.name} holds something that is no job of ours", where="job build", do=_ELSEWHERE)
        replace_folder(target, partial(_write, study, out.name, bundle_code, job_ids(resume)))
    except OSError as error:
        raise StudyError(f"cannot write {out.name} ({error.strerror})", where="job build", do=_ELSEWHERE) from None
    return out


def _replaceable(folder: Path) -> bool:
    """Nothing there, an empty folder, or a job that `build_job` wrote and nobody added to."""
    if not folder.exists():
        return True
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    of_app = f"config/{_SERVER}", f"config/{CLIENT_CONFIG}", f"custom/{_NOTE}"
    ours = {"meta.json", *(f"{APP}/{name}" for name in of_app)}
    bundle = f"{APP}/custom/fedfms/"
    others = {
        name for name in files - ours
        if not name.startswith(bundle) and not Path(name).name.startswith(".__nvfl_")
    }  # fmt: skip
    return not files or (ours <= files and not others)


def _write(study: Study, name: str, bundle_code: bool, resume: Sequence[str], folder: Path) -> None:
    config, custom = folder / APP / "config", folder / APP / "custom"
    config.mkdir(parents=True)
    custom.mkdir()
    _write_json(folder / "meta.json", _meta(study, name))
    _write_json(config / _SERVER, _server(study, resume))
    _write_json(config / CLIENT_CONFIG, _client(study, resume))
    (custom / _NOTE).write_text(_BYOC + (_BUNDLED if bundle_code else _INSTALLED), encoding="utf-8")
    if bundle_code:
        package = Path(fedfms.__file__).parent
        shutil.copytree(package, custom / "fedfms", ignore=shutil.ignore_patterns("__pycache__", "*.pyc", "*.so"))


def read_study(job: Path) -> Study:
    """The study that a job folder holds, as its sites get it.

    Raises:
        StudyError: it is no job of this package, or its study is none.
    """
    raw = sent_study(job / APP / "config" / CLIENT_CONFIG)
    if raw is None:
        raise StudyError("this is not a job of this package", where=job.name, do="name its folder")
    try:
        return Study.from_dict(raw)
    except StudyError as error:
        raise error.at(job.name) from None
    except (AttributeError, TypeError):
        raise StudyError("its study is none", where=job.name, do="make it with `fedfms job build`") from None


def brings_code(job: Path) -> bool:
    """Whether there is more in a job's `app/custom` than our note, which is left out when the job is submitted."""
    custom = job / APP / "custom"
    return custom.is_dir() and not {path.name for path in custom.iterdir()} <= {_NOTE}


def with_checkpoint(path: Path) -> dict[str, str]:
    """The overrides by which a study names a file of weights: its name and its SHA-256, never its folder.

    Raises:
        StudyError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    except OSError as error:
        raise StudyError(
            f"cannot read checkpoint {path.name}", where="job build", do="name a file that is there"
        ) from error
    return {"model.checkpoint": path.name, "model.checkpoint_sha256": digest.hexdigest()}


def _meta(study: Study, name: str) -> dict[str, Any]:
    named = [*training_sites(study), *study.held_out] if study.sites else []
    return {
        "name": name,
        "resource_spec": {},
        "min_clients": required_updates(study),
        "deploy_map": {APP: ["server", *named] if named else ["@ALL"]},
    }


def _server(study: Study, resume: Sequence[str] = ()) -> dict[str, Any]:
    return {
        "format_version": 2,
        "task_data_filters": [
            {
                "tasks": [TRAIN, VALIDATE],
                "filters": [{"path": "fedfms.flare.dispatch.DispatchFilter", "args": {}}],
            }
        ],
        "workflows": _workflows(study, resume),
        "components": [
            _component(
                "persistor", "fedfms.flare.persistor.SharedModelPersistor", study=study.to_dict(), **_on(resume)
            ),
            _component(
                "shareable_generator",
                "nvflare.app_common.shareablegenerators.full_model_shareable_generator.FullModelShareableGenerator",
            ),
            _component(
                "aggregator", "fedfms.flare.aggregator.RoundServerAggregator", min_sites=required_updates(study)
            ),
            *_selector(study),
            _component(
                "locator", "nvflare.app_opt.pt.file_model_locator.PTFileModelLocator", pt_persistor_id="persistor"
            ),
            _component("recorder", "fedfms.flare.recorder.Recorder"),
            *receiver(study),
        ],
    }


def _on(resume: Sequence[str]) -> dict[str, Any]:
    """The argument of a component in a job that goes on from others."""
    return {"resume": list(resume)} if resume else {}


def _workflows(study: Study, resume: Sequence[str]) -> list[dict[str, Any]]:
    federation = study.federation
    plain = "nvflare.app_common.workflows.scatter_and_gather.ScatterAndGather"
    return [
        _component(
            "train",
            "fedfms.flare.controller.ResumedScatterAndGather" if resume else plain,
            # Every answer counts for NVFLARE, a held-out site's too, and starts the wait for the others.
            min_clients=required_updates(study) + (len(study.held_out) if study.sites else 0),
            ignore_result_error=True,  # the aggregator decides, and tells the reasons of all sites
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
            "evaluate",
            "nvflare.app_common.workflows.global_model_eval.GlobalModelEval",
            model_locator_id="locator",
            validation_timeout=federation.straggler_timeout_s,
        ),
    ]


def _selector(study: Study) -> list[dict[str, Any]]:
    if not selects_best_model(study):
        return []
    return [_component("selector", "fedfms.flare.selector.AcceptedModelSelector", key_metric=VAL_DICE)]


def _client(study: Study, resume: Sequence[str]) -> dict[str, Any]:
    executor = {"path": "fedfms.flare.executor.SiteExecutor", "args": {"study": study.to_dict(), **_on(resume)}}
    return {
        "format_version": 2,
        "executors": [{"tasks": [TRAIN, VALIDATE, SUBMIT_MODEL], "executor": executor}],
        "components": sender(study),
    }


def _component(id_: str, path: str, **args: Any) -> dict[str, Any]:
    return {"id": id_, "path": path, "args": args}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
