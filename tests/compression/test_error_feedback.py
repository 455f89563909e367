"""Error feedback in both directions: rounding errors do not accumulate, and each end decodes the same bits."""

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

EACH = pytest.mark.parametrize("name", sorted(CODECS))
Tensors = dict[str, torch.Tensor]


def _model(seed: int, size: float = 1.0) -> Tensors:
    draw = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(4, 6, generator=draw) * size, "b": torch.randn(5, generator=draw) * size,
            "n": torch.tensor(seed)}  # fmt: skip


def _same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@EACH
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), size=st.floats(1e-5, 10), rounds=st.integers(1, 12))
def test_the_sum_of_decoded_updates_follows_the_sum_of_exact_ones(
    name: str, seed: int, size: float, rounds: int
) -> None:
    """The error stays within that of one update for any number of rounds; without feedback it would grow."""
    codec, received, residual = CODECS[name], _model(seed), {}
    exact, decoded = torch.zeros(4, 6, dtype=torch.float64), torch.zeros(4, 6, dtype=torch.float64)
    largest = 0.0
    for step in range(rounds):
        change = _model(seed + step + 1, size)
        trained = {key: received[key] + change[key] for key in received}
        sent = upload(trained, received, residual, codec)
        assert _same(read_upload(sent.arrays, received, codec), sent.tensors)
        residual = sent.residual
        exact += trained["w"].double() - received["w"].double()
        decoded += codec.decode(sent.arrays["w"], (4, 6)).double()
        largest = max(largest, float(change["w"].abs().max()))
        received = sent.tensors
    quantum = {"bfloat16": 2**-8, "float16": 2**-10, "int8": 1 / 126}[name] * largest * 1.1 + 1e-6
    assert (exact - decoded).abs().max() <= quantum
    assert torch.allclose(exact - decoded, residual["w"].double(), atol=1e-5 * max(1.0, size))


def test_what_float16_clamps_is_sent_with_the_next_update() -> None:
    codec, received = CODECS["float16"], {"w": torch.zeros(2)}
    first = upload({"w": torch.tensor([1e5, 1.0])}, received, {}, codec)
    second = upload(first.tensors, first.tensors, first.residual, codec)
    assert first.tensors["w"][0] == 65504
    assert second.tensors["w"][0] == pytest.approx(1e5, rel=1e-3)


def test_a_residual_is_retained_until_its_name_is_sent() -> None:
    sent = upload({"a": torch.tensor([0.3])}, {"a": torch.zeros(1)}, {"b": torch.ones(1)}, CODECS["bfloat16"])
    assert sent.residual["b"] == 1
    assert sent.residual["a"] != 0


def test_a_value_that_is_not_finite_does_not_enter_a_residual() -> None:
    with pytest.raises(UpdateError, match="the update of w has values that are not finite"):
        upload({"w": torch.tensor([float("nan")])}, {"w": torch.zeros(1)}, {}, CODECS["int8"])


class _Reader:
    """A site's end of the compression."""

    def __init__(self, held: Tensors, name: str) -> None:
        self.held, self.codec = held, CODECS[name]

    def read(self, download: Download, like: Tensors) -> Tensors:
        over = self.held if download.base else {}
        assert download.base in ("", digest(over))
        tensors = read_download(download, over, like, self.codec)
        self.held = {**over, **tensors}
        return tensors


@EACH
def test_every_site_holds_its_mirror_and_follows_its_target(name: str) -> None:
    shared = _model(0)
    compressor = DownlinkCompressor(CODECS[name])
    sites = {site: _Reader(dict(shared), name) for site in "abc"}
    for round_ in range(4):
        targets = dict.fromkeys(sites, _model(round_, 1.0) if round_ < 2 else _model(1, 1.0))
        compressor.advance(targets, targets["a"])
        for site, reader in sites.items():
            got = reader.read(compressor.download(site, digest(reader.held)), shared)
            assert _same(got, compressor.received(site))
            assert _same(reader.held, compressor.mirrors[site])
    # The target did not change for two rounds, so that the errors of the first were sent in the second.
    assert torch.allclose(got["w"], targets["a"]["w"], atol={"bfloat16": 1e-6, "float16": 1e-6, "int8": 1e-6}[name])


