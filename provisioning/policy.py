"""A kit's `local/`: what its owner allows. Written once, with the kit; from then on it is the site's to change.

The list of classes that a job may build is the classes that our jobs name, one by one, and not NVFLARE's default and
`fedfms.`: NVFLARE calls whatever a path names, be it a function, and its default has parts that send a job's log away.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedfms.errors import ProvisioningError
from fedfms.files import write_atomic
from provisioning.sealed import PLACE

SCOPE = "study"
BLOCKED = "blocked_serials.json"
_FILTER = "fedfms.flare.privacy_filter.SharedOnly"
SITE_CLASSES = (
    "fedfms.flare.executor.SiteExecutor",
    "fedfms.flare.tracking.Curves",  # and not NVFLARE's, which sends what events a job names: a site's errors as well
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
# By role: nobody brings code, and nobody reads a site's files over the admin console (`cat`, `grep`: shell_commands).
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
# What belongs to this site, and no job can set. Fill in, and restart the client.
#data_root: /data/fedfms          # holds <dataset>/<site>/manifest.json, as `python -m preprocessing` writes it
#checkpoints: /data/checkpoints   # a job names a file in it and that file's SHA-256; another one is refused
#checkpoint_sha256: []             # and of these hashes alone; empty: whatever file in it the job names
#device: cuda:0                   # default: cuda where there is one
#cache: /scratch/fedfms           # as private as the images
#min_cases: 10                    # no score of fewer images leaves
#quiet: true                      # no live curves leave, whatever a job says
#threads: 1                       # of torch on the CPU; default: the cores, shared by the sites that run on them
#workers: 0                       # loader processes
#attention: plain                 # by segment-anything's own code, in several times the memory
#processor: plain                 # products and memory as torch and the C library come, slower
#checkpointing: true              # a fifth of the activations' memory, more time
#micro_batch: 2                   # a step's batch in parts of so many slices, for less memory
"""


def sizes_of(jobs: Iterable[Path]) -> dict[str, int]:
    """What the jobs share: bytes by the name of each tensor, the most where jobs differ.

    Raises:
        StudyError: a folder holds no job of this package.
    """
    from fedfms.flare.job import read_study  # torch: not for those who only open a kit
    from fedfms.reporting.cost.traffic import shared_bytes

    found: dict[str, int] = {}
    for job in jobs:
        for name, size in shared_bytes(read_study(job)).items():
            found[name] = max(found.get(name, 0), size)
    return found


def privacy(tensors: Mapping[str, int]) -> dict[str, Any]:
    """The site's scope, the only one and therefore everybody's: only these tensors leave.

    Args:
        tensors: bytes by name; each leaves once in a reply, in whatever form of the wire: none takes more than its own.
    """
    scope = {"name": SCOPE, "properties": {}, "task_result_filters": [{"path": _FILTER, "args": _limits(tensors)}]}
    return {"scopes": [scope], "default_scope": SCOPE}


def _limits(tensors: Mapping[str, int]) -> dict[str, Any]:
    most = math.ceil(sum(tensors.values()) / 1e3) / 1e3
    return {"tensors": dict(sorted(tensors.items())), "max_mb": most, "max_tensors": len(tensors)}


def allow(kit: Path, jobs: Iterable[Path]) -> int:
    """Let a site's kit send what the jobs share, beside what it could before; returns the number of names.

    All else that the site has written into its policy, filters of its own for instance, stays.

    Raises:
        ProvisioningError: it is no site's kit with our scope.
        StudyError: a folder holds no job.
    """
    path = kit / "local" / "privacy.json"
    try:
        policy = json.loads(path.read_text(encoding="utf-8"))
        (own,) = [
            one for scope in policy["scopes"] if scope["name"] == SCOPE
            for one in scope["task_result_filters"] if one["path"] == _FILTER
        ]  # fmt: skip
        before = dict(own["args"]["tensors"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ProvisioningError("this kit has no local/privacy.json of ours", where=kit.name) from None
    more = sizes_of(jobs)
    tensors = {name: max(before.get(name, 0), more.get(name, 0)) for name in {*before, *more}}
    own["args"].update(_limits(tensors))
    _write(path, policy)
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
        _server(resources)
        _write(local / BLOCKED, {"serials": {}})
    else:
        resources["class_allow_list"] = list(SITE_CLASSES)
        resources["allow_log_streaming"] = False  # a job's log names pseudonymous cases and the site's own paths
        resources["components"] = [one for one in resources["components"] if one["id"] != "site_log_streamer"]
        _write(local / "privacy.json", privacy(tensors))
        write_atomic(local / FILE_NAME, _SETTINGS, mode=0o600)
    args = {"file": f"startup/{kind}.crt"}  # no `PLACE`: a site's kit, once open, is its list's to the bit
    resources["components"].append(
        {"id": "expiry", "path": "fedfms.flare.certificate_expiry.CertificateEnds", "args": args}
    )
    for name in ("resources.json", "resources.json.default"):  # `nvflare deploy prepare` goes by the latter alone
        _write(local / name, resources)


def _server(resources: dict[str, Any]) -> None:
    """Stores of this deployment's own: NVFLARE's are in /tmp, shared by all servers of the machine."""
    resources["class_allow_list"] = list(SERVER_CLASSES)
    resources["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"] = f"{PLACE}/store/snapshots"
    for one in resources["components"]:
        if one["id"] == "job_manager":
            one["args"]["uri_root"] = f"{PLACE}/store/jobs"
    path = "fedfms.flare.revocation.RevokedCertificates"
    resources["components"].append({"id": "blocked", "path": path, "args": {"file": f"{PLACE}/local/{BLOCKED}"}})


def _write(path: Path, content: dict[str, Any]) -> None:
    write_atomic(path, json.dumps(content, indent=2) + "\n", mode=0o600)
