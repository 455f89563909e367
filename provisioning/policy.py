"""Write a kit's `local/`: the policy of its owner, who can change it later.

The allow-list of classes that a job may use names the classes of this package's jobs one by one. NVFLARE's default
list and a prefix `fedfms.` would be too wide: NVFLARE calls whatever a path names, also a function, and some of its
default classes send a job's log to the server.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fedfms.errors import ProvisioningError
from fedfms.files import write_atomic
from fedfms.provisioning.encryption import KIT_PLACEHOLDER
from fedfms.schema import parse, read_json

SCOPE = "study"
REVOKED = "revoked_serials.json"
_FILTER = "fedfms.flare.privacy_filter.PrivacyFilter"
SITE_CLASSES = (
    "fedfms.flare.executor.SiteExecutor",
    "fedfms.flare.tracking.Curves",  # not NVFLARE's, which sends the events that a job names, including errors
)
SERVER_CLASSES = (
    "fedfms.flare.aggregator.RoundServerAggregator",
    "fedfms.flare.persistor.SharedModelPersistor",
    "fedfms.flare.dispatch.DispatchFilter",
    "fedfms.flare.recorder.Recorder",
    "fedfms.flare.controller.ResumedScatterAndGather",
    "fedfms.flare.selector.AcceptedModelSelector",
    "nvflare.app_common.shareablegenerators.full_model_shareable_generator.FullModelShareableGenerator",
    "nvflare.app_common.workflows.global_model_eval.GlobalModelEval",
    "nvflare.app_common.workflows.scatter_and_gather.ScatterAndGather",
    "nvflare.app_opt.pt.file_model_locator.PTFileModelLocator",
    "nvflare.app_opt.tracking.mlflow.mlflow_receiver.MLflowReceiver",
    "nvflare.app_opt.tracking.tb.tb_receiver.TBAnalyticsReceiver",
)
# By role. Nobody brings code, and nobody reads a site's files in the admin console (`cat`, `grep`: shell_commands).
_NOTHING = dict.fromkeys(
    ("submit_job", "clone_job", "manage_job", "download_job", "operate", "shell_commands", "byoc",
     "server-predeployed-flwr"), "none",
)  # fmt: skip
_PERMISSIONS = {
    "project_admin": _NOTHING
    | dict.fromkeys(("submit_job", "clone_job", "manage_job", "download_job", "view", "operate"), "any"),
    "org_admin": _NOTHING | {"manage_job": "o:submitter", "view": "any", "operate": "o:site"},
    "lead": _NOTHING
    | {"submit_job": "any", "view": "any"}
    | dict.fromkeys(("clone_job", "manage_job", "download_job"), "n:submitter"),
    "member": _NOTHING | {"view": "any"},
}
_SETTINGS = """\
# Settings of this site, which no job can change. Edit, and restart the client.
#data_root: /data/fedfms          # holds <dataset>/<site>/manifest.json, written by `fedfms prepare`
#checkpoints: /data/checkpoints   # holds the weight files that jobs name, each with its SHA-256
#checkpoint_sha256: []             # accept only these hashes; empty: any file that a job names
#device: cuda:0                   # default: cuda if available
#cache: /scratch/fedfms           # as private as the images
#cache_mb: 20000                  # limit of its size; the default
#min_cases: 10                    # suppress scores over fewer images
#plugins: []                       # installed packages whose methods, backbones and data sets a job may use
#live_metrics: false              # no live curves leave the site, whatever a job asks for
#threads: 1                       # torch's CPU threads; default: the cores, shared by the sites on this machine
#workers: 0                       # loader processes
#attention: plain                 # segment-anything's own code, in several times the memory
#cpu_tuning: false                # torch's and the C library's defaults for products and memory, slower
#gradient_checkpointing: true     # recomputes blocks in the backward pass: a fifth of the activations' memory, slower
#micro_batch: 2                   # slices in a micro-batch, for less memory
"""


class _Filter(BaseModel, extra="allow"):
    path: str
    args: dict[str, Any] = {}


class _Scope(BaseModel, extra="allow"):
    name: str
    task_result_filters: list[_Filter] = []


class PrivacyPolicy(BaseModel, extra="allow"):
    """NVFLARE's `privacy.json`, with whatever else a site has written into it."""

    scopes: list[_Scope]


def shared_sizes(jobs: Iterable[Path]) -> dict[str, int]:
    """Bytes of each tensor that the jobs share, by name; the maximum over the jobs.

    Raises:
        StudyError: a folder is not a job of this package.
    """
    from fedfms.flare.job import read_study  # imports torch, which opening a kit does not need
    from fedfms.reporting.cost.traffic import shared_bytes

    found: dict[str, int] = {}
    for job in jobs:
        for name, size in shared_bytes(read_study(job)).items():
            found[name] = max(found.get(name, 0), size)
    return found


