"""FedHEAL: masks, distances, weights and steps by hand; absent and new sites; the server's state."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedfms.errors import StudyError, UpdateError
from fedfms.methods import ServerState, Tensors, Update, make_method
from fedfms.methods.fedheal import FedHEAL
from tests.methods.common import assert_extended_run_is_identical, card_states, run, same, study, vit_b


def _moved(server: ServerState, **deltas: list[float]) -> list[Update]:
    """Updates with these Delta_i = theta_global - theta_i of the one tensor w; sample counts have no effect."""
    return [
        Update(site, {"w": server.shared["w"] - torch.tensor(delta)}, samples=1 + index)
        for index, (site, delta) in enumerate(deltas.items())
    ]


def _known(rounds: int, increases: list[int], p: float, delta: float) -> dict[str, Any]:
    counts = {"w": torch.tensor(increases, dtype=torch.uint8)}
    return {"rounds": rounds, "increases": counts, "p": p, "delta": delta}


def test_the_first_round_by_hand() -> None:
    server = ServerState({"w": torch.zeros(1)})
    after = FedHEAL().aggregate(_moved(server, a=[1.0], b=[2.0], c=[-5.0]), server)
    # d = 1, 2, 5 of 8; p = 1/3 + 0.4 d/8 = 0.38333, 0.43333, 0.58333, together 1.4
    # step = (0.38333 x 1 + 0.43333 x 2 - 0.58333 x 5) / 1.4 = -1.66667 / 1.4
    torch.testing.assert_close(after.shared["w"], torch.tensor([1.6666667 / 1.4]))
    assert after.state["sites"]["c"]["p"] == pytest.approx(1 / 3 + 0.25)
    assert after.state["sites"]["c"]["delta"] == pytest.approx(0.25)
    assert [int(after.state["sites"][site]["increases"]["w"]) for site in "abc"] == [1, 1, 0]
    assert after.notes["weights"] == pytest.approx({"a": 0.2738095, "b": 0.3095238, "c": 0.4166667})
    assert after.notes["unmasked"] == {"a": 1.0, "b": 1.0, "c": 1.0}
    assert after.round == 1


def test_masks_of_three_sites_by_hand_and_an_element_that_all_mask() -> None:
    known = {
        "a": _known(2, [2, 0, 1], p=0.5, delta=0.1),
        "b": _known(2, [0, 2, 1], p=0.3, delta=0.0),
        "c": _known(2, [1, 0, 0], p=0.2, delta=0.2),
    }
    server = ServerState({"w": torch.tensor([0.0, 10.0, 0.0])}, round=2, state={"sites": known})
    after = FedHEAL().aggregate(_moved(server, a=[3.0, 1.0, 4.0], b=[6.0, -5.0, 8.0], c=[-7.0, 9.0, 5.0]), server)
    # consistency a: 2/2, 0/2, 1/2; b: 0/2, (2-2)/2, 1/2; c: (2-1)/2, 0/2, 0/2; above 0.3: 101, 001, 100
    # d = |3, 0, 4| = 5, |0, 0, 8| = 8, |-7, 0, 0| = 7, of 20
    # delta = 0.6 x (0.1, 0, 0.2) + 0.4 x (5, 8, 7)/20 = 0.16, 0.16, 0.26; p = 0.66, 0.46, 0.46
    # element 0: (0.66 x 3 - 0.46 x 7) / (0.66 + 0.46) = -1.24 / 1.12; element 2: (0.66 x 4 + 0.46 x 8) / 1.12
    torch.testing.assert_close(after.shared["w"], torch.tensor([1.24 / 1.12, 10.0, -6.32 / 1.12]))
    sites = after.state["sites"]
    assert [sites[site]["p"] for site in "abc"] == pytest.approx([0.66, 0.46, 0.46])
    assert [sites[site]["delta"] for site in "abc"] == pytest.approx([0.16, 0.16, 0.26])
    assert [sites[site]["increases"]["w"].tolist() for site in "abc"] == [[3, 1, 2], [1, 2, 2], [1, 1, 1]]
    assert {sites[site]["rounds"] for site in "abc"} == {3}
    assert after.notes["unmasked"] == pytest.approx({"a": 2 / 3, "b": 1 / 3, "c": 1 / 3})


def test_nothing_changes_if_all_masks_are_zero() -> None:
    known = {site: _known(4, [0], p=0.5, delta=0.2) for site in "ab"}
    server = ServerState({"w": torch.tensor([7.0])}, round=4, state={"sites": known})
    after = FedHEAL().aggregate(_moved(server, a=[1.0], b=[2.0]), server)
    assert after.shared["w"].item() == 7.0
    # all distances are 0: nothing is added to the growth, which decays: 0.6 x 0.2
    assert [after.state["sites"][site]["p"] for site in "ab"] == pytest.approx([0.62, 0.62])


def test_a_distance_is_the_sum_of_the_tensors_norms() -> None:
    server = ServerState({"v": torch.zeros(1), "w": torch.zeros(2)})
    rows: dict[str, Tensors] = {
        "a": {"v": torch.tensor([12.0]), "w": torch.tensor([3.0, 4.0])},  # 12 + 5
        "b": {"v": torch.tensor([17.0]), "w": torch.zeros(2)},
    }
    after = FedHEAL().aggregate([Update(site, tensors, 1) for site, tensors in rows.items()], server)
    assert [after.state["sites"][site]["p"] for site in "ab"] == pytest.approx([0.7, 0.7])


def test_an_absent_site_keeps_its_share_and_a_new_one_begins_at_the_mean() -> None:
    known = {"a": _known(1, [1], p=0.6, delta=0.0), "b": _known(1, [0], p=0.2, delta=0.05)}
    server = ServerState({"w": torch.zeros(1)}, round=5, state={"sites": known})
    after = FedHEAL().aggregate(_moved(server, a=[1.0], c=[-3.0]), server)
    sites = after.state["sites"]
    # c begins at (0.6 + 0.2) / 2; a: 0.6 + 0.4 x 1/4, c: 0.4 + 0.4 x 3/4; those two grew by 1.4 / 1.0, and b with them
    assert [sites[site]["p"] for site in "abc"] == pytest.approx([0.7, 0.28, 0.7])
    assert sites["b"]["p"] / sum(one["p"] for one in sites.values()) == pytest.approx(0.2 / (0.6 + 0.2 + 0.4))
    assert (sites["b"]["rounds"], sites["b"]["delta"], sites["b"]["increases"]["w"].item()) == (1, 0.05, 0)
    assert (sites["c"]["rounds"], sites["c"]["increases"]["w"].item()) == (1, 0)
    assert list(sites) == ["a", "b", "c"]
    torch.testing.assert_close(after.shared["w"], torch.tensor([-(0.7 * 1 - 0.7 * 3) / 1.4]))


@pytest.mark.parametrize(("increases", "delta"), [(3, 1.0), (7, -1.0)])
def test_both_signs_are_treated_alike_at_the_threshold(increases: int, delta: float) -> None:
    """3 of 10 rounds agree: not above 0.3, for either sign; in binary 1 - 0.7 is above it."""
    server = ServerState({"w": torch.zeros(1)}, round=10, state={"sites": {"a": _known(10, [increases], 1.0, 0.0)}})
    assert FedHEAL().aggregate(_moved(server, a=[delta]), server).notes["unmasked"] == {"a": 0.0}


@pytest.mark.parametrize(("rounds", "dtype"), [(254, torch.uint8), (255, torch.int16)])
def test_counts_do_not_overflow(rounds: int, dtype: torch.dtype) -> None:
    server = ServerState({"w": torch.zeros(1)}, state={"sites": {"a": _known(rounds, [rounds], 1.0, 0.0)}})
    counts = FedHEAL().aggregate(_moved(server, a=[1.0]), server).state["sites"]["a"]["increases"]["w"]
    assert (counts.item(), counts.dtype) == (rounds + 1, dtype)


_VALUES = st.lists(st.floats(-100, 100, width=32), min_size=4, max_size=4)


@given(st.lists(st.dictionaries(st.sampled_from("abcd"), _VALUES, min_size=1), min_size=1, max_size=5), st.randoms())
def test_the_model_stays_within_the_sites_values_in_any_order(rounds: list[Any], random: Any) -> None:
    server = other = ServerState({"w": torch.zeros(4)})
    for values in rounds:
        updates = [Update(site, {"w": torch.tensor(row)}, 1) for site, row in values.items()]
        old = server.shared["w"]
        server = FedHEAL().aggregate(updates, server)
        random.shuffle(updates)
        other = FedHEAL().aggregate(updates, other)
        assert torch.equal(server.shared["w"], other.shared["w"])
        assert server.notes == other.notes
        sent = torch.stack([old, *(update.tensors["w"] for update in updates)])
        assert (server.shared["w"] >= sent.amin(0) - 1e-4).all()
        assert (server.shared["w"] <= sent.amax(0) + 1e-4).all()


def test_no_updates_and_options_out_of_range_are_errors() -> None:
    with pytest.raises(UpdateError, match="no updates"):
        FedHEAL().aggregate([], ServerState({"w": torch.zeros(1)}))
    for options in ({"threshold": 1.0}, {"threshold": -0.1}, {"beta": 1.5}, {"beta": -1.0}):
        with pytest.raises(StudyError, match="method fedheal: "):
            make_method("fedheal", options)


@pytest.mark.slow
def test_a_resumed_run_keeps_its_history(tmp_path: Path) -> None:
    last = assert_extended_run_is_identical("fedheal", tmp_path)[-1]
    assert {site: one["rounds"] for site, one in last.server.state["sites"].items()} == {"a": 3, "b": 3}
    assert all(0 < share < 1 for share in last.server.notes["unmasked"].values())
    plain = run(study("fedmsa"), tmp_path / "plain")[-1]
    assert not same(plain.server.shared, last.server.shared)


def test_the_card_states_what_is_sent_and_what_the_server_stores() -> None:
    partition, sizes = vit_b("fedheal")
    assert sum(sizes[name] for name in partition.shared) == 11_026_666
    assert card_states("fedheal", 11_026_666)
    card = (Path(__file__).parents[2] / "docs" / "methods" / "fedheal.md").read_text()
    assert f"{7 * 11_026_666 / 1e6:.1f} MB" in card  # seven sites, one byte per element
