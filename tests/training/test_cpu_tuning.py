"""The processor's ways: memory that stays, products by oneDNN; exact, and as they were afterwards."""

from __future__ import annotations

import resource
import subprocess
import sys
import threading

import pytest
import torch

from fedfms.machine import maker_and_flags, multiplies_bfloat16
from fedfms.settings import SiteSettings
from fedfms.training import cpu_tuning
from fedfms.training.build import build
from fedfms.training.cpu_tuning import float32_products, give_back, keep_freed_memory
from fedfms.training.trainer import Trainer
from tests.training.make import batch_of, study_of

HAS_SWITCH = hasattr(torch.backends.mkldnn, "matmul")


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor that MKL keeps AVX-512 from, whatever this one is."""
    if not HAS_SWITCH:
        pytest.skip("this torch has no switch for oneDNN's products")
    monkeypatch.setattr(cpu_tuning, "_mkl_withholds_avx512", lambda: True)


def setting() -> str:
    found: str = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    return found


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("exact", [True, False])
def test_the_switch_is_used_where_products_are_exact_and_put_back(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_tuning, "products_are_exact", lambda: exact)
    before = setting()
    with pytest.raises(ZeroDivisionError), float32_products():
        assert (setting() == "bf16") == exact
        raise ZeroDivisionError
    assert setting() == before


@pytest.mark.usefixtures("forced")
def test_products_inside_have_the_digits_of_float32() -> None:
    left, right = torch.randn(300, 500), torch.randn(500, 70)
    truth = left.double() @ right.double()
    with float32_products():
        inside = left @ right
    assert float((inside - truth).norm() / truth.norm()) < 1e-6


def test_a_look_tells_bfloat16s_digits_from_float32s(monkeypatch: pytest.MonkeyPatch) -> None:
    if not HAS_SWITCH:
        pytest.skip("this torch has no switch for oneDNN's products")
    before = setting()
    look = cpu_tuning.products_are_exact.__wrapped__
    maker, flags = maker_and_flags()
    if maker in ("AuthenticAMD", "GenuineIntel") and "amx_bf16" not in flags:
        assert look()
    product = torch.Tensor.__matmul__

    def lower(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        half = left.dtype == torch.float32
        return product(left.bfloat16(), right.bfloat16()).float() if half else product(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", lower)
    assert not look()
    assert setting() == before


@pytest.mark.usefixtures("forced")
def test_those_who_enter_at_once_leave_it_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_tuning, "products_are_exact", lambda: True)
    before, one, other = setting(), float32_products(), float32_products()
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert setting() == "bf16"
    other.__exit__(None, None, None)
    assert setting() == before


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("way", ["plain", "auto"])
def test_forward_and_backward_run_by_the_switch_and_plain_without(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_tuning, "products_are_exact", lambda: True)
    study, seen = study_of("fedmsa"), dict[str, str]()
    built = build(study, SiteSettings(processor=way))
    trainer, before = Trainer(built, study.train, study.structure_names), setting()

    def watch(place: str) -> object:
        return lambda *_: seen.__setitem__(place, setting())

    block: torch.nn.Module = built.model.image_encoder.adapters[0].after_attention  # type: ignore[union-attr,index]
    block.register_forward_hook(watch("forward"))
    block.up.weight.register_hook(watch("backward"))  # type: ignore[union-attr,operator]
    expected = {"forward": before if way == "plain" else "bf16", "backward": before if way == "plain" else "bf16"}
    batch = batch_of(built.model)
    trainer.gradients(batch, list(built.parameters()))
    assert seen == expected
    seen.clear()
    trainer.epoch([batch], trainer.optimizer(0), built.shared(), cached=False)
    assert seen == expected
    seen.clear()
    trainer.predict(batch)
    assert seen == {"forward": expected["forward"]}
    assert setting() == before


@pytest.mark.usefixtures("forced")
def test_a_step_is_the_same_with_and_without() -> None:
    study, found = study_of("fedmsa"), []
    for way in ("plain", "auto"):
        built = build(study, SiteSettings(processor=way))
        trainer = Trainer(built, study.train, study.structure_names)
        value, gradients = trainer.gradients(batch_of(built.model), list(built.parameters()))
        found.append((value, gradients))
    (value, gradients), (tuned, others) = found
    assert tuned == pytest.approx(value, rel=1e-6)
    for name, gradient in gradients.items():
        assert float((others[name] - gradient).norm()) <= 1e-5 * float(gradient.norm()) + 1e-8, name


def test_only_a_tuned_model_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("fedfms.training.precision.keep_freed_memory", lambda: asked.append("memory"))
    study = study_of("fedmsa")
    for way, expected in (("plain", []), ("auto", ["memory"])):
        built = build(study, SiteSettings(processor=way))
        Trainer(built, study.train, study.structure_names)
        assert asked == expected


def test_memory_is_kept_and_given_back_on_glibc_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int, int]] = []

    class Library:
        def __init__(self, _: object) -> None:
            self.mallopt = lambda key, value: calls.append(("mallopt", key, value))
            self.malloc_trim = lambda pad: calls.append(("malloc_trim", pad, 0))

    monkeypatch.setattr(cpu_tuning.ctypes, "CDLL", Library)
    monkeypatch.setattr(cpu_tuning, "_kept", threading.Event())
    for there, expected in ((False, 0), (True, 3)):
        monkeypatch.setattr(cpu_tuning, "_glibc", lambda there=there: there)
        keep_freed_memory()
        give_back()
        assert len(calls) == expected
    keep_freed_memory()
    assert calls == [("mallopt", -4, 0), ("mallopt", -1, -1), ("malloc_trim", 0, 0)]


def test_a_processor_without_a_description_multiplies_no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, expected in (((), False), (("avx512f",), False), (("avx512_bf16",), True), (("amx_bf16",), True)):
        monkeypatch.setattr("fedfms.machine.maker_and_flags", lambda flags=flags: ("", frozenset(flags)))
        assert multiplies_bfloat16() == expected


FAULTS = """
import resource, torch
from fedfms.training.cpu_tuning import give_back, keep_freed_memory
def touched(mib):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(mib << 18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
torch.set_num_threads(1)
touched(64)
left = touched(64)
keep_freed_memory()
touched(256)
kept = touched(64)
give_back()
print(left, kept, touched(64))
"""


@pytest.mark.skipif(not cpu_tuning._glibc(), reason="memory is kept on glibc alone")
def test_a_block_that_was_freed_is_taken_again_without_a_page_fault() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    left, kept, given_back = (int(number) for number in done.stdout.split())
    pages = 64 * 2**20 // resource.getpagesize()
    assert min(left, given_back) > pages // 2
    assert kept < pages // 100
