"""A site in trouble: too little memory, a kill in the middle of a write, a full disk. What is lost, and what is not."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from fedfms.errors import TrainingError, UpdateError
from fedfms.methods import Server, Tensors
from fedfms.models import SegmentationModel
from fedfms.settings import SiteSettings
from fedfms.study import Study
from fedfms.training.build import build
from fedfms.training.memory import out_of_memory
from fedfms.training.prefix import PrefixCache
from fedfms.training.server import ServerStore
from fedfms.training.site import Site
from fedfms.training.spool import spooled
from fedfms.training.state import SiteState, StateStore
from fedfms.training.trainer import Trainer
from tests.disk import NO_ROOM, SmallDisk
from tests.methods.common import SITES, run, same, study
from tests.training.make import batch_of, study_of

ALLOCATOR = "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"
FAULTS = {
    "card": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "processor": lambda: RuntimeError(ALLOCATOR),
    "python": MemoryError,
}


def hold(model: SegmentationModel, most: int, fault: Callable[[], Exception] = FAULTS["card"]) -> list[int]:
    """Let memory run out with more than `most` images at a time; in training with dropout, whose numbers are drawn by
    then. Returns, as they come, the numbers of images that are asked for.
    """
    real, asked = model.from_prefix, []

    def limited(features: torch.Tensor) -> torch.Tensor:
        asked.append(len(features))
        logits = real(functional.dropout(features, 0.2) if torch.is_grad_enabled() else features)
        if len(features) > most:
            raise fault()
        return logits

    model.from_prefix = limited  # type: ignore[method-assign]
    return asked


def _site(folder: Path, of: Study, micro_batch: int = 0) -> Site:
    return Site(of, "a", SiteSettings(micro_batch=micro_batch), folder)


def _two_rounds(folder: Path, of: Study, most: int, micro_batch: int = 0) -> tuple[list[Tensors], list[int]]:
    """The updates of two rounds, by a site that is made anew for each, and the images asked for in the second."""
    torch.manual_seed(0)
    received, updates = build(of, SiteSettings()).shared(), []
    for round_ in range(2):
        site = _site(folder, of, micro_batch)
        asked = hold(site.built.model, most)
        updates.append(site.train_round(round_, received).update.tensors)
    return updates, asked


def test_out_of_memory_in_training_gives_the_numbers_of_a_smaller_micro_batch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """To the last bit, dropout's numbers with them; and so in the next round, in which nothing fails again."""
    of = study("fedmsa", "data.phantom_images=10", "train.batch_size=8")
    with caplog.at_level(logging.WARNING):
        short, asked = _two_rounds(tmp_path / "short", of, most=2)
    told = [record.getMessage() for record in caplog.records if "memory" in record.getMessage()]
    assert told == [f"memory ran out with {n} slices at a time: {n // 2} from here on" for n in (8, 4)]
    assert max(asked) == 2
    set_so, _ = _two_rounds(tmp_path / "set", of, most=2, micro_batch=2)
    assert all(same(one, other) for one, other in zip(short, set_so, strict=True))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("method", ["fedmsa", "fedprox"])
def test_nothing_of_a_step_that_ran_out_of_memory_remains(method: str, fault: str) -> None:
    """It runs out in the backward pass, with most gradients made; the step's own are those of the batch as a whole."""
    steps = []
    for most in (9, 2):
        of = study_of(method)
        built = build(of, SiteSettings())
        trainer = Trainer(built, of.train, of.structure_names)
        optimizer, batch, received = trainer.optimizer(0), batch_of(built.model), built.shared()
        asked, real = [0], built.model.from_prefix
        built.model.from_prefix = lambda f, real=real, asked=asked: asked.append(len(f)) or real(f)  # type: ignore[method-assign, misc]

        def burst(_: torch.Tensor, asked: list[int] = asked, most: int = most) -> None:
            if asked[-1] > most:
                raise FAULTS[fault]()

        next(iter(built.parameters().values())).register_post_accumulate_grad_hook(burst)
        loss = trainer.epoch([batch], optimizer, received, cached=False)
        grads = {name: p.grad for name, p in built.parameters().items() if not name.endswith("k_proj.bias")}
        steps.append((loss, grads, asked[1:]))
    assert [asked for *_, asked in steps] == [[5], [5, 2, 2, 1]]
    assert steps[0][0] == pytest.approx(steps[1][0], rel=1e-6)
    for name, grad in steps[0][1].items():
        assert float((grad - steps[1][1][name]).norm()) <= 1e-6 * float(grad.norm()) + 1e-8, name  # type: ignore[operator]