def privacy_policy(tensors: Mapping[str, int]) -> dict[str, Any]:
    """A site's `privacy.json`: one scope, for every job, with the allow-list of tensors.

    Args:
        tensors: bytes by name; a reply holds each tensor once, and no compressed form is larger.
    """
    filters = [{"path": _FILTER, "args": _filter_arguments(tensors)}]
    scope = {"name": SCOPE, "properties": {}, "task_result_filters": filters}
    return {"scopes": [scope], "default_scope": SCOPE}


def _filter_arguments(tensors: Mapping[str, int]) -> dict[str, Any]:
    max_mb = math.ceil(sum(tensors.values()) / 1e3) / 1e3
    return {"tensors": dict(sorted(tensors.items())), "max_mb": max_mb, "max_tensors": len(tensors)}


def allow(kit: Path, jobs: Iterable[Path]) -> int:
    """Add the tensors that the jobs share to a site's allow-list; returns the number of names on it.

    The rest of the site's policy, for example its own filters, is unchanged.

    Raises:
        ProvisioningError: it is not a site's kit with a privacy filter of this package.
        StudyError: a folder is not a job.
    """
    path = kit / "local" / "privacy.json"
    try:
        policy = parse(PrivacyPolicy, read_json(path, ProvisioningError), ProvisioningError)
        filters = [one for scope in policy.scopes if scope.name == SCOPE for one in scope.task_result_filters]
        (arguments,) = (one.args for one in filters if one.path == _FILTER)
        before = parse(dict[str, int], arguments.get("tensors"), ProvisioningError)
    except (ValueError, ProvisioningError):
        what = "this kit has no local/privacy.json with a fedfms privacy filter"
        raise ProvisioningError(what, where=kit.name) from None
    more = shared_sizes(jobs)
    tensors = {name: max(before.get(name, 0), more.get(name, 0)) for name in {*before, *more}}
    arguments.update(_filter_arguments(tensors))
    _write(path, policy.model_dump(exclude_unset=True))
    return len(tensors)


def write_policy(kit: Path, kind: str, tensors: Mapping[str, int], max_job_mb: int) -> None:
    """Write `local/` of a kit that NVFLARE has just made; `kind` is NVFLARE's type of a participant."""
    from fedfms.settings import FILE_NAME

    local = kit / "local"
    if kind == "admin":
        return
    resources = json.loads((local / "resources.json.default").read_text(encoding="utf-8"))
    resources["class_list_enforcement_mode"] = "enforce"
    resources["app_validator"] = {"path": "fedfms.flare.job_validator.JobValidator", "args": {"max_mb": max_job_mb}}
    _write(local / "authorization.json", {"format_version": "1.0", "permissions": _PERMISSIONS})
    if kind == "server":
        _set_server(resources)
        _write(local / REVOKED, {"serials": {}})
    else:
        resources["class_allow_list"] = list(SITE_CLASSES)
        resources["allow_log_streaming"] = False  # a job's log names pseudonymous cases and the site's paths
        resources["components"] = [one for one in resources["components"] if one["id"] != "site_log_streamer"]
        _write(local / "privacy.json", privacy_policy(tensors))
        write_atomic(local / FILE_NAME, _SETTINGS, mode=0o600)
    # A relative path, without the placeholder: a site's kit matches its file list bit for bit when it is opened.
    path, args = "fedfms.flare.certificate_expiry.CertificateExpiryCheck", {"file": f"startup/{kind}.crt"}
    resources["components"].append({"id": "expiry", "path": path, "args": args})
    for name in ("resources.json", "resources.json.default"):  # `nvflare deploy prepare` uses the latter only
        _write(local / name, resources)


def _set_server(resources: dict[str, Any]) -> None:
    """Store jobs and snapshots in the kit: NVFLARE's default is in /tmp, shared by all servers of the machine."""
    resources["class_allow_list"] = list(SERVER_CLASSES)
    resources["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"] = f"{KIT_PLACEHOLDER}/store/snapshots"
    for one in resources["components"]:
        if one["id"] == "job_manager":
            one["args"]["uri_root"] = f"{KIT_PLACEHOLDER}/store/jobs"
    path, args = "fedfms.flare.revocation.CertificateRevocation", {"file": f"{KIT_PLACEHOLDER}/local/{REVOKED}"}
    resources["components"].append({"id": "revocation", "path": path, "args": args})


def _write(path: Path, content: dict[str, Any]) -> None:
    write_atomic(path, json.dumps(content, indent=2) + "\n", mode=0o600)
