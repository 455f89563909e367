"""Studies: valid ones load completely; invalid ones are an error in one line."""

import json
from pathlib import Path

import pytest

from fedfms.errors import StudyError
from fedfms.study import PRESETS, STUDIES, Study, load_study

PHANTOM = STUDIES / "phantom.yaml"


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_packaged_study_survives_a_round_trip_through_json(path: Path) -> None:
    study = load_study(path)
    assert Study.from_dict(json.loads(json.dumps(study.to_dict()))) == study


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_fit_every_study(preset: str) -> None:
    study = load_study(PHANTOM, preset=preset)
    assert study.model.backbone == PRESETS[preset]["model"]["backbone"]
    assert study.structure_names == ("disc", "cup")


def test_the_papers_schedule() -> None:
    study = load_study(STUDIES / "polyp.yaml", preset="paper")
    assert (study.model.backbone, study.model.input_px) == ("vit_b", 1024)
    assert (study.train.rounds, study.train.batch_size, study.train.lr) == (100, 6, 1e-4)


def test_overrides_have_priority_over_presets_and_arguments_over_both() -> None:
    study = load_study(PHANTOM, preset="paper", overrides=["train.rounds=7", "train.lr=1e-5"], **{"train.rounds": 3})
    assert study.train.rounds == 3
    assert study.train.lr == 1e-5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trian.rounds=3", "unknown key 'trian'; did you mean 'train'?"),
        ("train.round=3", "did you mean 'rounds'?"),
        ("train.rounds=three", "train.rounds: expected int, got 'three'"),
        ("train.rounds=true", "expected int, got True"),
        ("train.rounds=0", "train.rounds is 0; it must be above 0"),
        ("seed=-1", "seed is -1; it must be"),
        ("train.lr=fast", "expected float"),
        ("train.loss=mse", "train.loss is 'mse'; one of"),
        ("data.structures=[]", "at least one"),
        ("model.checkpoint=../weights.pth", "file name, not a path"),
        ("sites=[a, a]", "named twice"),
        ("sites=[site-4]", "both train and are held out"),
        ("sites=[../x]", "'../x' is not a name; a name has no blanks and no separators"),
        ("sites=[st elsewhere]", "'st elsewhere' is not a name; a name has no blanks"),
        ("held_out=['a\u00a0b']", "is not a name; a name has no blanks"),
        ("sites=[.hidden]", "does not begin with a dot"),
        ("data.dataset=a/b", "no blanks and no separators"),
        ("model.head=token", "there are 2 structures"),
        ("nonsense", "not key=value"),
        ("train.lr=[1", "not key=value"),
        ("train.lr=.inf", "train.lr is inf; it must be a finite number"),
        ("train.lr=.nan", "it must be a finite number"),
        ("train.beta1=2", "train.beta1 is 2; it must be below 1"),
        ("federation.tracking=wandb", "federation.tracking is 'wandb'; one of"),
        ("federation.min_cases=0", "federation.min_cases is 0; it must be above 0"),
        ("federation.straggler_timeout_s=-5", "federation.straggler_timeout_s is -5; it must be 0 or more"),
        ("data.structures=[{name: a, values: []}]", "distinct label values from 1 to 255"),
        ("data.structures=[{name: a, values: [0]}]", "distinct label values from 1 to 255"),
        ("data.structures=[{name: a, values: [2, 2]}]", "distinct label values from 1 to 255"),
    ],
)
def test_a_wrong_value_is_an_error_in_one_line(override: str, message: str) -> None:
    with pytest.raises(StudyError) as caught:
        load_study(PHANTOM, overrides=[override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="cannot read none.yaml"):
        load_study(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(StudyError, match="not valid YAML"):
        load_study(tmp_path / "bad.yaml")
    (tmp_path / "latin.yaml").write_bytes("title: \u00e9".encode("latin-1"))
    with pytest.raises(StudyError, match="not valid YAML"):
        load_study(tmp_path / "latin.yaml")
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(StudyError, match="must be a mapping"):
        load_study(tmp_path / "list.yaml")
    with pytest.raises(StudyError, match="unknown preset"):
        load_study(PHANTOM, preset="huge")


def test_a_yaml_tag_constructs_no_object(tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"
    (tmp_path / "evil.yaml").write_text(f"name: !!python/object/apply:os.system ['touch {sentinel}']")
    with pytest.raises(StudyError):
        load_study(tmp_path / "evil.yaml")
    assert not sentinel.exists()


def test_the_number_of_sites_that_a_round_needs() -> None:
    assert load_study(PHANTOM).min_sites == 2
    assert load_study(STUDIES / "polyp.yaml").min_sites == 7
    assert load_study(PHANTOM, overrides=["federation.min_sites=3"]).min_sites == 3


def test_a_round_cannot_need_more_sites_than_train() -> None:
    with pytest.raises(StudyError, match=r"federation.min_sites is 9, but 7 sites train"):
        load_study(STUDIES / "polyp.yaml", overrides=["federation.min_sites=9"])
