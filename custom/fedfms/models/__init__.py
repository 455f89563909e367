"""Networks: a backbone a file, `BACKBONES` names them, `build_model` makes them. They know no site."""

from __future__ import annotations

from fedfms.models.base import ROLES, SegmentationModel
from fedfms.models.registry import BACKBONES, FAMILIES, build_model, counterpart, family_of, meta_model

__all__ = [
    "BACKBONES", "FAMILIES", "ROLES", "SegmentationModel", "build_model", "counterpart", "family_of", "meta_model",
]  # fmt: skip
