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

from fedfms.flare.aggregator import CheckedAggregator
from fedfms.flare.wire import HOLDS, SAMPLES, TOLD, TRAIN, download_dxo, to_arrays


class OwnModelFilter(DXOFilter):
    """A server's task-data filter: the tensors that the method has for the site that asks, in the study's form."""

    def __init__(self, aggregator_id: str = "aggregator") -> None:
        super().__init__(supported_data_kinds=[DataKind.WEIGHTS], data_kinds_to_filter=[DataKind.WEIGHTS])
        self._aggregator_id = aggregator_id

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> DXO | None:
        """A new exchange object for the site; None leaves the task as it is. The data are shared between sites, so
        they are never changed.
        """
        aggregator = fl_ctx.get_engine().get_component(self._aggregator_id)
        assert isinstance(aggregator, CheckedAggregator)
        peer = fl_ctx.get_peer_context()
        site = str(peer.get_identity_name())
        training = fl_ctx.get_prop(FLContextKey.TASK_NAME) == TRAIN
        round_ = int(shareable.get_header(AppConstants.CURRENT_ROUND, 0)) if training else None
        told = aggregator.told(site)
        meta = {**dxo.meta, TOLD: told} if told else dict(dxo.meta)
        aggregator.declare(site, peer.get_prop(SAMPLES))
        if round_ is not None:
            download = aggregator.download_for(site, round_, str(peer.get_prop(HOLDS, "")), fl_ctx)
            if download is not None:
                return download_dxo(download, meta)
        tensors = aggregator.tensors_for(site, round_, fl_ctx)
        if tensors is None:
            return DXO(DataKind.WEIGHTS, data=dxo.data, meta=meta) if told else None
        return DXO(DataKind.WEIGHTS, data=to_arrays(tensors), meta=meta)
