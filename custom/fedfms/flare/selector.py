"""NVFLARE's selection of the best model, by accepted updates only."""

from nvflare.apis.fl_context import FLContext
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_common.widgets.intime_model_selector import IntimeModelSelector


class AcceptedModelSelector(IntimeModelSelector):
    """Counts a site's validation score once the aggregator has accepted its update.

    NVFLARE counts it before: the score of a rejected update, or of a second one of the same site, would select the best
    model. The score is of the received model, so it also counts where the update later turns out too long.
    """

    def __init__(self, key_metric: str, persistor_id: str = "persistor") -> None:
        super().__init__(key_metric=key_metric)
        self._persistor_id = persistor_id

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """As NVFLARE's, after acceptance; a resumed job starts with the best score of the earlier one."""
        if event_type == AppEventType.INITIAL_MODEL_LOADED:
            best = getattr(fl_ctx.get_engine().get_component(self._persistor_id), "best", None)
            if best is not None:
                self.best_val_metric = self.best_raw_val_metric = best.dice
        if event_type == AppEventType.BEFORE_CONTRIBUTION_ACCEPT:
            return
        if event_type == AppEventType.AFTER_CONTRIBUTION_ACCEPT:
            if not fl_ctx.get_prop(AppConstants.AGGREGATION_ACCEPTED, False):
                return
            event_type = AppEventType.BEFORE_CONTRIBUTION_ACCEPT
        super().handle_event(event_type, fl_ctx)
