"""Checks of a job against the site's own policy, by NVFLARE's classes and ours, as they will judge it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.fl_constant import FilterKey
from nvflare.apis.fl_exception import UnsafeComponentError
from nvflare.apis.workspace import Workspace
from nvflare.app_common.widgets.component_path_authorizer import ComponentPathAuthorizer
from nvflare.private.fed.app.fl_conf import create_privacy_manager

from fedfms.compression import CODECS, layout
from fedfms.errors import ProvisioningError, StudyError
from fedfms.flare.job import APP, brings_code
from fedfms.flare.job_validator import JobValidator
from fedfms.flare.preflight.context import Context, Finding, fail, ok, read_kit, read_object, warn
from fedfms.flare.privacy_filter import SharedOnly
from fedfms.flare.resume import CLIENT_CONFIG
from fedfms.reporting.cost.traffic import shared_tensors
from fedfms.training.build import build_on_meta
from fedfms.units import size_text

_VALIDATOR = f"{JobValidator.__module__}.{JobValidator.__name__}"
_ALLOW = "if the site agrees: `python -m provisioning allow JOB --kit KIT`, then restart the client"


def taken(context: Context) -> Finding:
    """The site takes the job: it names this site, is small, brings no code and builds no class off the site's list."""
    folder = _folder(context)
    places = _json(folder / "meta.json").get("deploy_map", {}).get(APP, [])
    if context.site not in places and "@ALL" not in places:
        return fail(f"the job names other sites: {context.site} takes no part", "ask the lead for this study's job")
    validator = read_kit(context.kit, "local/resources.json").get("app_validator", {})
    ours = validator.get("path") == _VALIDATOR
    if ours:
        reason, _ = JobValidator(**validator.get("args", {})).validate(str(folder / APP))
        if reason:
            return fail(reason, "the site refuses it; ask the lead for another")
    code = brings_code(folder)
    if code and _code_is_refused(context):
        return fail("the job brings code, and the site lets nobody bring any", "ask the lead for a job without")
    refused = _refused_classes(context, folder)
    if refused:
        return fail(f"the job builds {', '.join(refused)}, off the site's class_allow_list", "ask the lead what for")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    brings = "brings code, as the site allows" if code else "no code"
    seen = f"{context.study.method} on {context.study.name}, {size / 1e3:,.0f} kB, {brings}"
    if not ours:
        return warn(f"{seen}; resources.json names no app_validator of ours", "take the kit's own resources.json again")
    return ok(seen)


def _folder(context: Context) -> Path:
    assert context.job is not None, "a check that needs a study runs with a job"
    return context.job


def _json(path: Path) -> dict[str, Any]:
    content = read_object(path)
    if content is None:
        raise StudyError(f"{path.name} of the job is missing, or no JSON", do="name a job's folder")
    return content


def _code_is_refused(context: Context) -> bool:
    roles = read_kit(context.kit, "local/authorization.json").get("permissions", {})
    return all(isinstance(rights, dict) and rights.get("byoc", "none") == "none" for rights in roles.values())


def _refused_classes(context: Context, folder: Path) -> list[str]:
    judge, workspace = ComponentPathAuthorizer(), Workspace(str(context.kit), context.site)
    found = []
    for path in sorted(set(_paths(_json(folder / APP / "config" / CLIENT_CONFIG)))):
        try:
            judge.authorize_component_config({"path": path}, workspace=workspace)
        except UnsafeComponentError:
            found.append(path)
    return found


def _paths(value: Any) -> Iterator[str]:
    """Classes that a configuration names, however deep."""
    if isinstance(value, Mapping):
        if isinstance(value.get("path"), str):
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _paths(inner)


def leaves(context: Context) -> Finding:
    """The site's own scope lets the study's tensors leave: an update of zeros goes through its filters."""
    if context.held_out:
        return ok("the site is held out: no tensor leaves it")
    scope = str(_json(_folder(context) / "meta.json").get("scope") or "")
    filters = _filters(context, scope)
    own = [each for each in filters if isinstance(each, SharedOnly)]
    if not own:
        return fail("local/privacy.json has no filter of ours in the job's scope", "take the kit's own file again")
    forms = layout(shared_tensors(build_on_meta(context.study)), CODECS.get(context.study.federation.compression))
    # Zeros that take no memory, whatever size they are said to have.
    update = {name: np.broadcast_to(np.zeros((), dtype), shape) for name, (shape, dtype) in forms.items()}
    for each in own:
        reason = each.refusal(DXO(DataKind.WEIGHTS, data=update).to_shareable())
        if reason:
            return fail(f"the site would refuse each update: {reason}", _ALLOW)
    nbytes = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in forms.values())
    more = f"; {len(filters) - len(own)} filters of the site's own are not looked at" if len(filters) > len(own) else ""
    return ok(f"{len(forms)} tensors, {size_text(nbytes)} at most, are allowed{more}")


def _filters(context: Context, scope: str) -> list[Any]:
    """The filters of the site's scope, as NVFLARE makes them.

    Raises:
        ProvisioningError: `local/privacy.json` has no such scope, or does not load.
    """
    read_kit(context.kit, "local/privacy.json")
    try:
        manager = create_privacy_manager(Workspace(str(context.kit), context.site), names_only=False)
        found = manager.get_scope(scope)
    except Exception as error:  # noqa: BLE001 - a policy can name any class, which can raise anything
        kind = type(error).__name__
        raise ProvisioningError(f"local/privacy.json does not load ({kind})", do="take the kit's own again") from None
    if found is None:
        named = f"scope {scope!r}" if scope else "default scope"
        raise ProvisioningError(f"local/privacy.json has no {named}: the job is refused", do="ask the lead for another")
    return list(found.task_result_filters[FilterKey.OUT])
