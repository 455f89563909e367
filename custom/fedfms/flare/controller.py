"""NVFLARE's ScatterAndGather for a job that resumes an earlier one: it runs the remaining rounds."""

from nvflare.apis.fl_context import FLContext
from nvflare.app_common.workflows.scatter_and_gather import ScatterAndGather

from fedfms.flare.persistor import SharedModelPersistor


class ResumedScatterAndGather(ScatterAndGather):
    """Starts after the rounds that the persistor found completed; `num_rounds` is the study's."""

    def start_controller(self, fl_ctx: FLContext) -> None:
        """As NVFLARE's. Who submits the job need not know how many rounds are completed."""
        persistor = self._engine.get_component(self.persistor_id)
        if isinstance(persistor, SharedModelPersistor) and persistor.saved is not None:
            completed, planned = persistor.saved.server.round, int(self._num_rounds)  # type: ignore[has-type]
            self._start_round, self._num_rounds = completed, max(0, planned - completed)
            self.log_info(fl_ctx, f"fedfms: {completed} of {planned} rounds are completed", fire_event=False)
        else:
            text = "fedfms: the earlier job completed no round; the study starts again"
            self.log_warning(fl_ctx, text, fire_event=False)
        super().start_controller(fl_ctx)
