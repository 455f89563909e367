"""The registry: families name their default and small backbone; a new backbone changes nothing for existing methods."""

from collections import Counter
from dataclasses import replace

import pytest

from fedfms.errors import StudyError
from fedfms.methods import METHODS, make_method, resolve_study
from fedfms.models import BACKBONES, FAMILIES, Backbone, family_of, registry, replacement_backbone
from fedfms.study import ModelSpec, Study


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_names_backbones_of_its_own(family: str) -> None:
    members = FAMILIES[family].backbones
    assert {FAMILIES[family].default, FAMILIES[family].small} <= members.keys()
    assert {family_of(name) for name in members} == {family}


def test_names_of_backbones_are_unique() -> None:
    names = Counter(name for family in FAMILIES.values() for name in family.backbones)
    assert set(names.values()) == {1}
    assert names.keys() == BACKBONES.keys()


@pytest.mark.parametrize(
    ("family", "sam_backbone", "expected"),
    [
        ("unet", "vit_b", "unet"), ("unet", "vit_h", "unet"), ("unet", "tiny_vit", "unet"),
        ("unet", "vit_tiny", "unet_tiny"), ("nnunet", "tiny_vit", "nnunet"), ("nnunet", "vit_tiny", "nnunet_tiny"),
    ],
)  # fmt: skip
def test_the_replacement_of_a_sam_backbone(family: str, sam_backbone: str, expected: str) -> None:
    assert replacement_backbone(family, sam_backbone) == expected


@pytest.mark.parametrize("position", ["first", "last"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_backbone_changes_nothing_for_existing_methods(
    family: str, position: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At either end of any family: every method still trains the same backbone of every study."""

    studies = [
        Study(name="s", method=method, model=ModelSpec(backbone=backbone, input_px=128))
        for method in METHODS for backbone in FAMILIES["sam"].backbones
    ]  # fmt: skip

    def models() -> list[ModelSpec]:
        return [resolve_study(study, make_method(study.method, {})).model for study in studies]

    before = models()
    old, new = FAMILIES[family], {"brand_new": FAMILIES[family].backbones[FAMILIES[family].default]}
    members = {**new, **old.backbones} if position == "first" else {**old.backbones, **new}
    monkeypatch.setitem(registry.FAMILIES, family, replace(old, backbones=members))  # type: ignore[arg-type]
    monkeypatch.setitem(registry.BACKBONES._builtin, "brand_new", Backbone(family, new["brand_new"]))  # type: ignore[arg-type]
    assert family_of("brand_new") == family
    assert models() == before


def test_an_unknown_backbone_is_an_error() -> None:
    with pytest.raises(StudyError, match="unknown backbone 'resnet'; known ones: .*vit_b"):
        family_of("resnet")
