"""Error feedback, both ways: no rounding is lost for ever, and every message can be read where it is meant to be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfms.compression import (
    CODECS,
    DownlinkCompressor,
    Download,
    digest,
    layout,
    nbytes,
    read_download,
    read_upload,
    upload,
)
from fedfms.errors import UpdateError
from fedfms.federation.memory_mapped import memory_mapped

ANY = pytest.mark.parametrize("name", sorted(CODECS))
Tensors = dict[str, torch.Tensor]


def _model(seed: int, size: float = 1.0) -> Tensors:
    draw = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(4, 6, generator=draw) * size, "b": torch.randn(5, generator=draw) * size,
            "n": torch.tensor(seed)}  # fmt: skip


def _same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@ANY
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), size=st.floats(1e-5, 10), rounds=st.integers(1, 12))
def test_the_sum_of_what_arrives_follows_the_sum_of_what_was_meant(
    name: str, seed: int, size: float, rounds: int
) -> None:
    """Within what one message loses, however many there are; without feedback the losses would add up."""
    codec, received, residual = CODECS[name], _model(seed), {}
    meant, arrived = torch.zeros(4, 6, dtype=torch.float64), torch.zeros(4, 6, dtype=torch.float64)
    largest = 0.0
    for step in range(rounds):
        change = _model(seed + step + 1, size)
        trained = {key: received[key] + change[key] for key in received}
        sent = upload(trained, received, residual, codec)
        assert _same(read_upload(sent.arrays, received, codec), sent.tensors)
        residual = sent.residual
        meant += trained["w"].double() - received["w"].double()
        arrived += codec.decode(sent.arrays["w"], (4, 6)).double()
        largest = max(largest, float(change["w"].abs().max()))
        received = sent.tensors
    quantum = {"bfloat16": 2**-8, "float16": 2**-10, "int8": 1 / 126}[name] * largest * 1.1 + 1e-6
    assert (meant - arrived).abs().max() <= quantum
    assert torch.allclose(meant - arrived, residual["w"].double(), atol=1e-5 * max(1.0, size))


def test_what_float16_cannot_carry_goes_with_the_next() -> None:
    codec, received = CODECS["float16"], {"w": torch.zeros(2)}
    first = upload({"w": torch.tensor([1e5, 1.0])}, received, {}, codec)
    second = upload(first.tensors, first.tensors, first.residual, codec)
    assert first.tensors["w"][0] == 65504
    assert second.tensors["w"][0] == pytest.approx(1e5, rel=1e-3)


def test_a_residual_waits_for_its_name() -> None:
    sent = upload({"a": torch.tensor([0.3])}, {"a": torch.zeros(1)}, {"b": torch.ones(1)}, CODECS["bfloat16"])
    assert sent.residual["b"] == 1
    assert sent.residual["a"] != 0


def test_no_number_that_is_none_stays_in_a_residual() -> None:
    with pytest.raises(UpdateError, match="the update of w has values that are not finite"):
        upload({"w": torch.tensor([float("nan")])}, {"w": torch.zeros(1)}, {}, CODECS["int8"])


class _Reader:
    """A site's end, without a site."""

    def __init__(self, held: Tensors, name: str) -> None:
        self.held, self.codec = held, CODECS[name]

    def read(self, download: Download, like: Tensors) -> Tensors:
        over = self.held if download.base else {}
        assert download.base in ("", digest(over))
        tensors = read_download(download, over, like, self.codec)
        self.held = {**over, **tensors}
        return tensors


@ANY
def test_every_site_holds_what_its_mirror_says_and_follows_its_target(name: str) -> None:
    shared = _model(0)
    downlink = DownlinkCompressor(CODECS[name])
    sites = {site: _Reader(dict(shared), name) for site in "abc"}
    for round_ in range(4):
        targets = dict.fromkeys(sites, _model(round_, 1.0) if round_ < 2 else _model(1, 1.0))
        downlink.advance(targets, targets["a"])
        for site, reader in sites.items():
            got = reader.read(downlink.message(site, digest(reader.held)), shared)
            assert _same(got, downlink.received(site))
            assert _same(reader.held, downlink.mirrors[site])
    # The target has stood still for two rounds: what was lost came after it.
    assert torch.allclose(got["w"], targets["a"]["w"], atol={"bfloat16": 1e-6, "float16": 1e-6, "int8": 1e-6}[name])


