"""Compressed wires in the reference loop: the same bits after a stop, the planned bytes, the Dice of float32."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedfms.compression import CODECS, DownlinkCompressor
from fedfms.federation.inprocess import CompletedRound, final_scores, rounds
from fedfms.federation.state import ServerStateStore
from fedfms.methods import make_method, resolve_study
from fedfms.reporting.cost.traffic import plan
from fedfms.settings import SiteSettings
from fedfms.study import Study, find_study, load_study
from fedfms.training.build import build
from fedfms.training.site import Site
from fedfms.training.state import StateStore

from ..methods.common import SITES, STUDIES, run, same, study

ANY = pytest.mark.parametrize("wire", sorted(CODECS))
MB = {"none": 44.2, "bfloat16": 22.1, "float16": 22.1, "int8": 11.1}


@pytest.mark.parametrize("name", ["polyp", "fundus"])
@pytest.mark.parametrize("wire", sorted(MB))
def test_fedmsa_sends_what_the_wire_promises(name: str, wire: str) -> None:
    """ViT-B, one structure and two, a site, round and direction; the paper's is 58.86 MB."""
    sent = plan(load_study(
        find_study(name), preset="paper", method="fedmsa", overrides=["train.rounds=1", f"federation.compression={wire}"]
    ))  # fmt: skip
    assert sent.up_mb == sent.down_mb
    assert 0.95 * MB[wire] <= sent.up_mb <= MB[wire]


def _begin_next(of: Study, folder: Path) -> None:
    """As a run that is killed once its first site has finished a round that the others have not."""
    store, name = ServerStateStore(folder / "server.pt"), SITES[0]
    server = store.load()
    assert server is not None
    site = Site(of, name, SiteSettings(), folder / name)
    assert site.link is not None
    downlink = DownlinkCompressor(site.link.codec, store.mirrors())
    downlink.advance(site.built.method.dispatch(server, SITES), server.shared)
    site.train_round(server.round, *site.link.read(downlink.message(name, site.link.claim())))


def _nbytes(done: list[CompletedRound]) -> int:
    coded = [result.coded for each in done for result in each.results.values()]
    return sum(array.nbytes for one in coded if one is not None for array in one.arrays.values())


@pytest.mark.slow
@pytest.mark.parametrize(("method", "wire"), [("fedra", "int8"), ("fedsca", "float16")])
def test_a_stop_after_any_round_and_a_resume_give_the_same_bits(method: str, wire: str, tmp_path: Path) -> None:
    of = study(method, f"federation.compression={wire}", rounds=3)
    whole = run(of, tmp_path / "whole")
    for _ in range(2):
        run(of, tmp_path / "stopped", stop_after=1)
        _begin_next(of, tmp_path / "stopped")
    (last,) = run(of, tmp_path / "stopped")
    assert last.round == 2
    assert same(last.server.shared, whole[-1].server.shared)
    for site in SITES:
        assert same(last.received[site], whole[-1].received[site])
        states = [StateStore(tmp_path / place / site / "state").load() for place in ("whole", "stopped")]
        assert all(state is not None and state.residual and state.holds for state in states)
        one, other = (state for state in states if state)
        assert same(one.trained, other.trained)
        assert same(one.residual, other.residual)
        assert same(one.held, other.held)
    assert _nbytes(whole) == pytest.approx(plan(of).up_mb * 1e6 * 3 * len(SITES))


def test_where_nothing_is_sent_there_is_no_wire() -> None:
    for method, wire in (("msa", "none"), ("fedmsa", "int8")):
        of = load_study(STUDIES / "phantom.yaml", method=method, overrides=["federation.compression=int8"])
        assert resolve_study(of, make_method(method, {})).federation.compression == wire


@ANY
def test_a_round_is_of_float32s_numbers_but_for_rounding(wire: str, tmp_path: Path) -> None:
    plain, coded = study("fedmsa", rounds=1), study("fedmsa", f"federation.compression={wire}", rounds=1)
    (exact,), (near,) = run(plain, tmp_path / "plain"), run(coded, tmp_path / "coded")
    assert same(exact.received["a"], near.received["a"])  # the first download is of what both ends begin with
    start = build(plain, SiteSettings()).shared()
    for name, tensor in exact.server.shared.items():
        moved = (tensor - start[name]).abs().max()
        lost = (near.server.shared[name] - tensor).abs().max()
        assert lost <= {"bfloat16": 2**-8, "float16": 2**-10, "int8": 1 / 126}[wire] * moved + 1e-6
    state = StateStore(tmp_path / "plain" / "a" / "state").load()
    assert state is not None
    assert (state.residual, state.held, state.holds) == ({}, {}, "")
    assert exact.results["a"].coded is None


@pytest.mark.slow
def test_dice_after_some_rounds_is_float32s(tmp_path: Path) -> None:
    """Of the coarsest form; the table `wire` measures all of them, over seeds and 20 rounds."""
    told = {}
    for wire in ("none", "int8"):
        of = study(
            "fedmsa", f"federation.compression={wire}", "data.phantom_images=16", "held_out=[unseen]", "train.batch_size=4",
            "train.local_epochs=2", rounds=5,
        )  # fmt: skip
        sites = (*SITES, "unseen")
        *_, last = rounds(of, sites, SiteSettings(), tmp_path / wire)
        scores = final_scores(of, sites, SiteSettings(), tmp_path / wire, last.server)
        told[wire] = scores["unseen"]["scores"]["dice"]
    assert told["none"] > 0.2
    assert told == pytest.approx(dict.fromkeys(told, told["none"]), abs=0.02)
