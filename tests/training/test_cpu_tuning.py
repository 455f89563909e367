"""CPU tuning: retained memory and oneDNN's products; exact, and restored afterwards."""

import resource
import subprocess
import sys
import threading

import pytest
import torch

from fedfms.machine import cpu_vendor_and_flags, multiplies_bfloat16
from fedfms.settings import SiteSettings
from fedfms.training import cpu_tuning
from fedfms.training.build import build
from fedfms.training.cpu_tuning import onednn_matmul, release_memory, retain_freed_memory
from fedfms.training.trainer import Trainer
from tests.training.make import batch_of, study_of

HAS_SWITCH = hasattr(torch.backends.mkldnn, "matmul")


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that MKL does not use this CPU's AVX-512."""
    if not HAS_SWITCH:
        pytest.skip("this torch release cannot switch to oneDNN")
    monkeypatch.setattr(cpu_tuning, "_mkl_lacks_avx512", lambda: True)


def setting() -> str:
    found: str = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    return found


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("exact", [True, False])
def test_onednn_is_used_if_exact_and_then_restored(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_tuning, "onednn_is_exact", lambda: exact)
    before = setting()
    with pytest.raises(ZeroDivisionError), onednn_matmul():
        assert (setting() == "bf16") == exact
        raise ZeroDivisionError
    assert setting() == before


@pytest.mark.usefixtures("forced")
def test_onednn_products_have_float32_precision() -> None:
    left, right = torch.randn(300, 500), torch.randn(500, 70)
    truth = left.double() @ right.double()
    with onednn_matmul():
        inside = left @ right
    assert float((inside - truth).norm() / truth.norm()) < 1e-6


def test_the_exactness_check_detects_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    if not HAS_SWITCH:
        pytest.skip("this torch release cannot switch to oneDNN")
    before = setting()
    check = cpu_tuning.onednn_is_exact.__wrapped__
    maker, flags = cpu_vendor_and_flags()
    if maker in ("AuthenticAMD", "GenuineIntel") and "amx_bf16" not in flags:
        assert check()
    product = torch.Tensor.__matmul__

    def lower(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        half = left.dtype == torch.float32
        return product(left.bfloat16(), right.bfloat16()).float() if half else product(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", lower)
    assert not check()
    assert setting() == before


@pytest.mark.usefixtures("forced")
def test_nested_contexts_restore_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_tuning, "onednn_is_exact", lambda: True)
    before, one, other = setting(), onednn_matmul(), onednn_matmul()
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert setting() == "bf16"
    other.__exit__(None, None, None)
    assert setting() == before


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("tuned", [False, True])
def test_forward_and_backward_passes_use_onednn_only_with_cpu_tuning(
    tuned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_tuning, "onednn_is_exact", lambda: True)
    study, seen = study_of("fedmsa"), dict[str, str]()
    built = build(study, SiteSettings(cpu_tuning=tuned))
    trainer, before = Trainer(built, study.train, study.structure_names), setting()

    def watch(place: str) -> object:
        return lambda *_: seen.__setitem__(place, setting())

    block: torch.nn.Module = built.model.image_encoder.adapters[0].after_attention  # type: ignore[union-attr,index]
    block.register_forward_hook(watch("forward"))
    block.up.weight.register_hook(watch("backward"))  # type: ignore[union-attr,operator]
    expected = dict.fromkeys(("forward", "backward"), "bf16" if tuned else before)
    batch = batch_of(built.model)
    trainer.gradients(batch, list(built.parameters()))
    assert seen == expected
    seen.clear()
    trainer.epoch([batch], trainer.optimizer(0), built.shared())
    assert seen == expected
    seen.clear()
    trainer.predict(batch)
    assert seen == {"forward": expected["forward"]}
    assert setting() == before


@pytest.mark.usefixtures("forced")
def test_a_step_gives_the_same_numbers_with_and_without_cpu_tuning() -> None:
    study, found = study_of("fedmsa"), []
    for tuned in (False, True):
        built = build(study, SiteSettings(cpu_tuning=tuned))
        trainer = Trainer(built, study.train, study.structure_names)
        value, gradients = trainer.gradients(batch_of(built.model), list(built.parameters()))
        found.append((value, gradients))
    (value, gradients), (tuned_value, others) = found
    assert tuned_value == pytest.approx(value, rel=1e-6)
    for name, gradient in gradients.items():
        assert float((others[name] - gradient).norm()) <= 1e-5 * float(gradient.norm()) + 1e-8, name


def test_memory_is_retained_only_with_cpu_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("fedfms.training.precision.retain_freed_memory", lambda: asked.append("memory"))
    study = study_of("fedmsa")
    for tuned, expected in ((False, []), (True, ["memory"])):
        built = build(study, SiteSettings(cpu_tuning=tuned))
        Trainer(built, study.train, study.structure_names)
        assert asked == expected


def test_memory_is_retained_and_released_on_glibc_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int, int]] = []

    class Library:
        def __init__(self, _: object) -> None:
            self.mallopt = lambda key, value: calls.append(("mallopt", key, value))
            self.malloc_trim = lambda pad: calls.append(("malloc_trim", pad, 0))

    monkeypatch.setattr(cpu_tuning.ctypes, "CDLL", Library)
    monkeypatch.setattr(cpu_tuning, "_retaining", threading.Event())
    for there, expected in ((False, 0), (True, 3)):
        monkeypatch.setattr(cpu_tuning, "_glibc", lambda there=there: there)
        retain_freed_memory()
        release_memory()
        assert len(calls) == expected
    retain_freed_memory()
    assert calls == [("mallopt", -4, 0), ("mallopt", -1, -1), ("malloc_trim", 0, 0)]


def test_a_cpu_without_known_flags_has_no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, expected in (((), False), (("avx512f",), False), (("avx512_bf16",), True), (("amx_bf16",), True)):
        monkeypatch.setattr("fedfms.machine.cpu_vendor_and_flags", lambda flags=flags: ("", frozenset(flags)))
        assert multiplies_bfloat16() == expected


FAULTS = """
import resource, torch
from fedfms.training.cpu_tuning import release_memory, retain_freed_memory
def touched(mib):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(mib << 18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
torch.set_num_threads(1)
touched(64)
default = touched(64)
retain_freed_memory()
touched(256)
retained = touched(64)
release_memory()
print(default, retained, touched(64))
"""


@pytest.mark.slow
@pytest.mark.skipif(not cpu_tuning._glibc(), reason="memory is retained on glibc only")
def test_a_freed_block_is_reused_without_page_faults() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    default, retained, released = (int(number) for number in done.stdout.split())
    pages = 64 * 2**20 // resource.getpagesize()
    assert min(default, released) > pages // 2
    assert retained < pages // 100
