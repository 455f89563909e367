"""Constant prompt tokens: equal to segment-anything's, frozen or trained, and without them the network as before."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedfms.errors import CheckpointError
from fedfms.methods import make_method, resolve_study
from fedfms.models import build_model
from fedfms.models import segment_anything as sa
from fedfms.models.prompt import PromptEncoder
from fedfms.study import ModelSpec, Study

SPEC = ModelSpec(backbone="vit_tiny", input_px=64)
DIM = 64


def _prompt_encoder(input_px: int, dim: int = DIM) -> torch.nn.Module:
    torch.manual_seed(3)
    encoder = sa.load_modeling().PromptEncoder(dim, (8, 8), (input_px, input_px), 4)
    assert isinstance(encoder, torch.nn.Module)
    return encoder


@pytest.mark.parametrize("input_px", [64, 256, 1024])
def test_the_tokens_are_those_of_a_box_around_the_whole_image(input_px: int) -> None:
    theirs, inset = _prompt_encoder(input_px), 12 * input_px / 256
    box = torch.tensor([[inset, inset, input_px - inset, input_px - inset]])
    sparse, dense = theirs(None, box, None)
    ours = PromptEncoder(DIM, input_px, "whole_image").fit_pretrained(theirs.state_dict())
    assert torch.equal(ours["tokens"], sparse[0])
    assert torch.equal(ours["dense"], dense[0, :, 0, 0])


def _weights(folder: Path, *, prompts: bool = True) -> Path:
    state = dict(build_model(SPEC, 1, adapters=False, seed=9).state_dict())
    if prompts:
        theirs = _prompt_encoder(64).state_dict()
        state |= {f"prompt_encoder.{name}": value for name, value in theirs.items() if "pe_layer" not in name}
    torch.save(state, folder / "w.pth")
    return folder / "w.pth"


def test_a_checkpoint_gives_its_own_tokens_and_they_change_the_masks(tmp_path: Path) -> None:
    file = _weights(tmp_path)
    spec = replace(SPEC, checkpoint=file.name)
    models = {
        kind: build_model(replace(spec, prompt=kind), 1, adapters=True, seed=0, checkpoint=file).eval()  # type: ignore[arg-type]
        for kind in ("auto", "none", "whole_image", "learned")
    }
    images = torch.rand(2, 3, 64, 64)
    masks = {kind: model(images) for kind, model in models.items()}
    assert torch.equal(masks["auto"], masks["whole_image"])
    assert torch.equal(masks["learned"], masks["whole_image"])
    assert not torch.allclose(masks["none"], masks["whole_image"], atol=1e-2)
    trained = {kind: set(dict(model.named_parameters())) for kind, model in models.items()}
    tokens = {"prompt_encoder.tokens", "prompt_encoder.dense"}
    assert trained["learned"] - trained["none"] == tokens
    assert trained["whole_image"] == trained["none"]
    assert {models["learned"].roles()[name] for name in tokens} == {"decoder"}
    masks["learned"].sum().backward()
    for name in tokens:
        gradient = models["learned"].get_parameter(name).grad
        assert gradient is not None and gradient.abs().max() > 0


def test_a_checkpoint_without_a_prompt_encoder_is_an_error_that_names_the_option(tmp_path: Path) -> None:
    file = _weights(tmp_path, prompts=False)
    with pytest.raises(CheckpointError, match="it has no prompt encoder: set model.prompt to none"):
        build_model(replace(SPEC, checkpoint=file.name), 1, adapters=True, seed=0, checkpoint=file)


@pytest.mark.parametrize(
    ("method", "checkpoint", "prompt"),
    [("fedmsa", None, "none"), ("fedmsa", "w.pth", "whole_image"), ("fedunet", "w.pth", "none")],
)
def test_auto_is_resolved_by_the_checkpoint(method: str, checkpoint: str | None, prompt: str) -> None:
    study = Study(name="s", method=method, model=replace(SPEC, checkpoint=checkpoint))
    assert resolve_study(study, make_method(method, {})).model.prompt == prompt


def test_tokens_draw_nothing_from_the_streams_of_other_parts() -> None:
    none, learned = (build_model(replace(SPEC, prompt=kind), 2, adapters=True, seed=0) for kind in ("none", "learned"))  # type: ignore[arg-type]
    own = none.state_dict()
    assert all(torch.equal(own[name], value) for name, value in learned.state_dict().items() if name in own)
