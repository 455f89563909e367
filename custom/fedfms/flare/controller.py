"""NVFLARE's rounds, of a job that goes on from an earlier one: those that are left."""

from __future__ import annotations

from nvflare.apis.fl_context import FLContext
from nvflare.app_common.workflows.scatter_and_gather import ScatterAndGather

from fedfms.flare.persistor import SharedModelPersistor


class ResumedScatterAndGather(ScatterAndGather):
    """ScatterAndGather that begins after the rounds that the persistor found done; `num_rounds` is of the study."""

    def start_controller(self, fl_ctx: FLContext) -> None:
        """As NVFLARE's. Who sends the job need not know how far the earlier one came."""
        persistor = self._engine.get_component(self.persistor_id)
        if isinstance(persistor, SharedModelPersistor) and persistor.saved is not None:
            done, planned = persistor.saved.server.round, int(self._num_rounds)  # type: ignore[has-type]
            self._start_round, self._num_rounds = done, max(0, planned - done)
            self.log_info(fl_ctx, f"fedfms: {done} of {planned} rounds are done", fire_event=False)
        else:
            told = "no round of the earlier job was finished; the study begins anew"
            self.log_warning(fl_ctx, f"fedfms: {told}", fire_event=False)
        super().start_controller(fl_ctx)
