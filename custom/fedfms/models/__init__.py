"""Networks: `BACKBONES` names them, `build_model` builds them; independent of sites and data."""

from fedfms.models.base import ROLES, SegmentationModel
from fedfms.models.registry import (
    BACKBONES,
    FAMILIES,
    Backbone,
    build_model,
    family_of,
    meta_model,
    replacement_backbone,
)

__all__ = [
    "BACKBONES", "FAMILIES", "ROLES", "Backbone", "SegmentationModel", "build_model", "family_of", "meta_model",
    "replacement_backbone",
]  # fmt: skip
