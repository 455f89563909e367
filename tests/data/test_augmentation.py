"""nnU-Net's augmentation: valid model inputs, and masks that move with their image."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandRotated, RandZoomd

from fedfms.data.augmentation import nnunet_spatial
from fedfms.data.transforms import KEYS, VIEW, make_transforms
from fedfms.study import DataSpec, Structure

SPEC = DataSpec(augment="nnunet", structures=(Structure("disc", (1, 2)), Structure("cup", (2,))))


def _sample(channels: int = 3) -> dict[str, torch.Tensor]:
    label = np.zeros((1, 48, 64), dtype=np.uint8)
    label[0, 10:30, 12:40] = 1
    label[0, 14:22, 18:30] = 2
    image = np.repeat(label * 100 + 20, channels, axis=0)
    return {"image": torch.from_numpy(image), "label": torch.from_numpy(label), VIEW: "a"}


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
def test_samples_are_valid_model_inputs_and_depend_on_the_seed_alone(channels: int) -> None:
    transforms = make_transforms(SPEC, input_px=32, mask_px=16, augment=True)
    seen = set()
    for seed in range(40):
        one, same = (transforms.set_random_state(seed=seed)(_sample(channels)) for _ in range(2))
        image, label = one["image"], one["label"]
        assert (image.shape, image.dtype, label.shape) == ((3, 32, 32), torch.float32, (2, 16, 16))
        assert torch.isfinite(image).all()
        assert image.min() >= 0
        assert image.max() <= 1
        assert set(label.unique().tolist()) <= {0, 1}
        assert (label[0] >= label[1]).all()  # the cup stays within its disc
        assert torch.equal(torch.as_tensor(image), torch.as_tensor(same["image"]))
        seen.add(round(float(image.mean()), 5))
    assert len(seen) > 20


def test_scoring_is_not_augmented() -> None:
    plain = make_transforms(replace(SPEC, augment="none"), input_px=32, mask_px=16, augment=False)(_sample())
    scored = make_transforms(SPEC, input_px=32, mask_px=16, augment=False)(_sample())
    assert all(torch.equal(plain[key], scored[key]) for key in KEYS)


@pytest.mark.parametrize("kind", [RandRotated, RandZoomd])
def test_masks_move_with_their_image(kind: type) -> None:
    steps = nnunet_spatial(("image", "label"))
    (chosen,) = [step for step in steps if isinstance(step, kind)]
    chosen.prob = 1.0
    transforms = Compose([chosen, steps[-1]])
    for seed in range(5):
        moved = transforms.set_random_state(seed=seed)(_sample())
        assert moved["label"].dtype == moved["image"].dtype == torch.uint8
        assert set(torch.unique(torch.as_tensor(moved["label"])).tolist()) <= {0, 1, 2}
        assert not torch.equal(torch.as_tensor(moved["label"]), _sample()["label"])
        inside = torch.as_tensor(moved["image"])[:1] > 70  # the disc is 120 or 220, its surroundings 20 or 0
        agree = (inside == (torch.as_tensor(moved["label"]) > 0)).float().mean()
        assert agree > 0.98
