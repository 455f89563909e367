"""Which runs a table has, and what each trains and scores."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedfms.errors import StudyError
from fedfms.experiments.plan import Grid, load_grid
from fedfms.reporting.cost.traffic import plan
from fedfms.study import STUDIES

from .make import grid

TABLES = sorted((STUDIES / "tables").glob("*.yaml"))


def test_each_site_is_held_out_once_of_each_method_and_seed() -> None:
    cells = grid(seeds=(0, 1)).cells()
    assert len(cells) == 2 * 3 * 2
    for cell in cells:
        assert cell.study.held_out == (cell.held_out,)
        assert set(cell.study.sites) == {"site-1", "site-2", "site-3"} - {cell.held_out}
        assert cell.study.data.protocol == "held-out"
        assert (cell.study.method, cell.study.seed) == (cell.method, cell.seed)
    assert len({cell.name for cell in cells}) == len(cells)


def test_in_the_personal_protocol_every_site_trains() -> None:
    (cell,) = grid(methods=("fedsca",), protocol="personal").cells()
    assert cell.held_out is None
    assert cell.study.held_out == ()
    assert cell.study.sites == ("site-1", "site-2", "site-3")
    assert cell.study.data.protocol == "personal"


def test_a_variant_is_run_by_the_methods_that_take_it() -> None:
    variants = {"L=1": {"method_options.layers": 1}, "plain": {}, "slow": {"train.lr": 1e-5}}
    cells = grid(methods=("fedsca", "fedmsa"), protocol="personal", variants=variants).cells()
    named = {(cell.method, cell.variant) for cell in cells}
    assert named == {
        ("fedsca", "L=1"), ("fedsca", "plain"), ("fedsca", "slow"), ("fedmsa", "plain"), ("fedmsa", "slow"),
    }  # fmt: skip


def test_a_variant_that_changes_nothing_for_a_method_is_not_run_twice() -> None:
    variants = {"": {}, "no weights": {"model.checkpoint": None}}
    cells = grid(
        methods=("fedmsa", "fedunet"), held_out=("site-1",), variants=variants,
        overrides=("model.checkpoint=weights.pth",),
    ).cells()  # fmt: skip
    assert [(cell.method, cell.variant, cell.study.model.checkpoint) for cell in cells] == [
        ("fedmsa", "", "weights.pth"), ("fedmsa", "no weights", None), ("fedunet", "", None),
    ]  # fmt: skip


def test_a_variant_may_be_of_some_methods_only() -> None:
    variants = {"": {}, "-PT": {"model.checkpoint": None}}
    overrides = ("model.checkpoint=weights.pth",)
    cells = grid(variants=variants, only={"-PT": ("fedmsa",)}, overrides=overrides, held_out=("site-1",)).cells()
    assert [cell.method for cell in cells if cell.variant] == ["fedmsa"]
    assert {cell.method for cell in cells if not cell.variant} > {"fedmsa"}


def test_a_study_of_named_sites_holds_each_of_them_out() -> None:
    cells = Grid(study="fundus", methods=("fedmsa",)).cells()
    assert [cell.held_out for cell in cells] == ["REFUGE", "ORIGA", "G1020", "Drishti-GS1"]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"protocol": "other"}, "protocol"),
        ({"methods": ()}, "methods"),
        ({"seeds": (1, 1)}, "seeds"),
        ({"held_out": ("nobody",)}, "nobody"),
        ({"held_out": ("site-1",), "protocol": "personal"}, "holds no site out"),
        ({"sites": ("site-1", "nosuch")}, "names .'nosuch'.*one of .'site-1'"),
        ({"methods": ("fedxyz",)}, "fedxyz"),
        ({"overrides": ("train.lrr=1",)}, "lrr"),
        ({"variants": {"a b": {}, "a/b": {"train.lr": 0.5}}}, "one folder"),
        ({"methods": ("fedmsa",), "variants": {"L=1": {"method_options.layers": 1}}}, "variants"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(values: dict[str, object], says: str) -> None:
    with pytest.raises(StudyError, match=says):
        grid(**values).cells()


@pytest.mark.parametrize(
    "line",
    ["seeds: 3", "seeds: [a]", "methods: fedmsa", "methods: [[a]]", "overrides: 3", "sites: 3", "held_out: [[a]]",
     "study: 5", "variants: {a: {1: 2}}", "variants: {a: {method: local}}", "variants: [a]",
     "only: {a: [local]}", "only: [local]", "sites: [one]"],
)  # fmt: skip
def test_a_table_that_cannot_be_read_is_told_in_one_line(line: str, tmp_path: Path) -> None:
    lines = {"study": "study: phantom", "methods": "methods: [fedmsa]", line.split(":")[0]: line}
    (tmp_path / "table.yaml").write_text("\n".join(lines.values()))
    with pytest.raises(StudyError):
        load_grid(str(tmp_path / "table.yaml")).cells()


def test_a_table_of_yaml_and_the_command_line_over_it(tmp_path: Path) -> None:
    path = tmp_path / "levels.yaml"
    path.write_text("study: phantom\nprotocol: personal\nmethods: [fedsca]\nvariants: {a: {train.lr: 1.0e-3}, b: }\n")
    made = load_grid(str(path), seeds=(0, 1), overrides=["train.rounds=2"])
    assert made.title == "levels"
    assert [cell.study.train.lr for cell in made.cells()] == [1e-3, 1e-3, 2e-3, 2e-3]
    assert {cell.study.train.rounds for cell in made.cells()} == {2}
    path.write_text("study: phantom\nmethod: [fedsca]\n")
    with pytest.raises(StudyError, match="unknown keys"):
        load_grid(str(path))


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_committed_table_is_of_runs_that_can_be(path: Path) -> None:
    made = load_grid(str(path))
    cells = made.cells()
    assert made.title != path.stem, "a table says what it is of"
    kinds = {(cell.method, cell.variant) for cell in cells}
    assert {variant for _, variant in kinds} == set(made.variants)
    for cell in [next(cell for cell in cells if (cell.method, cell.variant) == kind) for kind in kinds]:
        assert plan(cell.study).trained > 0


def test_a_committed_table_goes_by_its_name_and_onto_other_data() -> None:
    (cell, *_) = load_grid("fedsca-fig6", study="phantom", overrides=["model.backbone=vit_tiny"]).cells()
    assert (cell.study.name, cell.study.method_options["beta"]) == ("phantom", 0.001)
