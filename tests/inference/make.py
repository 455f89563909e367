"""Model files as a run writes them, of tiny models; and images."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fedfms.inference.loading import LoadedModel, load_model
from fedfms.inference.modelfile import read_model
from fedfms.settings import SiteSettings
from fedfms.study import Study
from fedfms.training.build import BuiltModel, build
from tests.methods.common import study

SITES = ("st-elsewhere", "princeton-plainsboro")
BACKBONES = {
    "vit_tiny": ("fedmsa",),
    "tiny_vit": ("fedmsa", "model.backbone=tiny_vit", "model.stem=lite_medsam"),
    "unet_tiny": ("fedunet",),
    "nnunet_tiny": ("fednnunet",),
}


def tiny(method: str = "fedmsa", *overrides: str) -> Study:
    """A study of the phantom at 64 px, with site names that must not be disclosed."""
    return study(method, f"sites=[{','.join(SITES)}]", *overrides)


def moved(of: Study) -> BuiltModel:
    """The study's model with every trained tensor changed, as after training. The bias of the head gives masks that are
    neither empty nor full.
    """
    built = build(of, SiteSettings())
    generator = torch.Generator().manual_seed(7)
    built.load({
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for name, tensor in built.trained().items()
    })  # fmt: skip
    bias = built.parameters().get("head.bias")
    if bias is not None:
        px = built.model.input_px
        with torch.no_grad():
            bias -= built.model(torch.rand(4, 3, px, px, generator=generator)).mean((0, 2, 3))
    return built


def global_file(folder: Path, of: Study, **more: Any) -> Path:
    """A global model as the server's persistor writes it."""
    path = folder / "FL_global_model.pt"
    shared = {name: tensor.abs() if "running_var" in name else tensor for name, tensor in moved(of).shared().items()}
    metadata = {"study": of.to_dict(), "kind": "final", "round": of.train.rounds, **more}
    torch.save({"model": shared, "train_conf": {}, **metadata}, path)
    return path


def loaded(path: Path, **named: Any) -> LoadedModel:
    """The model of a file, with default settings."""
    return load_model(read_model(path, **named), SiteSettings())


def picture(path: Path, size: tuple[int, int] = (50, 70), colour: bool = True, seed: int = 0) -> np.ndarray:
    """An image of noise in blocks, written to `path`; its pixels (H, W) or (H, W, 3)."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (7, 9, 3) if colour else (7, 9), dtype=np.uint8)
    image = Image.fromarray(small).resize(size[::-1], Image.Resampling.NEAREST)
    image.save(path)
    return np.asarray(image)