@ANY
def test_one_model_for_all_is_one_mirror_and_one_message(name: str) -> None:
    downlink = DownlinkCompressor(CODECS[name])
    for round_ in range(3):
        shared = _model(round_)
        downlink.advance({f"site-{i}": shared for i in range(8)}, shared)
        mirrors = [downlink.mirrors[f"site-{i}"] for i in range(8)]
        assert all(mirror["w"] is mirrors[0]["w"] for mirror in mirrors)
        sent = [downlink.message(f"site-{i}", downlink._lines["site-0"].before) for i in range(8)]
        assert all(message.arrays["w"] is sent[0].arrays["w"] for message in sent)
        size = sum(array.nbytes for array in sent[0].arrays.values())
        assert size == nbytes(layout(shared, CODECS[name]))


@ANY
@pytest.mark.parametrize("claim", ["", "another", "own"])
def test_a_site_that_holds_something_else_gets_the_whole_and_the_same_bits(name: str, claim: str) -> None:
    downlink, shared = DownlinkCompressor(CODECS[name]), _model(0)
    downlink.advance({"a": shared, "b": shared}, shared)
    target = _model(1)
    downlink.advance({"a": target, "b": target}, target)
    lost = _Reader(_model(9), name)
    message = downlink.message("b", digest(lost.held) if claim == "own" else claim)
    assert not message.differences
    assert not message.base
    assert _same(lost.read(message, shared), downlink.received("a"))
    following = _model(2)
    downlink.advance({"a": following, "b": following}, following)
    message = downlink.message("b", digest(lost.held))  # and from then on differences again
    assert message.differences
    assert _same(lost.read(message, shared), downlink.received("b"))


def test_a_newcomer_gets_what_the_others_of_its_target_hold() -> None:
    downlink, shared, target = DownlinkCompressor(CODECS["int8"]), _model(0), _model(1)
    downlink.advance({"a": shared}, shared)
    downlink.advance({"a": target, "new": target}, target)
    downlink.join("late", target, target)
    own = _model(5)
    downlink.join("other", own, target)
    for site in ("new", "late"):
        assert downlink.mirrors[site]["w"] is downlink.mirrors["a"]["w"]
        assert not downlink.message(site, digest(shared) + "?").differences
    assert not torch.equal(downlink.received("other")["w"], downlink.received("a")["w"])
    assert torch.allclose(downlink.received("other")["w"], own["w"], atol=0.05)


def test_a_round_that_a_site_did_before_is_sent_whole_and_keeps_what_it_holds() -> None:
    downlink, shared = DownlinkCompressor(CODECS["int8"]), _model(0)
    part = {"w": _model(1)["w"]}
    downlink.advance({"a": part}, shared)
    site = _Reader(dict(shared), "int8")
    first = site.read(downlink.message("a", digest(site.held)), shared)
    again = downlink.message("a", digest(site.held))
    assert (again.differences, again.base) == (False, digest(site.held))
    assert _same(site.read(again, shared), first)
    assert _same(site.held, downlink.mirrors["a"])


def test_parts_of_a_model_go_by_name() -> None:
    """Two sites with parts of their own; one loses its state, and what it was not sent is forgotten at both ends."""
    downlink, shared, name = DownlinkCompressor(CODECS["int8"]), _model(0), "int8"
    sites = {"a": _Reader(dict(shared), name), "b": _Reader(dict(shared), name)}
    for round_, parts in enumerate([("w", "b"), ("b", "w"), ("w", "w"), ("b", "b"), ("w", "b")]):
        model = _model(round_)
        downlink.advance({"a": {parts[0]: model[parts[0]]}, "b": {parts[1]: model[parts[1]]}}, model)
        for site, reader in sites.items():
            if (site, round_) == ("b", 2):
                reader.held = _model(77)
            message = downlink.message(site, digest(reader.held))
            assert message.differences is ((site, round_) != ("b", 2))
            assert _same(reader.read(message, shared), downlink.received(site))
            assert _same(reader.held, downlink.mirrors[site])
            assert digest(reader.held) == downlink.holds(site)


def test_mirrors_from_disk_go_on_as_if_never_stopped() -> None:
    downlink, shared = DownlinkCompressor(CODECS["int8"]), _model(0)
    downlink.advance({"a": shared}, shared)
    again = DownlinkCompressor(CODECS["int8"], {"a": dict(downlink.mirrors["a"])})
    for each in (downlink, again):
        each.advance({"a": _model(1)}, _model(1))
    assert _same(downlink.received("a"), again.received("a"))
    before = digest(shared)
    assert downlink.message("a", before).base == again.message("a", before).base == before


