"""Checks of a job against the site's policy, by the same classes of NVFLARE and of this package that enforce it."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.fl_constant import FilterKey
from nvflare.apis.fl_exception import UnsafeComponentError
from nvflare.apis.workspace import Workspace
from nvflare.app_common.widgets.component_path_authorizer import ComponentPathAuthorizer
from nvflare.private.fed.app.fl_conf import create_privacy_manager
from pydantic import AliasPath, Field
from pydantic.dataclasses import dataclass

from fedfms.compression import CODECS, layout
from fedfms.errors import ProvisioningError
from fedfms.flare.job import APP, brings_code, read_study
from fedfms.flare.job_validator import JobValidator
from fedfms.flare.nvflare_cli import LENIENT
from fedfms.flare.preflight.context import Context, Finding, fail, ok, warn
from fedfms.flare.privacy_filter import PrivacyFilter
from fedfms.flare.resume import CLIENT_CONFIG
from fedfms.plugins import installed_version
from fedfms.reporting.cost.traffic import shared_tensors
from fedfms.training.build import build_on_meta
from fedfms.units import size_text

_VALIDATOR = f"{JobValidator.__module__}.{JobValidator.__name__}"
_ALLOW = "if the site agrees: `fedfms kits allow JOB --kit KIT`, then restart the client"


@dataclass(frozen=True, config=LENIENT)
class JobDescription:
    """Of a job's `meta.json`: the sites that run it, and its privacy scope."""

    sites: list[str] = Field(default_factory=list, validation_alias=AliasPath("deploy_map", APP))
    scope: str | None = None


@dataclass(frozen=True, config=LENIENT)
class _Resources:
    """Of a kit's `resources.json`."""

    validator: str = Field(default="", validation_alias=AliasPath("app_validator", "path"))
    arguments: dict[str, Any] = Field(default_factory=dict, validation_alias=AliasPath("app_validator", "args"))


def accepted(context: Context) -> Finding:
    """The site accepts the job: it names this site, is small, brings no code, and uses only allowed classes."""
    folder = context.job_folder
    sites = context.read_job("meta.json", JobDescription).sites
    if context.site not in sites and "@ALL" not in sites:
        return fail(f"the job names other sites, not {context.site}", "ask the lead for this study's job")
    resources = context.read_kit("local/resources.json", _Resources)
    validated = resources.validator == _VALIDATOR
    if validated:
        reason, _ = JobValidator(**resources.arguments).validate(str(folder / APP))
        if reason:
            return fail(reason, "the site rejects it; ask the lead for another")
    code = brings_code(folder)
    roles: dict[str, Any] = context.read_kit("local/authorization.json").get("permissions", {}) if code else {}
    if code and all(isinstance(rights, dict) and rights.get("byoc", "none") == "none" for rights in roles.values()):
        return fail("the job brings code, and the site lets nobody bring code", "ask the lead for a job without")
    if rejected := _rejected_classes(context):
        what = f"the job uses {', '.join(rejected)}, not on the site's class_allow_list"
        return fail(what, "ask the lead for the reason")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    brings = "brings code, as the site allows" if code else "no code"
    seen = f"{context.study.method} on {context.study.name}, {size / 1e3:,.0f} kB, {brings}"
    if not validated:
        return warn(f"{seen}; resources.json names no fedfms app_validator", "restore the kit's resources.json")
    return ok(seen)


def plug_ins(context: Context) -> Finding:
    """The packages of plug-ins that the job was built with are installed here, in these versions, and allowed."""
    required = context.required_plugins
    allowed = context.settings.plugins
    found, do = [], []
    for name, version in required.items():
        here = installed_version(name)
        found.append(f"{name} {here or 'is not installed'} (the lead's: {version})")
        if here != version:
            do.append(f"install {name}=={version}")
        if name not in allowed:
            found[-1] += ", not allowed here"
            do.append(f"if the site agrees, add `plugins: [{name}]` to fedfms_site.yaml")
    study = read_study(context.job_folder)
    if do:
        return fail(f"{study.method} on {study.model.backbone}: {'; '.join(found)}", "; ".join(do))
    return ok(f"{study.method} on {study.model.backbone}: {'; '.join(found) or 'built in'}")


def _rejected_classes(context: Context) -> list[str]:
    authorizer, workspace = ComponentPathAuthorizer(), Workspace(str(context.kit), context.site)
    rejected = []
    for path in sorted(set(class_paths(context.read_job(f"{APP}/config/{CLIENT_CONFIG}")))):
        try:
            authorizer.authorize_component_config({"path": path}, workspace=workspace)
        except UnsafeComponentError:
            rejected.append(path)
    return rejected


def class_paths(value: Any) -> Iterator[str]:
    """All class paths in a configuration."""
    if isinstance(value, Mapping):
        if isinstance(value.get("path"), str):
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from class_paths(inner)


def privacy_filter(context: Context) -> Finding:
    """The site's privacy filter lets the study's tensors leave: an update of zeros passes it."""
    if context.held_out:
        return ok("held-out site: no tensor leaves it")
    filters = _filters(context, context.read_job("meta.json", JobDescription).scope or "")
    own = [each for each in filters if isinstance(each, PrivacyFilter)]
    if not own:
        what = "local/privacy.json has no fedfms privacy filter in the job's scope"
        return fail(what, "restore the kit's privacy.json")
    forms = layout(shared_tensors(build_on_meta(context.study)), CODECS.get(context.study.federation.compression))
    # Broadcast zeros take no memory, whatever their shape.
    update = {name: np.broadcast_to(np.zeros((), dtype), shape) for name, (shape, dtype) in forms.items()}
    for each in own:
        reason = each.rejection_reason(DXO(DataKind.WEIGHTS, data=update).to_shareable())
        if reason:
            return fail(f"the site would block each update: {reason}", _ALLOW)
    nbytes = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in forms.values())
    others = len(filters) - len(own)
    more = f"; {others} filters of the site are not checked" if others else ""
    return ok(f"{len(forms)} tensors, at most {size_text(nbytes)}, are allowed{more}")


def _filters(context: Context, scope: str) -> list[Any]:
    """The filters of the site's scope, as NVFLARE makes them."""
    context.read_kit("local/privacy.json")
    try:
        manager = create_privacy_manager(Workspace(str(context.kit), context.site), names_only=False)
        found = manager.get_scope(scope)
    except Exception as error:  # noqa: BLE001 - a policy can name any class, which can raise anything
        what = f"local/privacy.json cannot be loaded ({type(error).__name__})"
        raise ProvisioningError(what, do="restore the kit's privacy.json") from None
    if found is None:
        named = f"scope {scope!r}" if scope else "default scope"
        raise ProvisioningError(f"local/privacy.json has no {named}: the job is rejected", do="ask the lead for a job")
    return list(found.task_result_filters[FilterKey.OUT])
