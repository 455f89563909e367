"""NVFLARE's selection of the best model, fed with accepted updates only."""

from __future__ import annotations

from nvflare.apis.fl_context import FLContext
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_common.widgets.intime_model_selector import IntimeModelSelector


class AcceptedModelSelector(IntimeModelSelector):
    """Counts a site's validation score after the aggregator has accepted its update, not before.

    NVFLARE's own counts it before: the score of an update that is then refused, or a second one of the same site,
    would choose the best model. It is the score of the model that the site received: of an update that turns out too
    long when the round is combined it counts all the same.
    """

    def __init__(self, key_metric: str, persistor_id: str = "persistor") -> None:
        super().__init__(key_metric=key_metric)
        self._persistor_id = persistor_id

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """As NVFLARE's, with the contribution looked at once it is in; a job that goes on from another one begins with
        the best of that.
        """
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
