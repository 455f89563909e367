"""The aggregator and the in-process loop have no rule of their own: both obey the same `RoundServer`.

Each test replaces the class by one with other rules, and shows that both follow it.
"""

import ast
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.app_constant import AppConstants

import fedfms
from fedfms.errors import UpdateError
from fedfms.federation.inprocess import CompletedRound, rounds
from fedfms.federation.messages import Dispatch, Message
from fedfms.federation.server import RoundServer
from fedfms.flare.dispatch import DispatchFilter
from fedfms.flare.messages import TRAIN, to_arrays
from fedfms.methods import ServerState
from fedfms.settings import SiteSettings
from fedfms.study import Study

from ..methods.common import SITES, study
from .make import MODEL, ROUND, Server, update

RULES = {"fedfms.federation.validation", "fedfms.federation.robust", "fedfms.federation.elementwise"}


class RejectsAll(RoundServer):
    """Rejects every message."""

    def accept(self, message: Message) -> str | None:
        self.reject(message.sender, message.round, "the test rejects it", message.report)
        return "the test rejects it"


class AcceptsAll(RoundServer):
    """Accepts every message; whatever arrives, the next global model is 42 everywhere."""

    def accept(self, message: Message) -> str | None:
        self.rows[message.sender] = {"round": self.state.round, "site": message.sender, "accepted": True}
        return None

    def close(self) -> ServerState:
        shared = {name: torch.full_like(tensor, 42) for name, tensor in self.state.shared.items()}
        self.state = replace(self.state, shared=shared, round=self.state.round + 1)
        return self.state


class SendsSevens(RoundServer):
    """Sends every site a model that is 7 everywhere."""

    def dispatch(self, site: str, round_: int | None = None, held: str = "") -> Dispatch | None:
        return Dispatch({name: torch.full_like(tensor, 7) for name, tensor in self.state.shared.items()})


def _replace(kind: type[RoundServer], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("fedfms.flare.aggregator", "fedfms.federation.inprocess"):
        monkeypatch.setattr(f"{module}.RoundServer", kind)


def _run(folder: Path, of: Study, **options: Any) -> CompletedRound:
    """The one round of the in-process loop."""
    (done,) = rounds(of, SITES, SiteSettings(), folder, **options)
    return done


def _invalid(message: Message) -> Iterable[Message]:
    arrays = {name: np.full_like(array, np.nan) for name, array in message.arrays.items()}
    yield replace(message, arrays=arrays, job="another", samples=-1, rounds=(17,))


def test_both_reject_what_the_round_server_rejects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _replace(RejectsAll, monkeypatch)
    server = Server()
    assert not server.send("a", update())
    assert not server.send("b", update())
    assert server.aggregator.rows["a"]["reason"] == "the test rejects it"
    server.aggregator.aggregate(server.context)
    reasons = "0 updates accepted, 2 needed (a: the test rejects it; b: the test rejects it)"
    assert server.panics == [f"fedfms: round 3: {reasons}"]
    with pytest.raises(UpdateError) as error:
        _run(tmp_path, study("fedmsa", rounds=1))
    assert error.value.line() == f"round 0: {reasons}"


@pytest.mark.slow
def test_both_accept_and_aggregate_what_the_round_server_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _replace(AcceptsAll, monkeypatch)
    server = Server()
    assert server.send("a", update(float("nan"), samples=-1, round_=17), round_=17)  # no second update is needed either
    data = server.aggregate()
    assert all((data[name] == 42).all() for name in MODEL)
    assert server.round_server.state.round == ROUND + 1
    done = _run(tmp_path, study("fedmsa", rounds=1), deliver=_invalid)
    assert {row["accepted"] for row in done.rows.values()} == {True}
    assert all((tensor == 42).all() for tensor in done.server.shared.values())


def test_both_send_what_the_round_server_dispatches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _replace(SendsSevens, monkeypatch)
    server, peer = Server(), FLContext()
    peer.put(ReservedKey.IDENTITY_NAME, "a", private=False, sticky=False)
    server.context.set_peer_context(peer)
    server.context.set_prop(FLContextKey.TASK_NAME, TRAIN)
    task = DXO(DataKind.WEIGHTS, data=to_arrays(MODEL)).to_shareable()
    task.set_header(AppConstants.CURRENT_ROUND, ROUND)
    sent = from_shareable(DispatchFilter().process(task, server.context)).data
    assert all((sent[name] == 7).all() for name in MODEL)
    monkeypatch.setattr("fedfms.federation.inprocess.RoundServer.accept", AcceptsAll.accept)
    monkeypatch.setattr("fedfms.federation.inprocess.RoundServer.close", AcceptsAll.close)
    done = _run(tmp_path, study("fedmsa", rounds=1))
    assert all((tensor == 7).all() for site in SITES for tensor in done.received[site].values())


def test_only_the_round_server_imports_the_rules() -> None:
    package = Path(fedfms.__file__).parent
    paths = [*package.glob("flare/**/*.py"), package / "federation" / "inprocess.py", *package.glob("training/*.py")]
    assert len(paths) > 20
    for path in paths:
        tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        imported = {node.module for node in tree if isinstance(node, ast.ImportFrom)}
        assert not imported & RULES, path.name
