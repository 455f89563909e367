"""How far layers move, by hand."""

import math

import pytest
import torch

from fedfms.reporting.layer_shift import layer_of, layer_shift, mean_by_layer


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("image_encoder.blocks.3.adapter.up.weight", "image_encoder.blocks.3"),
        ("image_encoder.layers.1.blocks.0.attn.qkv.bias", "image_encoder.layers.1.blocks.0"),
        ("mask_decoder.transformer.layers.0.norm1.weight", "mask_decoder.transformer.layers.0"),
        ("mask_decoder.iou_token.weight", "mask_decoder"),
        ("head", "head"),
    ],
)
def test_a_tensor_belongs_to_its_block_or_its_part_of_the_network(name: str, layer: str) -> None:
    assert layer_of(name) == layer


def test_the_shift_by_hand() -> None:
    received = {"a.blocks.0.w": torch.zeros(3), "a.blocks.0.b": torch.zeros(1), "b.w": torch.ones(2)}
    one = {"a.blocks.0.w": torch.tensor([3.0, 0.0, 0.0]), "a.blocks.0.b": torch.tensor([4.0]), "b.w": torch.ones(2)}
    other = {"a.blocks.0.w": torch.zeros(3), "a.blocks.0.b": torch.tensor([2.0])}
    moved = layer_shift([(received, one), (received, other)])
    assert moved == pytest.approx({"a.blocks.0": (math.sqrt(25 / 4) + math.sqrt(4 / 4)) / 2, "b": 0.0})
    assert mean_by_layer([moved, {"b": 1.0}]) == pytest.approx({"a.blocks.0": 1.75, "b": 0.5})
