"""What goes to a site is that site's own: NVFLARE broadcasts one model, and this filter puts each site's in its place.

One task for each site would be NVFLARE's other way; with it a job hangs for ever when a site asks twice.
"""

from __future__ import annotations

from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.dxo_filter import DXOFilter
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.app_constant import AppConstants

from fedfms.flare.aggregator import RoundServerAggregator
from fedfms.flare.messages import HOLDS, SAMPLES, TOLD, TRAIN, download_dxo, to_arrays


class DispatchFilter(DXOFilter):
    """A server's task-data filter: the tensors that the method has for the site that asks, in the study's form."""

    def __init__(self, aggregator_id: str = "aggregator") -> None:
        super().__init__(supported_data_kinds=[DataKind.WEIGHTS], data_kinds_to_filter=[DataKind.WEIGHTS])
        self._aggregator_id = aggregator_id

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> DXO | None:
        """A new exchange object for the site; None leaves the task as it is. The data are shared between sites, so
        they are never changed.
        """
        aggregator = fl_ctx.get_engine().get_component(self._aggregator_id)
        assert isinstance(aggregator, RoundServerAggregator)
        site, peer = _asker(fl_ctx), fl_ctx.get_peer_context()
        if site is None:
            return None
        training = fl_ctx.get_prop(FLContextKey.TASK_NAME) == TRAIN
        round_ = int(shareable.get_header(AppConstants.CURRENT_ROUND, 0)) if training else None
        told = aggregator.told(site)
        meta = {**dxo.meta, TOLD: told} if told else dict(dxo.meta)
        aggregator.declare(site, peer.get_prop(SAMPLES))
        if round_ is not None:
            holds = peer.get_prop(HOLDS)
            download = aggregator.download_for(site, round_, holds if isinstance(holds, str) else "", fl_ctx)
            if download is not None:
                return download_dxo(download, meta)
        tensors = aggregator.tensors_for(site, round_, fl_ctx)
        if tensors is None:
            return DXO(DataKind.WEIGHTS, data=dxo.data, meta=meta) if told else None
        return DXO(DataKind.WEIGHTS, data=to_arrays(tensors), meta=meta)


def _asker(fl_ctx: FLContext) -> str | None:
    """Whom NVFLARE has given the task to, by the token of the request: the name in its context is the site's own word,
    and counts only where no server runs. None where the task is over: nothing says any more who asks.
    """
    runner = fl_ctx.get_prop(FLContextKey.RUNNER)
    if runner is None:
        return str(fl_ctx.get_peer_context().get_identity_name())
    if (workflow := runner.current_wf) is None:
        return None
    task = workflow.controller.communicator.process_task_check(fl_ctx.get_prop(FLContextKey.TASK_ID), fl_ctx)
    return None if task is None else str(task.client.name)