@EACH
def test_one_model_for_all_sites_costs_one_mirror_and_one_download(name: str) -> None:
    compressor, held = DownlinkCompressor(CODECS[name]), digest(_model(0))
    for round_ in range(3):
        shared = _model(round_)
        compressor.advance({f"site-{i}": shared for i in range(8)}, shared)
        mirrors = [compressor.mirrors[f"site-{i}"] for i in range(8)]
        assert all(mirror["w"] is mirrors[0]["w"] for mirror in mirrors)
        sent = [compressor.download(f"site-{i}", held) for i in range(8)]
        assert all(download.differences for download in sent)
        held = compressor.holds("site-0")
        assert all(download.arrays["w"] is sent[0].arrays["w"] for download in sent)
        size = sum(array.nbytes for array in sent[0].arrays.values())
        assert size == nbytes(layout(shared, CODECS[name]))


@EACH
@pytest.mark.parametrize("claim", ["", "unknown", "own"])
def test_a_site_that_holds_something_else_gets_whole_tensors_with_the_same_bits(name: str, claim: str) -> None:
    compressor, shared = DownlinkCompressor(CODECS[name]), _model(0)
    compressor.advance({"a": shared, "b": shared}, shared)
    target = _model(1)
    compressor.advance({"a": target, "b": target}, target)
    lost = _Reader(_model(9), name)
    download = compressor.download("b", digest(lost.held) if claim == "own" else claim)
    assert not download.differences
    assert not download.base
    assert _same(lost.read(download, shared), compressor.received("a"))
    following = _model(2)
    compressor.advance({"a": following, "b": following}, following)
    download = compressor.download("b", digest(lost.held))  # from then on differences again
    assert download.differences
    assert _same(lost.read(download, shared), compressor.received("b"))


def test_a_new_site_gets_what_other_sites_with_the_same_target_hold() -> None:
    compressor, shared, target = DownlinkCompressor(CODECS["int8"]), _model(0), _model(1)
    compressor.advance({"a": shared}, shared)
    compressor.advance({"a": target, "new": target}, target)
    compressor.join("late", target, target)
    own = _model(5)
    compressor.join("other", own, target)
    for site in ("new", "late"):
        assert compressor.mirrors[site]["w"] is compressor.mirrors["a"]["w"]
        assert not compressor.download(site, digest(shared) + "?").differences
    assert not torch.equal(compressor.received("other")["w"], compressor.received("a")["w"])
    assert torch.allclose(compressor.received("other")["w"], own["w"], atol=0.05)


def test_a_repeated_download_is_whole_and_changes_nothing_at_the_site() -> None:
    compressor, shared = DownlinkCompressor(CODECS["int8"]), _model(0)
    part = {"w": _model(1)["w"]}
    compressor.advance({"a": part}, shared)
    site = _Reader(dict(shared), "int8")
    first = site.read(compressor.download("a", digest(site.held)), shared)
    again = compressor.download("a", digest(site.held))
    assert (again.differences, again.base) == (False, digest(site.held))
    assert _same(site.read(again, shared), first)
    assert _same(site.held, compressor.mirrors["a"])


def test_sites_may_receive_different_parts_of_a_model() -> None:
    """One of them loses its state: both ends then forget the tensors that it was not sent."""
    compressor, shared, name = DownlinkCompressor(CODECS["int8"]), _model(0), "int8"
    sites = {"a": _Reader(dict(shared), name), "b": _Reader(dict(shared), name)}
    for round_, parts in enumerate([("w", "b"), ("b", "w"), ("w", "w"), ("b", "b"), ("w", "b")]):
        model = _model(round_)
        compressor.advance({"a": {parts[0]: model[parts[0]]}, "b": {parts[1]: model[parts[1]]}}, model)
        for site, reader in sites.items():
            if (site, round_) == ("b", 2):
                reader.held = _model(77)
            download = compressor.download(site, digest(reader.held))
            assert download.differences is ((site, round_) != ("b", 2))
            assert _same(reader.read(download, shared), compressor.received(site))
            assert _same(reader.held, compressor.mirrors[site])
            assert digest(reader.held) == compressor.holds(site)


def test_loaded_mirrors_continue_as_if_never_stopped() -> None:
    compressor, shared = DownlinkCompressor(CODECS["int8"]), _model(0)
    compressor.advance({"a": shared}, shared)
    again = DownlinkCompressor(CODECS["int8"], {"a": dict(compressor.mirrors["a"])})
    for each in (compressor, again):
        each.advance({"a": _model(1)}, _model(1))
    assert _same(compressor.received("a"), again.received("a"))
    before = digest(shared)
    assert compressor.download("a", before).base == again.download("a", before).base == before