def test_out_of_memory_in_scoring_gives_the_same_scores() -> None:
    of, found = study_of(), []
    for most in (9, 1):
        built = build(of, SiteSettings())
        asked = hold(built.model, most)
        found.append(Trainer(built, of.train, of.structure_names).score([batch_of(built.model)] * 2).result())
    assert asked == [5, 2, 1, 1, 1, 1, 1] + [1] * 5
    assert found[0]["dice"] == pytest.approx(found[1]["dice"], abs=1e-6)


def test_out_of_memory_with_one_slice_is_told(tmp_path: Path) -> None:
    of = study("fedmsa")
    site = _site(tmp_path, of)
    hold(site.built.model, 0)
    for attempt in (lambda: site.train_round(0, site.built.shared()), lambda: site.evaluate(site.built.shared())):
        with pytest.raises(TrainingError, match="^site a.*: memory ran out with one slice at a time; write") as caught:
            attempt()
        assert "CUDA" not in caught.value.line()
    assert StateStore(tmp_path / "state").load() is None


def test_out_of_memory_of_a_model_that_takes_its_batch_whole_is_told() -> None:
    of = study_of("fedunet", "unet_tiny")
    built = build(of, SiteSettings())
    hold(built.model, 2)
    trainer = Trainer(built, of.train, of.structure_names)
    with pytest.raises(TrainingError, match="takes its batch of 5 slices as a whole; lower train"):
        trainer.epoch([batch_of(built.model)], trainer.optimizer(0), {}, cached=False)
    assert trainer.predict(batch_of(built.model)).shape[0] == 5


def test_out_of_memory_outside_of_a_batch_is_told_and_the_next_round_is_as_if_nothing_had_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The optimizer's own step cannot be taken back: the round is, which begins anew from what is on disk."""
    of = study("fedmsa")
    kept, fresh = _site(tmp_path / "kept", of), _site(tmp_path / "fresh", of)
    received = kept.built.shared()
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", lambda *_: torch.empty(2**60))
        with pytest.raises(TrainingError, match="^site a, round 0: memory ran out; write a smaller `micro_batch`"):
            kept.train_round(0, received)
    again = kept.train_round(0, received).update.tensors
    assert same(again, fresh.train_round(0, received).update.tensors)


def test_other_faults_are_not_taken_for_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert out_of_memory(caught.value)
    assert not out_of_memory(RuntimeError("The size of tensor a (3) must match the size of tensor b (2)"))
    assert not out_of_memory(ValueError("out of memory"))


class _Killed(BaseException):
    """Stands for SIGKILL."""


