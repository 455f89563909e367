"""The recorder's files: a round that failed leaves its rows, and nothing of the round before."""

import json
from pathlib import Path

from nvflare.app_common.app_event_type import AppEventType

from fedfms.flare.recorder import Recorder
from fedfms.methods import make_method

from .make import ROUND, Server, update


def _lines(server: Server, name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (Path(server.run.name) / "fedfms" / name).read_text().splitlines()]


def test_a_round_with_too_few_updates_has_rows_and_no_mixing_weights() -> None:
    """NVFLARE fires the event after an aggregation that failed, too."""
    server, recorder = Server(method=make_method("sgca", {})), Recorder()
    for round_, sites in ((ROUND, "ab"), (ROUND + 1, "a")):
        server.set_round(round_)
        for site in sites:
            assert server.send(site, update(1.0, round_=round_), round_)
        server.aggregator.aggregate(server.context)
        recorder.handle_event(AppEventType.AFTER_AGGREGATION, server.context)
        server.aggregator.reset(server.context)
    assert len(server.panics) == 1
    assert [line["round"] for line in _lines(server, "mixing.jsonl")] == [ROUND]
    assert [(row["round"], row["site"]) for row in _lines(server, "rounds.jsonl")] == [
        (ROUND, "a"), (ROUND, "b"), (ROUND + 1, "a"),
    ]  # fmt: skip


def test_a_start_removes_the_rows_of_a_round_that_an_earlier_start_did_not_finish() -> None:
    server, recorder = Server(), Recorder()
    folder = Path(server.run.name) / "fedfms"
    folder.mkdir()
    (folder / "rounds.jsonl").write_text('{"round": 0, "site": "a", "accepted": true}\n')
    server.persistor.saved = None
    recorder.handle_event(AppEventType.INITIAL_MODEL_LOADED, server.context)
    assert sorted(path.name for path in folder.iterdir()) == ["run.json"]
