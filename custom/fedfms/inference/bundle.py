"""A MONAI bundle that MONAI runs by itself: the network as TorchScript, and flat images in, masks out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import monai
import numpy
import torch

import fedfms
from fedfms.data import labelmap, native
from fedfms.inference.loading import LoadedModel
from fedfms.inference.network import write_torchscript
from fedfms.study import Study

FILES = (
    "configs/metadata.json", "configs/inference.json", "docs/README.md", "models/model.ts", "scripts/__init__.py",
    "scripts/native.py", "scripts/labelmap.py",
)  # fmt: skip
_README = """\
# Running it

    cd THIS_FOLDER
    python -m monai.bundle run --config_file configs/inference.json --dataset_dir IMAGES --output_dir OUT

`IMAGES` holds PNG, JPEG, TIFF or BMP files of 8 bits, in colour or grey, of any size (not volumes: `fedfms predict`
cuts these). Needed are MONAI, torch, NumPy, Pillow and `fire`; fedfms is not. For each image, `OUT` gets two files;
`NAME` is the image's without its ending, or with it where another image would have the same:
- `NAME_probabilities.npy`: float32 ({structures}, {mask_px}, {mask_px}), one plane a structure: {names};
- `NAME_mask.{ending}` at the image's own size: {masks}.

What the network takes: float32 (batch, 3, {input_px}, {input_px}), pixels over 255, in RGB. The image is stretched to a
square by torch's bilinear `interpolate` with antialiasing, in 8 bits, as in training: no transform of MONAI's own does
just that, so the configuration calls torch. What it gives: logits (batch, {structures}, {mask_px}, {mask_px}).
`scripts/` are two files of fedfms as they are, which put small masks back to native size and into one map.
"""


def write_bundle(loaded: LoadedModel, folder: Path, card: str) -> None:
    """Fill a new folder with the bundle; `card` is the text of its model card."""
    for part in ("configs", "docs", "models", "scripts"):
        (folder / part).mkdir(parents=True)
    model, study = loaded.model, loaded.study
    _write_json(folder / "configs" / "metadata.json", _metadata(loaded))
    _write_json(folder / "configs" / "inference.json", _inference(model.input_px, _values(study)))
    as_map = labelmap.own_values(_values(study)) is not None
    masks = f"label values {_meanings(study)}" if as_map else "uint8 (structures, height, width), 0 or 1"
    readme = _README.format(
        structures=len(study.structure_names), names=", ".join(study.structure_names), mask_px=model.mask_px,
        input_px=model.input_px, masks=masks, ending="png" if as_map else "npy",
    )  # fmt: skip
    (folder / "docs" / "README.md").write_text(f"{card}\n{readme}", encoding="utf-8")
    write_torchscript(model, folder / "models" / "model.ts")
    (folder / "scripts" / "__init__.py").touch()
    for module in (native, labelmap):
        path = Path(str(module.__file__))
        (folder / "scripts" / path.name).write_bytes(path.read_bytes())


def _values(study: Study) -> list[list[int]]:
    return [list(structure.values) for structure in study.data.structures]


def _meanings(study: Study) -> str:
    return ", ".join(f"{s.name} {' and '.join(map(str, s.values))}" for s in study.data.structures)


def _inference(input_px: int, values: list[list[int]]) -> dict[str, Any]:
    return {
        "imports": ["$import collections", "$import importlib", "$import pathlib", "$import numpy", "$import torch"],
        # MONAI's own `from` takes attributes only, and these are modules.
        "pil_image": "$importlib.import_module('PIL.Image')",
        "image_ops": "$importlib.import_module('PIL.ImageOps')",
        "native": "$importlib.import_module('scripts.native')",
        "labelmap": "$importlib.import_module('scripts.labelmap')",
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/predictions'",
        "device": "cpu",
        "label_values": values,
        "endings": [".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"],
        "network": {
            "_target_": "torch.jit.load", "f": "$@bundle_root + '/models/model.ts'", "map_location": "@device",
        },
        **_reading(input_px),
        **_writing(as_map=labelmap.own_values(values) is not None),
        "inferer": {"_target_": "SimpleInferer"},
        "logits": "$lambda d: @inferer(d['image'][None].to(@device), @network)[0].cpu()",
        "predict": "$lambda d: @postprocessing({**d, 'pred': @logits(d)})",
        "run": [
            "$torch.set_grad_enabled(False)",
            "$@network.eval()",
            "$pathlib.Path(@output_dir).mkdir(parents=True, exist_ok=True)",
            "$[@save(@predict(item)) for item in @dataset]",
        ],
    }  # fmt: skip


def _reading(input_px: int) -> dict[str, Any]:
    """From files to the network's input; each has a name of its own, as `inputs.find_inputs` gives it."""
    stretch = (
        f"$lambda x: torch.nn.functional.interpolate(x[None], ({input_px}, {input_px}), mode='bilinear', "
        "align_corners=False, antialias=True)[0].float() / 255"
    )
    return {
        "preprocessing": {"_target_": "Compose", "transforms": [
            {"_target_": "LoadImaged", "keys": "image", "reader": "PILReader", "reverse_indexing": False,
             "converter": "$lambda image: @image_ops.exif_transpose(image).convert('RGB')"},
            {"_target_": "EnsureChannelFirstd", "keys": "image", "channel_dim": -1},
            {"_target_": "EnsureTyped", "keys": "image", "dtype": "$torch.uint8", "track_meta": False},
            {"_target_": "CopyItemsd", "keys": "image", "names": "native"},
            {"_target_": "Lambdad", "keys": "image", "func": stretch, "track_meta": False},
        ]},
        "paths": "$[p for p in sorted(pathlib.Path(@dataset_dir).iterdir()) "
                 "if p.suffix.lower() in @endings and not p.name.startswith('.')]",
        "taken": "$collections.Counter(n for p in @paths for n in (p.stem, p.name))",
        "dataset": {
            "_target_": "Dataset", "transform": "@preprocessing",
            "data": "$[{'image': str(p), 'name': p.stem if @taken[p.stem] == 1 else p.name} for p in @paths]",
        },
    }  # fmt: skip