def _killed_at(number: int, renamed: bool, patch: pytest.MonkeyPatch) -> None:
    """Be killed at the write of this number: when all is written and not renamed, or just after; half a file is left
    beside, as of a kill while it was written.
    """
    real, writes = os.replace, itertools.count()

    def replace(source: Any, target: Any) -> None:
        if next(writes) == number:
            content = Path(source).read_bytes()
            Path(f"{source}"[: -len(".tmp")] + "x.tmp").write_bytes(content[: len(content) // 2])
            if renamed:
                real(source, target)
            raise _Killed
        real(source, target)

    patch.setattr(os, "replace", replace)


def test_a_kill_at_any_write_of_a_round_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each site's state and the server's, before and after the rename: what was killed goes on to the same bits."""
    of, first = study("fedmsa", "model.input_px=32", "data.phantom_px=32"), tmp_path / "first"
    run(of, first, stop_after=1)
    shutil.copytree(first, tmp_path / "whole")
    whole = run(of, tmp_path / "whole")[-1]
    for number, renamed in itertools.product(range(len(SITES) + 1), (False, True)):
        folder = tmp_path / f"{number} {renamed}"
        shutil.copytree(first, folder)
        with monkeypatch.context() as patch, pytest.raises(_Killed):
            _killed_at(number, renamed, patch)
            run(of, folder)
        run(of, folder)
        server = ServerStore(folder / "server.pt").load()
        assert server is not None
        assert same(server.shared, whole.server.shared)
        for site in SITES:
            one, other = (StateStore(place / site / "state").load() for place in (folder, tmp_path / "whole"))
            assert one is not None
            assert other is not None
            assert (one.round, same(one.trained, other.trained)) == (other.round, True)


def test_a_state_that_is_cut_anywhere_is_never_read_in_part(tmp_path: Path) -> None:
    """Neither the site's nor the server's; the file of the round before is as it was."""
    states, server = StateStore(tmp_path / "state"), ServerStore(tmp_path / "server.pt")
    for round_ in range(2):
        states.save(SiteState(round_, {"w": torch.full((3,), float(round_))}, {"state": {}}))
    server.save(Server({"w": torch.ones(3)}, 2))
    for path, load in ((tmp_path / "state" / "round_00001.pt", states.load), (tmp_path / "server.pt", server.load)):
        content = path.read_bytes()
        for length in (*range(0, len(content), 13), *range(len(content) - 30, len(content))):
            path.write_bytes(content[:length])
            with pytest.raises(TrainingError, match="cannot be read; remove the run's folder"):
                load()
    before = states.load(before=1)
    assert before is not None
    assert before.trained["w"].tolist() == [0, 0, 0]


def test_what_a_kill_has_left_is_removed_by_the_next_write(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    (tmp_path / ".round_00000.pt.abc.tmp").write_bytes(b"half")
    assert store.load() is None
    store.save(SiteState(0, {"w": torch.zeros(1)}, {}))
    assert [path.name for path in tmp_path.iterdir()] == ["round_00000.pt"]


@pytest.fixture(scope="module")
def tiny_vit() -> Study:
    model = {"backbone": "tiny_vit", "input_px": 32}
    train = {"batch_size": 2, "rounds": 1}
    return Study.from_dict({"name": "t", "data": {"phantom_images": 4}, "model": model, "train": train})


def test_a_kept_feature_that_is_cut_anywhere_is_worked_out_anew(tiny_vit: Study, tmp_path: Path) -> None:
    cache = PrefixCache(build(tiny_vit, SiteSettings()), tmp_path)
    image, key = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)), "a" * 64
    whole = cache.features(image, [key])
    (path,) = tmp_path.rglob("*.npy")
    content = path.read_bytes()
    for length in (0, 1, 5, 60, 127, 128, 129, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        torch.testing.assert_close(cache.features(image, [key]), whole, rtol=0, atol=0)
        assert path.read_bytes() == content


def test_a_full_disk_under_the_cache_costs_time_alone(
    tiny_vit: Study, disk: SmallDisk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    updates = []
    for full in (True, False):
        site = Site(tiny_vit, "a", SiteSettings(cache=disk.folder if full else None), tmp_path / str(full))
        received = site.built.shared()
        if full:
            disk.fill()
            # The limit on files that stands in for a full disk would hold for the site's state, too.
            site._store.save = lambda state: None  # type: ignore[method-assign]
        with caplog.at_level(logging.WARNING):
            updates.append(site.train_round(0, received).update.tensors)
        disk.free()
    told = [record.getMessage() for record in caplog.records if "cache" in record.getMessage()]
    assert len(told) == 1
    assert str(disk.folder) not in told[0]
    assert same(*updates)


def test_a_full_disk_under_a_sites_state_is_told_and_loses_nothing(disk: SmallDisk, tmp_path: Path) -> None:
    of = study("fedmsa")
    site, other = _site(disk.folder / "run", of), _site(tmp_path / "other", of)
    received = site.built.shared()
    second = [each.train_round(0, received).update.tensors for each in (site, other)][0]
    disk.fill()
    what = f"^site a, round 1: the state after round 1 cannot be written {NO_ROOM}; make room in the folder of its runs"
    with pytest.raises(TrainingError, match=what) as caught:
        site.train_round(1, second)
    assert str(disk.folder) not in caught.value.line()
    disk.free()
    assert [path.name for path in (disk.folder / "run" / "state").iterdir()] == ["round_00000.pt"]
    again = site.train_round(1, second).update.tensors
    assert same(again, other.train_round(1, second).update.tensors)


def test_a_full_disk_under_what_a_site_keeps_for_itself_is_told(disk: SmallDisk) -> None:
    site = _site(disk.folder / "run", study("fedmsa"))
    shared = site.built.shared()
    site.evaluate(shared, overlays="best")
    disk.fill()
    with pytest.raises(TrainingError, match=f"^site a: what the site keeps of the run cannot be written {NO_ROOM}"):
        site.evaluate(shared, overlays="final")


def test_a_full_disk_under_the_servers_state_is_told_and_loses_nothing(disk: SmallDisk) -> None:
    store = ServerStore(disk.folder / "server.pt")
    store.save(Server({"w": torch.zeros(10_000)}, 1))
    disk.fill()
    with pytest.raises(TrainingError, match=f"^the server's state cannot be written {NO_ROOM}; make room") as caught:
        store.save(Server({"w": torch.ones(10_000)}, 2))
    assert str(disk.folder) not in caught.value.line()
    disk.free()
    before = store.load()
    assert before is not None
    assert (before.round, float(before.shared["w"].sum())) == (1, 0.0)
    assert [path.name for path in disk.folder.iterdir()] == ["server.pt"]


def test_a_full_disk_under_the_spool_is_told_and_leaves_nothing(disk: SmallDisk) -> None:
    tensors = [("w", torch.ones(10_000).numpy())]
    kept = spooled(tensors, disk.folder / "spool")
    disk.fill()
    with pytest.raises(UpdateError, match=f"the server cannot keep it {NO_ROOM}; make room"):
        spooled(tensors, disk.folder / "spool")
    disk.free()
    assert list((disk.folder / "spool").iterdir()) == []
    assert float(kept["w"].sum()) == 10_000
