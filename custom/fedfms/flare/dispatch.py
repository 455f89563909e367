"""Sends each site its own tensors: NVFLARE broadcasts one model, and this filter replaces it for each site.

NVFLARE's other way, one task for each site, hangs a job for ever when a site asks twice.
"""

from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.dxo_filter import DXOFilter
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.app_constant import AppConstants

from fedfms.flare.aggregator import RoundServerAggregator
from fedfms.flare.messages import HELD_DIGEST, REJECTION, SAMPLES, TRAIN, download_dxo, to_arrays


class DispatchFilter(DXOFilter):
    """A server's task-data filter: `RoundServer.dispatch` for the site that asks."""

    def __init__(self, aggregator_id: str = "aggregator") -> None:
        super().__init__(supported_data_kinds=[DataKind.WEIGHTS], data_kinds_to_filter=[DataKind.WEIGHTS])
        self._aggregator_id = aggregator_id

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> DXO | None:
        """A new exchange object for the site; None leaves the task unchanged. All sites share `dxo`: do not modify."""
        aggregator = fl_ctx.get_engine().get_component(self._aggregator_id)
        assert isinstance(aggregator, RoundServerAggregator)
        site, peer = _asking_site(fl_ctx), fl_ctx.get_peer_context()
        if site is None:
            return None
        server = aggregator.server(fl_ctx)
        server.declare(site, peer.get_prop(SAMPLES))
        rejection = server.rejection(site)
        meta = {**dxo.meta, REJECTION: rejection} if rejection else dict(dxo.meta)
        if fl_ctx.get_prop(FLContextKey.TASK_NAME) == TRAIN:
            round_, held = int(shareable.get_header(AppConstants.CURRENT_ROUND, 0)), peer.get_prop(HELD_DIGEST)
            dispatch = aggregator.dispatch(site, round_, held if isinstance(held, str) else "", fl_ctx)
            if dispatch is not None and dispatch.download is not None:
                return download_dxo(dispatch.download, meta)
            tensors = None if dispatch is None else dispatch.tensors
        else:
            tensors = server.mixture(site)
        if tensors is None:
            return DXO(DataKind.WEIGHTS, data=dxo.data, meta=meta) if rejection else None
        return DXO(DataKind.WEIGHTS, data=to_arrays(tensors), meta=meta)


def _asking_site(fl_ctx: FLContext) -> str | None:
    """The site that NVFLARE gave the task to, by the token of the request; None where the task is over.

    The name in the site's own context is unproven, and counts only where no server runs (in tests).
    """
    runner = fl_ctx.get_prop(FLContextKey.RUNNER)
    if runner is None:
        return str(fl_ctx.get_peer_context().get_identity_name())
    if (workflow := runner.current_wf) is None:
        return None
    task = workflow.controller.communicator.process_task_check(fl_ctx.get_prop(FLContextKey.TASK_ID), fl_ctx)
    return None if task is None else str(task.client.name)
