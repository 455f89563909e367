"""Translates between NVFLARE's shareables and this package's messages; names of what travels beside the tensors."""

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

from fedfms.compression import Download, Payload
from fedfms.errors import FedfmsError
from fedfms.federation.messages import DIFFERENCES, WEIGHTS, Message
from fedfms.methods import Tensors

TRAIN, VALIDATE, SUBMIT_MODEL = "train", "validate", "submit_model"

# Beside the tensors travel numbers about a site as a whole, never about a case.
REPORT = "fedfms_report"  # DXO meta: {"scores", "train_loss", "seconds", "bytes_down", "unreadable_images"}
REASON = "fedfms_reason"  # header of an error reply: one line, `public_line`
ROUND = "fedfms_round"  # DXO meta: the update's round, as the site knows it
BASE = "fedfms_base"  # DXO meta, with compression: digest that differences refer to (`Download.base`, `Payload.base`)
HELD_DIGEST = "fedfms_holds"  # public property of a site's context, sent with each request: `Exchange.held_digest`
STAMP = "fedfms_stamp"  # DXO meta: {"site", "job", "schema"} of an update, as the site has them
SAMPLES = "fedfms_samples"  # public property of a site's context, sent with its first request: slices it trains on
REJECTION = "fedfms_rejection"  # DXO meta of a task: why the site's last update was rejected
VAL_DICE = "val_dice"  # key of the initial metrics, by which NVFLARE's model selector chooses

_KINDS = {"WEIGHTS": WEIGHTS, "WEIGHT_DIFF": DIFFERENCES}
_CASE = re.compile(r", case [^,:;]+|case [^,:;]+: ")


def to_arrays(tensors: Tensors) -> dict[str, np.ndarray]:
    """Tensors as NumPy arrays, which NVFLARE sends."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


def to_tensors(arrays: Mapping[str, Any]) -> Tensors:
    """Received arrays as tensors with their own memory."""
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def nbytes(arrays: Mapping[str, np.ndarray]) -> int:
    """Bytes of a payload; NVFLARE's framing adds 0.03 %."""
    return sum(int(array.nbytes) for array in arrays.values())


def kind_of(dxo: DXO) -> str:
    """The kind of data that an exchange object claims to hold: `METRICS`."""
    kind: str = getattr(dxo.data_kind, "value", dxo.data_kind)
    return kind


def update_dxo(
    payload: Payload, *, samples: int, round_: int, report: Mapping[str, Any], val_dice: float | None,
    stamp: Mapping[str, str] | None = None,
) -> DXO:  # fmt: skip
    """A site's update as NVFLARE's exchange object.

    Args:
        stamp: {"site", "job", "schema"}; the server rejects an update without it.
    """
    if payload.base is None:
        dxo = DXO(DataKind.WEIGHTS, data=payload.arrays)
    else:
        dxo = DXO(DataKind.WEIGHT_DIFF, data=payload.arrays, meta={BASE: payload.base})
    dxo.set_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND, samples)
    dxo.set_meta_prop(ROUND, round_)
    dxo.set_meta_prop(REPORT, dict(report))
    dxo.set_meta_prop(STAMP, dict(stamp or {}))
    if val_dice is not None:
        dxo.set_meta_prop(MetaKey.INITIAL_METRICS, {VAL_DICE: val_dice})
    return dxo


def message_of(shareable: Shareable, round_: int) -> Message:
    """A site's answer in the server's round `round_`; a shareable without an exchange object holds nothing."""
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
        round=round_,
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
    """The sender as NVFLARE knows it by the token of the connection; `named` where it does not (in the simulator).

    The name in a site's context is the site's own claim, though NVFLARE's components use it.
    """
    return str(getattr(shareable.get_header(ServerCommandKey.FL_CLIENT), "name", named))


def job_of(fl_ctx: FLContext) -> str:
    """Id of the running job, as an update names it."""
    return str(fl_ctx.get_job_id())


def model_name(owner: str) -> str:
    """People's name of a model that NVFLARE's locator names after its file: `best`, `final`, or a site's name."""
    stem = Path(owner).name.removeprefix("SRV_")
    if "best" in stem.lower():
        return "best"
    return "final" if "FL_global_model" in stem else "".join(c if c.isalnum() or c in "-_" else "_" for c in stem)


def download_dxo(download: Download, meta: Mapping[str, Any]) -> DXO:
    """A compressed download as NVFLARE's exchange object."""
    kind = DataKind.WEIGHT_DIFF if download.differences else DataKind.WEIGHTS
    return DXO(kind, data=download.arrays, meta={**meta, BASE: download.base})


def download_of(dxo: DXO) -> Download:
    """The inverse of `download_dxo`."""
    differences = dxo.data_kind == DataKind.WEIGHT_DIFF
    return Download(dict(dxo.data), str(dxo.get_meta_prop(BASE, "")), differences)


def error_reply(error: FedfmsError) -> Shareable:
    """The reply to a task that failed for a reason that a person can fix."""
    reply = make_reply(ReturnCode.EXECUTION_EXCEPTION)
    reply.set_header(REASON, public_line(error))
    return reply


def public_line(error: FedfmsError) -> str:
    """The error's line without the id of a case, which is pseudonymous but a patient's; the site's own log has it."""
    return _CASE.sub("", error.line())
