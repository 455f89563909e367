"""Compression in the in-process loop: bit-equal resume, the planned bytes, the Dice of float32."""

from pathlib import Path

import pytest

from fedfms.compression import CODECS, DownlinkCompressor
from fedfms.errors import TrainingError
from fedfms.federation.inprocess import CompletedRound, final_scores, rounds
from fedfms.federation.state import ServerStateStore
from fedfms.methods import make_method, resolve_study
from fedfms.reporting.cost.traffic import plan_traffic
from fedfms.settings import SiteSettings
from fedfms.study import Study, find_study, load_study
from fedfms.training.build import build
from fedfms.training.site import Site
from fedfms.training.state import StateStore

from ..methods.common import SITES, STUDIES, run, same, study

ANY = pytest.mark.parametrize("codec", sorted(CODECS))
MB = {"none": 44.2, "bfloat16": 22.1, "float16": 22.1, "int8": 11.1}


@pytest.mark.parametrize("name", ["polyp", "fundus"])
@pytest.mark.parametrize("codec", sorted(MB))
def test_fedmsa_sends_the_expected_megabytes(name: str, codec: str) -> None:
    """ViT-B, one or two structures, per site, round and direction; the paper's is 58.86 MB."""
    sent = plan_traffic(load_study(
        find_study(name), preset="paper", method="fedmsa",
        overrides=["train.rounds=1", f"federation.compression={codec}"],
    ))  # fmt: skip
    assert sent.up_mb == sent.down_mb
    assert 0.95 * MB[codec] <= sent.up_mb <= MB[codec]


def _begin_next(of: Study, folder: Path) -> None:
    """Simulate a run that is killed after its first site has finished the next round."""
    store, name = ServerStateStore(folder / "server.pt"), SITES[0]
    server = store.load()
    assert server is not None
    site = Site(of, name, SiteSettings(), folder / name)
    compressor = DownlinkCompressor(CODECS[of.federation.compression], store.mirrors())
    compressor.advance(site.built.method.dispatch(server, SITES), server.shared)
    site.train_round(server.round, compressor.download(name, site.held_digest()))


def _nbytes(done: list[CompletedRound]) -> int:
    payloads = [result.payload for each in done for result in each.results.values()]
    assert all(payload.base is not None for payload in payloads)
    return sum(array.nbytes for payload in payloads for array in payload.arrays.values())


@pytest.mark.slow
@pytest.mark.parametrize(("method", "codec"), [("fedra", "int8"), ("fedsca", "float16")])
def test_a_run_resumed_after_any_round_gives_the_same_bits(method: str, codec: str, tmp_path: Path) -> None:
    of = study(method, f"federation.compression={codec}", rounds=3)
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
        assert all(state is not None and state.residual and state.held_digest for state in states)
        one, other = (state for state in states if state)
        assert same(one.trained, other.trained)
        assert same(one.residual, other.residual)
        assert same(one.held, other.held)
    assert _nbytes(whole) == pytest.approx(plan_traffic(of).up_mb * 1e6 * 3 * len(SITES))


@pytest.mark.slow
def test_a_damaged_state_is_an_error_with_the_site_and_the_round(tmp_path: Path) -> None:
    """With compression, the site reads its state before it asks for the round."""
    of = study("fedmsa", "federation.compression=int8", rounds=2)
    run(of, tmp_path, stop_after=1)
    (path,) = (tmp_path / "a" / "state").iterdir()
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(TrainingError, match="^site a, round 1: the state saved after round 0 cannot be read"):
        run(of, tmp_path)


def test_a_centralised_method_is_not_compressed() -> None:
    for method, codec in (("msa", "none"), ("fedmsa", "int8")):
        of = load_study(STUDIES / "phantom.yaml", method=method, overrides=["federation.compression=int8"])
        assert resolve_study(of, make_method(method, {})).federation.compression == codec


@pytest.mark.slow
@ANY
def test_a_compressed_round_equals_float32_up_to_rounding(codec: str, tmp_path: Path) -> None:
    plain, coded = study("fedmsa", rounds=1), study("fedmsa", f"federation.compression={codec}", rounds=1)
    (exact,), (near,) = run(plain, tmp_path / "plain"), run(coded, tmp_path / "coded")
    assert same(exact.received["a"], near.received["a"])  # the first download is of what both ends begin with
    start = build(plain, SiteSettings()).shared()
    for name, tensor in exact.server.shared.items():
        moved = (tensor - start[name]).abs().max()
        lost = (near.server.shared[name] - tensor).abs().max()
        assert lost <= {"bfloat16": 2**-8, "float16": 2**-10, "int8": 1 / 126}[codec] * moved + 1e-6
    state = StateStore(tmp_path / "plain" / "a" / "state").load()
    assert state is not None
    assert (state.residual, state.held, state.held_digest) == ({}, {}, "")
    assert exact.results["a"].payload.base is None


@pytest.mark.slow
def test_compressed_training_reaches_the_dice_of_float32(tmp_path: Path) -> None:
    """For the coarsest codec; a results table covers all of them, over seeds and 20 rounds."""
    dice = {}
    for codec in ("none", "int8"):
        of = study(
            "fedmsa", f"federation.compression={codec}", "data.phantom_images=16", "held_out=[unseen]",
            "train.batch_size=4", "train.local_epochs=2", rounds=5,
        )  # fmt: skip
        sites = (*SITES, "unseen")
        *_, last = rounds(of, sites, SiteSettings(), tmp_path / codec)
        scores = final_scores(of, sites, SiteSettings(), tmp_path / codec, last.server)
        dice[codec] = scores["unseen"]["scores"]["dice"]
    assert dice["none"] > 0.2
    assert dice == pytest.approx(dict.fromkeys(dice, dice["none"]), abs=0.02)
