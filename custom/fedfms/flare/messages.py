"""Between NVFLARE's shareables and the dicts that methods work on; names of what travels beside the tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.fl_constant import ReservedKey, ServerCommandKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReturnCode, Shareable, make_reply
from nvflare.app_common.app_constant import AppConstants

from fedfms.compression import Download
from fedfms.errors import FedfmsError
from fedfms.federation.gate import DIFFERENCES, WEIGHTS, Message
from fedfms.methods import Tensors
from fedfms.training.link import Coded

TRAIN, VALIDATE, SUBMIT_MODEL = "train", "validate", "submit_model"

# Beside the tensors travel numbers about a site as a whole, never about a case.
REPORT = "fedfms_report"  # DXO meta: {"scores", "train_loss", "seconds", "bytes_down", "unreadable_images"}
REASON = "fedfms_reason"  # header of an error reply: one line, `public_line`
ROUND = "fedfms_round"  # DXO meta: the round that the update belongs to, as the site knows it
BASE = "fedfms_base"  # DXO meta on a compressed wire: digest of what differences are to (`fedfms.compression.Download.base`)
HOLDS = "fedfms_holds"  # public property of a site's context: digest of what it holds; goes with each request
STAMP = "fedfms_stamp"  # DXO meta: {"site", "job", "schema"} of an update, as the site has them
SAMPLES = "fedfms_samples"  # public property of a site's context: what it trains on; goes with its first request
TOLD = "fedfms_told"  # DXO meta of a task: why the site's last update was not used
VAL_DICE = "val_dice"  # key of the initial metrics, by which NVFLARE's model selector chooses

_KINDS = {"WEIGHTS": WEIGHTS, "WEIGHT_DIFF": DIFFERENCES}
_CASE = re.compile(r", case [^,:;]+|case [^,:;]+: ")


def to_arrays(tensors: Tensors) -> dict[str, np.ndarray]:
    """Tensors as the NumPy arrays that go on the wire."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


def to_tensors(arrays: Mapping[str, Any]) -> Tensors:
    """Arrays from the wire as tensors of their own memory."""
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def nbytes(arrays: Mapping[str, np.ndarray]) -> int:
    """Payload of an update in bytes; what NVFLARE sends is this and 0.03 % of framing."""
    return sum(int(array.nbytes) for array in arrays.values())


def kind_of(dxo: DXO) -> str:
    """What an exchange object says that it holds, as text: `METRICS`."""
    kind: str = getattr(dxo.data_kind, "value", dxo.data_kind)
    return kind


def update_dxo(
    tensors: Tensors, *, samples: int, round_: int, report: Mapping[str, Any], val_dice: float | None,
    coded: Coded | None = None, stamp: Mapping[str, str] | None = None,
) -> DXO:  # fmt: skip
    """A site's update as NVFLARE's exchange object: in its coded form where there is one.

    Args:
        stamp: who sends it in which job, and the schema of its model; an update without is refused.
    """
    if coded is None:
        dxo = DXO(DataKind.WEIGHTS, data=to_arrays(tensors))
    else:
        dxo = DXO(DataKind.WEIGHT_DIFF, data=coded.arrays, meta={BASE: coded.base})
    dxo.set_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND, samples)
    dxo.set_meta_prop(ROUND, round_)
    dxo.set_meta_prop(REPORT, dict(report))
    dxo.set_meta_prop(STAMP, dict(stamp or {}))
    if val_dice is not None:
        dxo.set_meta_prop(MetaKey.INITIAL_METRICS, {VAL_DICE: val_dice})
    return dxo


def message_of(shareable: Shareable) -> Message:
    """What a site has sent, for the guard to judge; what is no exchange object holds nothing."""
    try:
        dxo = from_shareable(shareable)
    except ValueError:
        dxo = DXO(DataKind.METRICS, data={})
    named = shareable.get_peer_prop(ReservedKey.IDENTITY_NAME, "?")
    stamp, metrics = dxo.get_meta_prop(STAMP), dxo.get_meta_prop(MetaKey.INITIAL_METRICS)
    stamp, kind = stamp if isinstance(stamp, dict) else {}, str(kind_of(dxo))[:40]
    data = dxo.data if isinstance(dxo.data, dict) else {}
    return Message(
        sender=sender_of(shareable, named),
        names=(named, stamp.get("site")),
        job=stamp.get("job"),
        rounds=(shareable.get_cookie(AppConstants.CONTRIBUTION_ROUND), dxo.get_meta_prop(ROUND)),
        kind=_KINDS.get(kind, kind),
        schema=stamp.get("schema"),
        samples=dxo.get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND),
        arrays=data,
        base=dxo.get_meta_prop(BASE),
        dice=metrics.get(VAL_DICE) if isinstance(metrics, dict) else metrics,
        report=data.get(REPORT) if dxo.data_kind == DataKind.METRICS else dxo.get_meta_prop(REPORT),
    )


def sender_of(shareable: Shareable, named: Any) -> str:
    """Whom NVFLARE knows a message to be from, by the token of the connection; `named` where it does not say (in the
    simulator). The name in a site's context is the site's own word, though NVFLARE's components go by it.
    """
    return str(getattr(shareable.get_header(ServerCommandKey.FL_CLIENT), "name", named))


def job_of(fl_ctx: FLContext) -> str:
    """The job that is running, as an update names it."""
    return str(fl_ctx.get_job_id())


def model_name(owner: str) -> str:
    """What people call a model that NVFLARE's locator names after its file: `best`, `final`, or a site's own name."""
    stem = Path(owner).name.removeprefix("SRV_")
    if "best" in stem.lower():
        return "best"
    return "final" if "FL_global_model" in stem else "".join(c if c.isalnum() or c in "-_" else "_" for c in stem)


def download_dxo(download: Download, meta: Mapping[str, Any]) -> DXO:
    """A message to a site, on a compressed wire."""
    kind = DataKind.WEIGHT_DIFF if download.differences else DataKind.WEIGHTS
    return DXO(kind, data=download.arrays, meta={**meta, BASE: download.base})


def download_of(dxo: DXO) -> Download:
    """What `download_dxo` made a message of."""
    differences = dxo.data_kind == DataKind.WEIGHT_DIFF
    return Download(dict(dxo.data), str(dxo.get_meta_prop(BASE, "")), differences)


def error_reply(error: FedfmsError) -> Shareable:
    """The reply to a task that failed for a reason that a person can act on."""
    reply = make_reply(ReturnCode.EXECUTION_EXCEPTION)
    reply.set_header(REASON, public_line(error))
    return reply


def public_line(error: FedfmsError) -> str:
    """The error's line without the id of a case: pseudonymous, but of a patient; the site's own log has it."""
    return _CASE.sub("", error.line())