def _writing(*, as_map: bool) -> dict[str, Any]:
    """From the network's output to files: one map of label values, or where none holds them a plane a structure."""
    if as_map:
        mask = "$lambda p: @labelmap.label_map(p, @native.is_inside(p), @label_values)"
        save = "$lambda item: @pil_image.fromarray(item['mask']).save(@name(item, 'mask.png'))"
    else:
        mask = "$lambda p: @native.is_inside(p).astype(numpy.uint8)"
        save = "$lambda item: numpy.save(@name(item, 'mask.npy'), item['mask'])"
    return {
        "name": "$lambda item, what: str(pathlib.Path(@output_dir) / (item['name'] + '_' + what))",
        "to_native": "$lambda d: @native.native_probabilities(d['pred'], tuple(d['native'].shape[-2:]))",
        "to_mask": mask,
        "save_mask": save,
        "postprocessing": {"_target_": "Compose", "transforms": [
            {"_target_": "Activationsd", "keys": "pred", "sigmoid": True},
            {"_target_": "ToNumpyd", "keys": "pred"},
            {"_target_": "Lambda", "func": "$lambda d: {**d, 'mask': @to_mask(@to_native(d))}", "track_meta": False},
        ]},
        "save": "$lambda d: (numpy.save(@name(d, 'probabilities.npy'), d['pred']), @save_mask(d))",
    }  # fmt: skip


def _metadata(loaded: LoadedModel) -> dict[str, Any]:
    model, study = loaded.model, loaded.study
    names = dict(enumerate(study.structure_names))
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
                  "meta_schema_20240725.json",
        "version": fedfms.__version__,
        "changelog": {fedfms.__version__: "exported by fedfms"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": numpy.__version__,
        "required_packages_version": {"pillow": "10.3", "fire": "0.5"},
        "name": study.name,
        "task": f"segmentation of {', '.join(study.structure_names)}",
        "description": f"{loaded.file.name()}. Not a medical device.",
        "authors": "trained with fedfms",
        "copyright": "see docs/README.md",
        "intended_use": "research; not a medical device",
        "network_data_format": {
            "inputs": {"image": {
                "type": "image", "format": "RGB", "modality": "n/a", "num_channels": 3,
                "spatial_shape": [model.input_px, model.input_px], "dtype": "float32", "value_range": [0, 1],
                "is_patch_data": False, "channel_def": {"0": "R", "1": "G", "2": "B"},
            }},
            "outputs": {"pred": {
                "type": "image", "format": "logits", "num_channels": len(names),
                "spatial_shape": [model.mask_px, model.mask_px], "dtype": "float32", "value_range": [],
                "is_patch_data": False, "channel_def": {str(index): name for index, name in names.items()},
            }},
        },
    }  # fmt: skip


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
