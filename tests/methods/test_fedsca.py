"""FedSCA and its ablations: the partition, equality with FedAvg, resumed runs, the cards."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from fedfms.errors import StudyError
from fedfms.methods import METHODS, Layout, ServerState, Update, make_method
from fedfms.methods.fedavg import weighted_mean
from fedfms.settings import SiteSettings
from fedfms.training.build import build

from .common import run, same, study, vit_b

CARDS = Path(__file__).parents[2] / "docs" / "methods"
PAPER_PARAMETERS = 14_730_000  # of FedSCA's model: 56.2 MiB of float32
TRIPS = 4 * 100  # sites x rounds of the paper's Table 3
LAYOUT = Layout(
    {"enc": "encoder", "a1.w": "adapter", "a1.b": "adapter", "a2.w": "adapter", "dec": "decoder", "head": "head"},
    (("a1.w", "a1.b"), ("a2.w",)),
)


@pytest.mark.parametrize(
    ("method", "options", "shared"),
    [
        ("fedsca", {}, ("a1.w", "a1.b")),
        ("fedsca", {"layers": 2}, ("a1.w", "a1.b", "a2.w")),
        ("fedsca", {"share_decoder": True}, ("a1.w", "a1.b", "dec", "head")),
        ("sgca", {}, ("a1.w", "a1.b", "a2.w", "dec", "head")),
        ("lat", {}, ("a1.w", "a1.b")),
        ("lat", {"layers": 2}, ("a1.w", "a1.b", "a2.w")),
    ],
)
def test_the_partition(method: str, options: Mapping[str, Any], shared: tuple[str, ...]) -> None:
    partition = make_method(method, options).partition(LAYOUT)
    assert partition.shared == shared
    assert partition.frozen == ("enc",)
    assert partition.trained == {"a1.w", "a1.b", "a2.w", "dec", "head"}
    assert METHODS[method].personal


@pytest.mark.parametrize("method", ["fedsca", "lat"])
@pytest.mark.parametrize("layers", [0, -1, 3])
def test_layers_out_of_range(method: str, layers: int) -> None:
    with pytest.raises(StudyError) as caught:
        make_method(method, {"layers": layers}).partition(LAYOUT)
    assert caught.value.line() == f"method {method}: layers is {layers}; from 1 to 2 with this backbone"


def test_lat_is_a_plain_mean_by_hand() -> None:
    updates = [Update(s, {"w": torch.tensor([v])}, n) for s, v, n in (("a", 1.0, 10), ("b", 2.0, 30), ("c", 4.0, 60))]
    after = make_method("lat", {}).aggregate(updates, ServerState(shared=updates[0].tensors))
    assert torch.equal(after.shared["w"], torch.tensor([3.1]))  # (10 + 60 + 240) / 100
    assert (after.per_site, after.notes, after.state) == ({}, {}, {})


def test_with_alpha_0_a_mixture_equals_the_mean() -> None:
    generator = torch.Generator().manual_seed(3)
    samples = dict(zip("abcde", (3, 1, 99, 7, 40), strict=True))
    updates = [Update(s, {"w": torch.randn(50, 40, generator=generator)}, n) for s, n in samples.items()]
    after = make_method("fedsca", {"alpha": 0.0}).aggregate(updates, ServerState(shared=updates[0].tensors))
    mean = weighted_mean(updates)
    assert same(after.shared, mean)
    one_step = torch.finfo(torch.float32).eps  # where the exact mean is halfway between two numbers
    for site in "abcde":
        torch.testing.assert_close(after.per_site[site], mean, rtol=one_step, atol=0)


@pytest.mark.slow
def test_sharing_all_with_alpha_and_beta_0_equals_fedmsa(tmp_path: Path) -> None:
    everything = {"layers": 8, "share_decoder": True, "alpha": 0, "beta": 0}  # vit_tiny: 4 blocks
    fedsca = run(study("fedsca", "sites=[a, b, c]", options=everything, rounds=1), tmp_path / "fedsca")[0]
    fedmsa = run(study("fedmsa", "sites=[a, b, c]", rounds=1), tmp_path / "fedmsa")[0]
    assert same(fedsca.server.shared, fedmsa.server.shared)
    for site in ("a", "b", "c"):
        assert same(fedsca.results[site].update.tensors, fedmsa.results[site].update.tensors)
        torch.testing.assert_close(fedsca.server.per_site[site], fedmsa.server.shared, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "options"), [("fedsca", {"layers": 2}), ("sgca", {}), ("lat", {})])
def test_a_resumed_run_gives_the_same_bits(method: str, options: Mapping[str, Any], tmp_path: Path) -> None:
    made = study(method, "sites=[a, b, c]", options=options)
    whole = run(made, tmp_path / "whole")
    run(made, tmp_path / "stopped", stop_after=1)
    again = run(made, tmp_path / "stopped")
    assert [r.round for r in again] == [1]
    shared = build(made, SiteSettings()).partition.shared
    for one, other in zip(whole[1:], again, strict=True):
        assert same(one.server.shared, other.server.shared)
        assert one.server.notes == other.server.notes
        for site in ("a", "b", "c"):
            assert same(one.received[site], other.received[site])
            assert same(one.results[site].update.tensors, other.results[site].update.tensors)
            assert tuple(one.results[site].update.tensors) == shared  # no private tensor
    personal = [whole[-1].received[site] for site in ("a", "b", "c")]
    assert same(personal[0], personal[1]) == (method == "lat")  # SGCA gives each site its own mixture


def _numbers(card: str, pattern: str) -> list[float]:
    """The numbers in the only match of `pattern` in a card."""
    found = re.findall(pattern, " ".join((CARDS / f"{card}.md").read_text().split()))
    assert len(found) == 1, f"{pattern} matches {len(found)} times"
    groups = found[0] if isinstance(found[0], tuple) else (found[0],)
    return [float(text.replace(",", "")) for text in groups]


@pytest.mark.parametrize("method", ["fedsca", "sgca", "lat"])
def test_the_cards_sizes_equal_the_partitions(method: str) -> None:
    partition, count = vit_b(method, 1)
    shared, trained = (sum(count[name] for name in names) for names in (partition.shared, partition.trained))
    of = r"\*\*([\d,]+) parameters, ([\d.]+) MB\*\* each way"
    assert _numbers(method, of) == [shared, round(shared * 4 / 1e6, 2)]
    assert _numbers(method, r"of ([\d,]+) trained") == [trained]


def test_the_other_sizes_in_the_cards() -> None:
    partition, count = vit_b("sgca")
    shared = sum(count[name] for name in partition.shared)
    assert _numbers("sgca", r"structures ([\d,]+) and ([\d.]+) MB\)") == [shared, round(shared * 4 / 1e6, 1)]
    partition, count = vit_b("fedmsa", 1)
    assert _numbers("lat", r"`fedmsa` sends ([\d.]+) MB") == [
        round(sum(count[name] for name in partition.shared) * 4 / 1e6, 1)
    ]


def test_table_3_of_the_card() -> None:
    """Megabytes of float32, one way, 4 sites x 100 rounds; the paper's from its number of parameters."""
    ours = {}
    for method in ("fedmsa", "fedsca"):
        partition, count = vit_b(method, 1)
        ours[method] = [sum(count[n] for n in names) for names in (partition.trained, partition.shared)]
    number = r" ([\d,.]+) "
    for row, paper_shared, (trained, shared) in (
        ("FedAvg", PAPER_PARAMETERS, ours["fedmsa"]), ("FedSCA", PAPER_PARAMETERS / 36, ours["fedsca"]),
    ):  # fmt: skip
        cells = _numbers("fedsca", rf"\| {row} \| [\w.]+ / [\w.]+ \|" + r"\|".join([number] * 4) + r"\|")
        millions = [PAPER_PARAMETERS / 1e6, trained / 1e6]
        sent = [parameters * 4 * TRIPS / 1e6 for parameters in (paper_shared, shared)]
        assert cells == [round(millions[0], 2), round(sent[0], 1), round(millions[1], 2), round(sent[1], 1)]
