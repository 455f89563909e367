"""A site with an error replies with its name and advice, and the job never hangs."""

import json
from pathlib import Path

import pytest

from fedfms.flare.job import build_job
from fedfms.study import STUDIES, load_study
from tests.data.make import STRUCTURES, make_site

from .conftest import Simulator

pytestmark = [pytest.mark.federation, pytest.mark.slow]

PHANTOM = STUDIES / "phantom.yaml"


@pytest.fixture(scope="module")
def eyes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with valid sites a and b, damaged images at c, and no data of d; and its settings file."""
    root = tmp_path_factory.mktemp("eyes")
    for site in "abc":
        make_site(root / "data", site, n=6, salt=site)
    for image in (root / "data" / "eyes" / "c" / "images").iterdir():
        image.write_bytes(image.read_bytes()[:-40])
    (root / "site.yaml").write_text(f"data_root: {root / 'data'}\n")
    return root


def _job(out: Path, sites: str, min_sites: int) -> Path:
    overrides = [f"sites={sites}", "held_out=[]", "data.dataset=eyes", f"federation.min_sites={min_sites}"]
    overrides += ["train.rounds=1", "train.local_epochs=1", "model.input_px=64"]
    study = load_study(PHANTOM, overrides=overrides, **{"data.structures": STRUCTURES})
    return build_job(study, out)


def test_a_site_with_damaged_images_is_excluded_and_reported(eyes: Path, simulate: Simulator, tmp_path: Path) -> None:
    job = _job(tmp_path / "job", "[a, b, c]", 2)
    done = simulate(job, tmp_path / "ws", "-t", "3", env={"FEDFMS_SITE": str(eyes / "site.yaml")})
    assert done.returncode == 0, done.stdout[-3000:]
    folder = tmp_path / "ws" / "server" / "simulate_job" / "fedfms"
    rows = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert {row["site"]: row["accepted"] for row in rows} == {"a": True, "b": True, "c": False}
    (reason,) = [row["reason"] for row in rows if row["site"] == "c"]
    assert reason.startswith("site c, round 0: the image of slice 0")
    assert "case" not in reason
    assert str(eyes) not in done.stdout.replace(str(eyes / "site.yaml"), "")
    results = json.loads((folder / "report" / "results.json").read_text())
    assert results["participation"]["c"]["missed"] == {"0": reason}


def test_a_job_without_enough_sites_ends_with_the_reason(eyes: Path, simulate: Simulator, tmp_path: Path) -> None:
    job = _job(tmp_path / "job", "[a, d]", 2)
    done = simulate(job, tmp_path / "ws", "-t", "2", env={"FEDFMS_SITE": str(eyes / "site.yaml")})
    assert done.returncode != 0
    assert "site d" in done.stdout
    assert "there is no folder eyes/d in the data root" in done.stdout


def test_a_server_without_the_named_weights_ends_the_job(eyes: Path, simulate: Simulator, tmp_path: Path) -> None:
    study = load_study(PHANTOM, overrides=["model.checkpoint=weights.pth", "train.rounds=1"])
    done = simulate(build_job(study, tmp_path / "job"), tmp_path / "ws", "-n", "2", "-t", "2")
    assert done.returncode != 0
    assert "names no checkpoint folder" in done.stdout