@pytest.mark.parametrize(
    "change",
    [
        {"w": np.zeros((4, 7), np.uint8)}, {"w": np.zeros((4, 8), np.int8)}, {"w": np.zeros((6, 4), np.float32)},
        {"w": np.zeros((4, 6), np.float64)}, {"n": np.zeros(1, np.uint8)},
    ],
)  # fmt: skip
def test_a_download_in_another_form_is_rejected(change: dict[str, np.ndarray]) -> None:
    shared = _model(0)
    compressor = DownlinkCompressor(CODECS["int8"])
    compressor.advance({"a": shared}, shared)
    download = compressor.download("a", digest(shared))
    read_download(download, shared, shared, CODECS["int8"])
    with pytest.raises(UpdateError, match="which is not a form of"):
        read_download(replace(download, arrays={**download.arrays, **change}), shared, shared, CODECS["int8"])
    with pytest.raises(UpdateError, match="which is not a form of"):
        read_download(download, {}, shared, CODECS["int8"])  # differences without a base


def test_a_digest_covers_names_dtypes_shapes_and_bytes() -> None:
    one = _model(0)
    assert digest(one) == digest(dict(reversed(one.items())))
    others = [{**one, "w": one["w"].reshape(6, 4)}, {**one, "w": one["w"] + 1}, {"v": one["w"], **one},
              {**one, "n": torch.tensor(0, dtype=torch.int32)}, {}]  # fmt: skip
    assert len({digest(each) for each in [one, *others]}) == 6


@EACH
def test_a_variance_stays_above_zero(name: str) -> None:
    """Where one channel's is large and another's tiny, one int8 level would exceed the tiny one."""
    codec, start = CODECS[name], {"net.bn.running_var": torch.ones(2), "net.bn.weight": torch.ones(2)}
    trained = {"net.bn.running_var": torch.tensor([1e-3, 180.0]), "net.bn.weight": torch.tensor([1.1, 0.9])}
    sent = upload(trained, start, {}, codec)
    assert torch.equal(read_upload(sent.arrays, start, codec)["net.bn.running_var"], trained["net.bn.running_var"])
    assert set(sent.residual) == {"net.bn.weight"}
    compressor = DownlinkCompressor(codec)
    compressor.advance({"a": trained}, start)
    site = _Reader(dict(start), name)
    assert torch.equal(
        site.read(compressor.download("a", digest(start)), start)["net.bn.running_var"], trained["net.bn.running_var"]
    )
    assert _same(site.held, compressor.mirrors["a"])


def test_a_site_that_was_absent_has_no_mirror_and_gets_what_the_others_hold() -> None:
    compressor, shared = DownlinkCompressor(CODECS["int8"]), _model(0)
    compressor.advance({"a": shared, "b": shared}, shared)
    absent = _Reader(dict(shared), "int8")
    absent.read(compressor.download("b", digest(absent.held)), shared)
    for round_ in (1, 2):
        target = _model(round_)
        compressor.advance({"a": target}, target)
        assert set(compressor.mirrors) == {"a"}
    target = _model(3)
    compressor.advance({"a": target, "b": target}, target)
    assert _same(absent.read(compressor.download("b", digest(absent.held)), shared), compressor.received("a"))
    assert compressor.mirrors["b"]["w"] is compressor.mirrors["a"]["w"]


def test_forgotten_tensors_are_not_a_base_in_the_same_round() -> None:
    """A site without a digest gets its part whole; if it crashes and claims its old digest, it gets that again."""
    compressor, shared = DownlinkCompressor(CODECS["int8"]), _model(0)
    compressor.advance({"a": {"w": _model(1)["w"]}}, shared)
    site = _Reader(dict(shared), "int8")
    assert not compressor.download("a", "").base
    again = compressor.download("a", digest(shared))
    assert (again.differences, again.base) == (False, "")
    site.read(again, shared)
    assert digest(site.held) == compressor.holds("a")
    assert not compressor.download("a", "").differences


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="Linux lists the mapped files of a process")
def test_partial_downloads_leave_only_the_newest_file_mapped(tmp_path: Path) -> None:
    """FedRA's sites get other blocks each round: a mirror's old tensor must not retain its file."""
    names = [f"block-{index}" for index in range(8)]
    draw = np.random.default_rng(0)
    compressor = DownlinkCompressor(CODECS["int8"], store=lambda arrays: memory_mapped(arrays, tmp_path))
    shared = {name: torch.randn(4, 6) for name in names}
    readers = {site: _Reader(dict(shared), "int8") for site in "abc"}
    for _ in range(10):
        shared = {name: tensor + torch.randn(4, 6) for name, tensor in shared.items()}
        targets = {site: {name: shared[name] for name in draw.choice(names, 3, replace=False)} for site in readers}
        compressor.advance(targets, shared)
        for site, reader in readers.items():
            reader.read(compressor.download(site, digest(reader.held)), shared)
            assert _same(reader.held, compressor.mirrors[site])
        files = {line.split()[4] for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line}
        assert len(files) == 1
