"""Files of pre-trained weights: which ones load, which are rejected, and the errors."""

import hashlib
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedfms.errors import CheckpointError
from fedfms.models import build_model
from fedfms.study import ModelSpec

SPEC = ModelSpec(backbone="vit_tiny", input_px=64)
LITE_SPEC = ModelSpec(backbone="tiny_vit", input_px=256)
LITE = Path(__file__).parents[3] / "shared" / "weights" / "lite_medsam.pth"
needs_lite = pytest.mark.skipif(
    not LITE.is_file(), reason="lite_medsam.pth is not in shared/weights beside the checkout"
)
State = dict[str, Tensor]


def sam_state() -> State:
    """A SAM checkpoint of vit_tiny's size, including the prompt encoder's keys."""
    state = dict(build_model(SPEC, 1, adapters=False, seed=9).state_dict())
    for name in ("point_embeddings.0", "not_a_point_embed", "mask_downscaling.0", "no_mask_embed"):
        state[f"prompt_encoder.{name}.weight"] = torch.zeros(1, 64)
    return state


def rejected(path: Path, spec: ModelSpec = SPEC) -> str:
    with pytest.raises(CheckpointError) as caught:
        build_model(spec, 1, adapters=True, seed=0, checkpoint=path)
    line = str(caught.value)
    assert line.startswith(f"{path.name}: ")
    assert "\n" not in line
    assert str(path.parent) not in line
    return line


@pytest.mark.parametrize("zipped", [True, False])
def test_a_sam_checkpoint_loads(tmp_path: Path, zipped: bool) -> None:
    file, state = tmp_path / "weights.pth", sam_state()
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    spec = replace(SPEC, checkpoint=file.name, checkpoint_sha256=sha256, prompt="none")
    model = build_model(spec, 2, adapters=True, seed=0, checkpoint=file)
    fresh = build_model(SPEC, 2, adapters=True, seed=0).state_dict()
    for name, tensor in model.state_dict().items():
        expected = state[name] if name in state else fresh[name]  # adapters and head: from the seed
        assert torch.equal(tensor, expected), name
    assert all(p.requires_grad and not p.is_meta for p in model.parameters())
    os.truncate(file, 10)  # values were copied, so the file is not needed
    assert model(torch.zeros(1, 3, 64, 64)).isfinite().all()


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    file = tmp_path / "half.pth"
    torch.save({name: t.half() if t.is_floating_point() else t for name, t in sam_state().items()}, file)
    model = build_model(SPEC, 1, adapters=False, seed=0, checkpoint=file)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def _lose(state: State) -> None:
    for name in [n for n in state if ".blocks.2." in n]:
        del state[name]


def _gain(state: State) -> None:
    state["image_encoder.blocks.9.norm1.weight"] = torch.zeros(96)


def _reshape(state: State) -> None:
    state["mask_decoder.iou_token.weight"] = torch.zeros(1, 32)


def _vit_l(state: State) -> None:
    state["image_encoder.patch_embed.proj.weight"] = torch.zeros(1024, 3, 16, 16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_lose, "does not fit the model: lacks image_encoder.blocks.2.attn.proj.bias, "),
        (_lose, " and 11 more; check model.backbone and model.stem"),
        (_gain, "does not fit the model: has unexpected image_encoder.blocks.9.norm1.weight; check"),
        (_reshape, "has wrong shapes: mask_decoder.iou_token.weight (1, 32) instead of (1, 64)"),
        (_vit_l, "looks like vit_l: has wrong shapes: image_encoder.patch_embed.proj.weight (1024, "),
    ],
)
def test_tensors_must_fit(tmp_path: Path, change: Callable[[State], None], message: str) -> None:
    file, state = tmp_path / "weights.pth", sam_state()
    change(state)
    torch.save(state, file)
    assert message in rejected(file)


def test_missing_file(tmp_path: Path) -> None:
    assert "no such file in the site's checkpoint folder" in rejected(tmp_path / "absent.pth")