@pytest.mark.parametrize(
    "change",
    [
        {"w": np.zeros((4, 7), np.uint8)}, {"w": np.zeros((4, 8), np.int8)}, {"w": np.zeros((6, 4), np.float32)},
        {"w": np.zeros((4, 6), np.float64)}, {"n": np.zeros(1, np.uint8)},
    ],
)  # fmt: skip
def test_a_download_of_another_form_is_refused(change: dict[str, np.ndarray]) -> None:
    shared = _model(0)
    downlink = DownlinkCompressor(CODECS["int8"])
    downlink.advance({"a": shared}, shared)
    message = downlink.message("a", digest(shared))
    read_download(message, shared, shared, CODECS["int8"])
    with pytest.raises(UpdateError, match="which is no form of"):
        read_download(replace(message, arrays={**message.arrays, **change}), shared, shared, CODECS["int8"])
    with pytest.raises(UpdateError, match="which is no form of"):
        read_download(message, {}, shared, CODECS["int8"])  # differences to nothing


def test_a_digest_is_of_names_dtypes_shapes_and_bytes() -> None:
    one = _model(0)
    assert digest(one) == digest(dict(reversed(one.items())))
    others = [{**one, "w": one["w"].reshape(6, 4)}, {**one, "w": one["w"] + 1}, {"v": one["w"], **one},
              {**one, "n": torch.tensor(0, dtype=torch.int32)}, {}]  # fmt: skip
    assert len({digest(each) for each in [one, *others]}) == 6


@ANY
def test_a_variance_stays_above_zero(name: str) -> None:
    """One channel's grows far, another's shrinks to next to nothing: a level of the one is more than the other has."""
    codec, start = CODECS[name], {"net.bn.running_var": torch.ones(2), "net.bn.weight": torch.ones(2)}
    trained = {"net.bn.running_var": torch.tensor([1e-3, 180.0]), "net.bn.weight": torch.tensor([1.1, 0.9])}
    sent = upload(trained, start, {}, codec)
    assert torch.equal(read_upload(sent.arrays, start, codec)["net.bn.running_var"], trained["net.bn.running_var"])
    assert set(sent.residual) == {"net.bn.weight"}
    downlink = DownlinkCompressor(codec)
    downlink.advance({"a": trained}, start)
    site = _Reader(dict(start), name)
    assert torch.equal(
        site.read(downlink.message("a", digest(start)), start)["net.bn.running_var"], trained["net.bn.running_var"]
    )
    assert _same(site.held, downlink.mirrors["a"])


def test_a_site_that_was_absent_has_no_mirror_and_gets_what_the_others_hold() -> None:
    downlink, shared = DownlinkCompressor(CODECS["int8"]), _model(0)
    downlink.advance({"a": shared, "b": shared}, shared)
    absent = _Reader(dict(shared), "int8")
    absent.read(downlink.message("b", digest(absent.held)), shared)
    for round_ in (1, 2):
        target = _model(round_)
        downlink.advance({"a": target}, target)
        assert set(downlink.mirrors) == {"a"}
    target = _model(3)
    downlink.advance({"a": target, "b": target}, target)
    assert _same(absent.read(downlink.message("b", digest(absent.held)), shared), downlink.received("a"))
    assert downlink.mirrors["b"]["w"] is downlink.mirrors["a"]["w"]


def test_what_is_forgotten_is_no_base_in_the_same_round() -> None:
    """A site that claims nothing gets a part of the model, whole, and after a crash finds out what it holds."""
    downlink, shared = DownlinkCompressor(CODECS["int8"]), _model(0)
    downlink.advance({"a": {"w": _model(1)["w"]}}, shared)
    site = _Reader(dict(shared), "int8")
    assert not downlink.message("a", "").base
    again = downlink.message("a", digest(shared))
    assert (again.differences, again.base) == (False, "")
    site.read(again, shared)
    assert digest(site.held) == downlink.holds("a")
    assert not downlink.message("a", "").differences


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="Linux tells what a process has mapped")
def test_a_part_of_the_model_a_round_leaves_the_newest_file_alone(tmp_path: Path) -> None:
    """FedRA's sites get other blocks each round: what one keeps of an old round must not hold that round's file."""
    names = [f"block-{index}" for index in range(8)]
    draw = np.random.default_rng(0)
    downlink = DownlinkCompressor(CODECS["int8"], keep=lambda arrays: memory_mapped(arrays, tmp_path))
    shared = {name: torch.randn(4, 6) for name in names}
    readers = {site: _Reader(dict(shared), "int8") for site in "abc"}
    for _ in range(10):
        shared = {name: tensor + torch.randn(4, 6) for name, tensor in shared.items()}
        targets = {site: {name: shared[name] for name in draw.choice(names, 3, replace=False)} for site in readers}
        downlink.advance(targets, shared)
        for site, reader in readers.items():
            reader.read(downlink.message(site, digest(reader.held)), shared)
            assert _same(reader.held, downlink.mirrors[site])
        files = {line.split()[4] for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line}
        assert len(files) == 1
