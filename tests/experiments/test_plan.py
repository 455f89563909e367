"""The runs of an experiment, and what each trains and scores."""

from pathlib import Path

import pytest

from fedfms.errors import StudyError
from fedfms.experiments.plan import Experiment, load_experiment
from fedfms.reporting.cost.traffic import plan_traffic
from fedfms.study import STUDIES

from .make import experiment

TABLES = sorted((STUDIES / "tables").glob("*.yaml"))


def test_each_site_is_held_out_once_for_each_method_and_seed() -> None:
    runs = experiment(seeds=(0, 1)).runs()
    assert len(runs) == 2 * 3 * 2
    for run in runs:
        assert run.study.held_out == (run.key.held_out,)
        assert set(run.study.sites) == {"site-1", "site-2", "site-3"} - {run.key.held_out}
        assert run.study.data.protocol == "held-out"
        assert (run.study.method, run.study.seed) == (run.key.method, run.key.seed)
    assert len({run.name for run in runs}) == len(runs)


def test_in_the_personal_protocol_every_site_trains() -> None:
    (run,) = experiment(methods=("fedsca",), protocol="personal").runs()
    assert run.key.held_out is None
    assert run.study.held_out == ()
    assert run.study.sites == ("site-1", "site-2", "site-3")
    assert run.study.data.protocol == "personal"


def test_a_variant_is_run_with_the_methods_that_have_its_options() -> None:
    variants = {"L=1": {"method_options.layers": 1}, "plain": {}, "slow": {"train.lr": 1e-5}}
    runs = experiment(methods=("fedsca", "fedmsa"), protocol="personal", variants=variants).runs()
    named = {(run.key.method, run.key.variant) for run in runs}
    assert named == {
        ("fedsca", "L=1"), ("fedsca", "plain"), ("fedsca", "slow"), ("fedmsa", "plain"), ("fedmsa", "slow"),
    }  # fmt: skip


def test_a_variant_that_changes_nothing_for_a_method_is_not_run_twice() -> None:
    variants = {"": {}, "no weights": {"model.checkpoint": None}}
    runs = experiment(
        methods=("fedmsa", "fedunet"), held_out=("site-1",), variants=variants,
        overrides=("model.checkpoint=weights.pth",),
    ).runs()  # fmt: skip
    assert [(run.key.method, run.key.variant, run.study.model.checkpoint) for run in runs] == [
        ("fedmsa", "", "weights.pth"), ("fedmsa", "no weights", None), ("fedunet", "", None),
    ]  # fmt: skip


def test_a_variant_can_be_restricted_to_some_methods() -> None:
    variants = {"": {}, "-PT": {"model.checkpoint": None}}
    overrides = ("model.checkpoint=weights.pth",)
    runs = experiment(variants=variants, only={"-PT": ("fedmsa",)}, overrides=overrides, held_out=("site-1",)).runs()
    assert [run.key.method for run in runs if run.key.variant] == ["fedmsa"]
    assert {run.key.method for run in runs if not run.key.variant} > {"fedmsa"}


def test_each_named_site_of_a_study_is_held_out() -> None:
    runs = Experiment(study="fundus", methods=("fedmsa",)).runs()
    assert [run.key.held_out for run in runs] == ["REFUGE", "ORIGA", "G1020", "Drishti-GS1"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"protocol": "other"}, "protocol is 'other'; one of"),
        ({"methods": ()}, "methods"),
        ({"seeds": (1, 1)}, "seeds"),
        ({"held_out": ("nobody",)}, "nobody"),
        ({"held_out": ("site-1",), "protocol": "personal"}, "holds no site out"),
        ({"sites": ("site-1", "nosuch")}, "names .'nosuch'.*one of .'site-1'"),
        ({"methods": ("fedxyz",)}, "fedxyz"),
        ({"overrides": ("train.lrr=1",)}, "lrr"),
        ({"variants": {"a b": {}, "a/b": {"train.lr": 0.5}}}, "share a folder"),
        ({"methods": ("fedmsa",), "variants": {"L=1": {"method_options.layers": 1}}}, "variant"),
    ],
)
def test_an_invalid_experiment_is_an_error_in_one_line(values: dict[str, object], message: str) -> None:
    with pytest.raises(StudyError, match=message) as caught:
        experiment(**values).runs()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "line",
    ["seeds: 3", "seeds: [a]", "methods: fedmsa", "methods: [[a]]", "overrides: 3", "sites: 3", "held_out: [[a]]",
     "study: 5", "variants: {a: {1: 2}}", "variants: {a: {method: local}}", "variants: [a]",
     "only: {a: [local]}", "only: [local]", "sites: [one]"],
)  # fmt: skip
def test_an_invalid_table_is_an_error_in_one_line(line: str, tmp_path: Path) -> None:
    lines = {"study": "study: phantom", "methods": "methods: [fedmsa]", line.split(":")[0]: line}
    (tmp_path / "table.yaml").write_text("\n".join(lines.values()))
    with pytest.raises(StudyError) as caught:
        load_experiment(str(tmp_path / "table.yaml")).runs()
    assert "\n" not in str(caught.value)


def test_the_command_line_overrides_a_table(tmp_path: Path) -> None:
    path = tmp_path / "levels.yaml"
    path.write_text("study: phantom\nprotocol: personal\nmethods: [fedsca]\nvariants: {a: {train.lr: 1.0e-3}, b: }\n")
    made = load_experiment(str(path), seeds=[0, 1], overrides=["train.rounds=2"])
    assert made.title == "levels"
    assert [run.study.train.lr for run in made.runs()] == [1e-3, 1e-3, 2e-3, 2e-3]
    assert {run.study.train.rounds for run in made.runs()} == {2}
    path.write_text("study: phantom\nmethod: [fedsca]\n")
    with pytest.raises(StudyError, match="unknown key 'method'; did you mean 'methods'?"):
        load_experiment(str(path))


@pytest.mark.slow
@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_packaged_table_has_valid_runs(path: Path) -> None:
    made = load_experiment(str(path))
    runs = made.runs()
    assert made.title != path.stem, "a table has a title"
    kinds = {(run.key.method, run.key.variant) for run in runs}
    assert {variant for _, variant in kinds} == set(made.variants)
    for run in [next(run for run in runs if (run.key.method, run.key.variant) == kind) for kind in kinds]:
        assert plan_traffic(run.study).trained > 0


def test_a_packaged_table_is_found_by_name_and_accepts_another_study() -> None:
    made = load_experiment("fedsca-fig6", study="phantom", overrides=["model.backbone=vit_tiny"])
    (run, *_) = made.runs()
    assert (run.study.name, run.study.method_options["beta"]) == ("phantom", 0.001)