def test_a_published_name_contains_the_md5(tmp_path: Path) -> None:
    file = tmp_path / "sam_vit_b_01ec64.pth"
    torch.save(sam_state(), file)
    assert "its MD5 does not begin with 01ec64, the digits in its name; download it again" in rejected(file)
    digits = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()[:6]
    good = file.rename(tmp_path / f"sam_vit_b_{digits}.pth")
    build_model(SPEC, 1, adapters=False, seed=0, checkpoint=good)


def test_a_file_must_have_the_studys_sha256(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(sam_state(), file)
    assert "SHA-256" in rejected(file, replace(SPEC, checkpoint_sha256="0" * 64))


class Malice:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (os.mkdir, (str(self.marker),))


@pytest.mark.parametrize("how", ["torch", "torch-legacy", "pickle"])
def test_a_malicious_pickle_is_rejected_and_not_executed(tmp_path: Path, how: str) -> None:
    file, marker = tmp_path / "weights.pth", tmp_path / "executed"
    if how == "pickle":
        file.write_bytes(pickle.dumps({"a": Malice(marker)}, protocol=2))
    else:
        torch.save({"a": Malice(marker)}, file, _use_new_zipfile_serialization=how == "torch")
    assert "not a file of plain tensors, or damaged" in rejected(file)
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"PK\x03\x04" + b"\x00" * 50, b"<html>404</html>"])
def test_a_damaged_file_is_rejected(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(content)
    assert "not a file of plain tensors, or damaged" in rejected(file)


def test_a_truncated_file_is_rejected(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(sam_state(), file)
    os.truncate(file, file.stat().st_size // 2)
    assert "not a file of plain tensors, or damaged" in rejected(file)


@pytest.mark.parametrize("content", [[1, 2], {"model": {"a": torch.zeros(1)}}, {1: torch.zeros(1)}])
def test_anything_but_named_tensors_is_rejected(tmp_path: Path, content: object) -> None:
    file = tmp_path / "weights.pth"
    torch.save(content, file)
    assert "does not contain tensors by name; save a state dict" in rejected(file)


@pytest.mark.slow
@needs_lite
@pytest.mark.shared
def test_lite_medsam_loads_strictly_and_predicts() -> None:
    model = build_model(LITE_SPEC, 1, adapters=True, seed=0, checkpoint=LITE)
    state = torch.load(LITE, weights_only=True)
    ours = model.state_dict()
    assert {n for n in ours if ".adapters." not in n} == model.pretrained_names() == {
        n for n in state if not n.startswith(("prompt_encoder.p", "prompt_encoder.n", "prompt_encoder.m"))
    } | {"prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"}  # fmt: skip
    assert all(torch.equal(ours[name], state[name]) for name in model.pretrained_names())
    with torch.no_grad():
        logits = model(torch.rand(1, 3, 256, 256))
    assert logits.shape == (1, 1, 256, 256)
    assert logits.isfinite().all()


@needs_lite
@pytest.mark.shared
@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (replace(LITE_SPEC, stem="mobile_sam"), "the study needs tiny_vit with stem mobile_sam"),
        (ModelSpec(backbone="vit_tiny", input_px=256), "image_encoder.blocks.0.attn.proj.bias"),
    ],
)
def test_lite_medsam_with_another_stem_or_backbone(spec: ModelSpec, says: str) -> None:
    line = rejected(LITE, spec)
    assert line.startswith("lite_medsam.pth: looks like tiny_vit with stem lite_medsam: ")
    assert says in line


def test_the_classifier_in_mobile_sams_file_is_ignored(tmp_path: Path) -> None:
    spec = ModelSpec(backbone="tiny_vit", input_px=64, stem="mobile_sam")
    state = dict(build_model(spec, 1, adapters=False, seed=9).state_dict())
    for name in ("norm_head.weight", "norm_head.bias", "head.weight", "head.bias"):
        state[f"image_encoder.{name}"] = torch.zeros(320)
    file = tmp_path / "mobile_sam.pt"
    torch.save(state, file)
    build_model(spec, 1, adapters=True, seed=0, checkpoint=file)
    state["image_encoder.headless"] = torch.zeros(1)
    torch.save(state, file)
    assert "has unexpected image_encoder.headless" in rejected(file, spec)
