"""A MONAI bundle that runs without this package: the network as TorchScript, its pre- and post-processing."""

import json
from pathlib import Path
from typing import Any

import monai
import numpy
import torch
import yaml

import fedfms
from fedfms.data import labelmap, native
from fedfms.inference.loading import LoadedModel
from fedfms.inference.network import write_torchscript

FILES = (
    "configs/metadata.json", "configs/inference.json", "docs/README.md", "models/model.ts", "scripts/__init__.py",
    "scripts/native.py", "scripts/labelmap.py",
)  # fmt: skip
_TEMPLATE = Path(__file__).with_name("bundle.yaml")


def write_bundle(loaded: LoadedModel, folder: Path, card: str) -> None:
    """Write the bundle to a new folder; `card` is the text of its model card."""
    template = yaml.safe_load(_TEMPLATE.read_text(encoding="utf-8"))
    texts = {
        "configs/metadata.json": json.dumps(_metadata(template["metadata"], loaded), indent=2) + "\n",
        "configs/inference.json": json.dumps(_inference(template["inference"], loaded), indent=2) + "\n",
        "docs/README.md": f"{card}\n{_readme(template['readme'], loaded)}",
        "scripts/__init__.py": "",
        "scripts/native.py": Path(str(native.__file__)).read_text(encoding="utf-8"),
        "scripts/labelmap.py": Path(str(labelmap.__file__)).read_text(encoding="utf-8"),
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "models").mkdir()
    write_torchscript(loaded.model, folder / "models" / "model.ts")


def _values(loaded: LoadedModel) -> list[list[int]]:
    return [list(structure.values) for structure in loaded.study.data.structures]


def _one_map(loaded: LoadedModel) -> bool:
    """Whether one map of label values can hold all structures."""
    return labelmap.own_values(_values(loaded)) is not None


def _inference(template: dict[str, Any], loaded: LoadedModel) -> dict[str, Any]:
    masks = {kind: template.pop(kind) for kind in ("one_map", "planes")}
    own = {"label_values": _values(loaded), "input_px": loaded.model.input_px}
    return {**template, **own, **masks["one_map" if _one_map(loaded) else "planes"]}


def _metadata(template: dict[str, Any], loaded: LoadedModel) -> dict[str, Any]:
    model, names = loaded.model, loaded.study.structure_names
    tensors = template["network_data_format"]
    tensors["inputs"]["image"]["spatial_shape"] = [model.input_px, model.input_px]
    tensors["outputs"]["pred"] |= {
        "num_channels": len(names), "spatial_shape": [model.mask_px, model.mask_px],
        "channel_def": {str(index): name for index, name in enumerate(names)},
    }  # fmt: skip
    return template | {
        "version": fedfms.__version__,
        "changelog": {fedfms.__version__: "exported by fedfms"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": numpy.__version__,
        "name": loaded.study.name,
        "task": f"segmentation of {', '.join(names)}",
        "description": f"{loaded.file.name()}. Not a medical device.",
    }


def _readme(template: str, loaded: LoadedModel) -> str:
    names, one_map = loaded.study.structure_names, _one_map(loaded)
    values = ", ".join(f"{s.name} {' and '.join(map(str, s.values))}" for s in loaded.study.data.structures)
    return template.format(
        structures=len(names), names=", ".join(names), mask_px=loaded.model.mask_px, input_px=loaded.model.input_px,
        masks=f"label values {values}" if one_map else "uint8 (structures, height, width), 0 or 1",
        ending="png" if one_map else "npy",
    )  # fmt: skip
