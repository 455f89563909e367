"""Live curves bypass filters of task results: their sender sends only numbers, whatever a job asks for."""

from typing import Any

import pytest
from nvflare.apis.analytix import ANALYTIC_EVENT_TYPE, AnalyticsDataType
from nvflare.apis.dxo import from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import EventScope, FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.utils.analytix_utils import create_analytic_dxo

from fedfms.flare.tracking import Curves


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(
        Curves, "fire_fed_event", lambda _, kind, data, *__: found.append((kind, from_shareable(data).data))
    )
    return found


def _fire(event: str, tag: str, value: Any, kind: AnalyticsDataType, scope: str = EventScope.LOCAL) -> None:
    context = FLContext()
    more = {} if kind == AnalyticsDataType.SCALAR else {"path": "/data/patients"}
    data: Shareable = create_analytic_dxo(tag, value, kind, global_step=3, **more).to_shareable()
    data["more"] = "/data/patients"
    context.set_prop(FLContextKey.EVENT_DATA, data, private=True, sticky=False)
    context.set_prop(FLContextKey.EVENT_SCOPE, scope, private=True, sticky=False)
    Curves().handle_event(event, context)


def test_a_number_is_sent_with_its_tag_and_step_only(sent: list[tuple[str, dict[str, Any]]]) -> None:
    _fire(ANALYTIC_EVENT_TYPE, "validation/dice/left ventricle", 0.5, AnalyticsDataType.SCALAR)
    ((kind, data),) = sent
    assert kind == f"fed.{ANALYTIC_EVENT_TYPE}"
    assert data.pop("analytics_kwargs") == {"global_step": 3}
    assert data == {"track_key": "validation/dice/left ventricle", "track_value": 0.5, "global_step": 3}


@pytest.mark.parametrize(
    ("event", "tag", "value", "kind"),
    [
        (ANALYTIC_EVENT_TYPE, "text", "/data/patients", AnalyticsDataType.TEXT),
        (ANALYTIC_EVENT_TYPE, "a\nb", 0.5, AnalyticsDataType.SCALAR),
        (ANALYTIC_EVENT_TYPE, "a" * 201, 0.5, AnalyticsDataType.SCALAR),
        (EventType.ERROR_LOG_AVAILABLE, "error", "no such file: /data/patients", AnalyticsDataType.TEXT),
        (EventType.ERROR_LOG_AVAILABLE, "error", 0.5, AnalyticsDataType.SCALAR),
    ],
)
def test_no_other_event_is_sent(
    event: str, tag: str, value: Any, kind: AnalyticsDataType, sent: list[tuple[str, dict[str, Any]]]
) -> None:
    _fire(event, tag, value, kind)
    assert not sent


def test_an_event_from_another_site_is_not_forwarded(sent: list[tuple[str, dict[str, Any]]]) -> None:
    _fire(ANALYTIC_EVENT_TYPE, "a", 0.5, AnalyticsDataType.SCALAR, EventScope.FEDERATION)
    assert not sent


def test_a_job_cannot_choose_the_events() -> None:
    with pytest.raises(TypeError):
        Curves(events_to_convert=[EventType.ERROR_LOG_AVAILABLE])  # type: ignore[call-arg]
