"""Loads segment-anything's network classes without running the package's `__init__`.

`segment_anything/__init__.py` imports torchvision for an interactive predictor that is not used here, and published
torchvision wheels fail with a CPU build of torch (RuntimeError: operator torchvision::nms does not exist). The
sub-package `modeling` needs torch alone, so it is loaded from its file under a private name. It works with an
installed, absent or broken torchvision, and with a half-imported `segment_anything`.
"""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

# Inside this package, so unpickling a module finds its class by importing `fedfms.models`.
PRIVATE_NAME = "fedfms.models._segment_anything_modeling"


def _modeling_folder() -> Path:
    """Folder of `segment_anything.modeling`, found without importing the package."""
    try:
        spec = importlib.util.find_spec("segment_anything")
    except ValueError:  # sys.modules has a stub without __spec__; the import path still has the package
        spec = importlib.machinery.PathFinder.find_spec("segment_anything")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        if (Path(folder) / "modeling" / "__init__.py").is_file():
            return Path(folder) / "modeling"
    raise ImportError("segment-anything is not installed: pip install 'segment-anything>=1.0,<2'")


def load_modeling() -> ModuleType:
    """`segment_anything.modeling` under a private name; loaded once per process.

    Raises:
        ImportError: segment-anything is not installed.
    """
    if PRIVATE_NAME in sys.modules:
        return sys.modules[PRIVATE_NAME]
    folder = _modeling_folder()
    spec = importlib.util.spec_from_file_location(
        PRIVATE_NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError("segment-anything's modeling package cannot be read: reinstall it")
    module = importlib.util.module_from_spec(spec)
    sys.modules[PRIVATE_NAME] = module  # its relative imports look up their parent here
    try:
        spec.loader.exec_module(module)
    except BaseException:
        for name in [n for n in sys.modules if n == PRIVATE_NAME or n.startswith(PRIVATE_NAME + ".")]:
            del sys.modules[name]
        raise
    return module


_modeling = load_modeling()
ImageEncoderViT: Any = _modeling.ImageEncoderViT
MaskDecoder: Any = _modeling.MaskDecoder
TwoWayTransformer: Any = _modeling.TwoWayTransformer
PositionEmbeddingRandom: Any = _modeling.prompt_encoder.PositionEmbeddingRandom
LayerNorm2d: Any = _modeling.common.LayerNorm2d
get_rel_pos: Any = _modeling.image_encoder.get_rel_pos
window_partition: Any = _modeling.image_encoder.window_partition
window_unpartition: Any = _modeling.image_encoder.window_unpartition
