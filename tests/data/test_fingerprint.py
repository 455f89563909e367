"""Fingerprints: by hand, merged, of few images, from strangers; and the commands from a site to a job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfms.cli import main
from fedfms.data.fingerprint import Fingerprint, fingerprint, merge
from fedfms.data.site import SiteData
from fedfms.data.source import Item, MemorySource
from fedfms.errors import DataError
from fedfms.models.nnunet_plan import Plan
from fedfms.study import DataSpec, Structure, Study

SPEC = DataSpec(structures=(Structure("disc", (1, 2)), Structure("cup", (2,))))


def _site(name: str, sizes: list[tuple[int, int]], grey: list[int], foreground: int = 10**9) -> SiteData:
    """Images of (height, width), grey where the foreground is; the foreground is the first row, of the first images."""
    items, pixels = [], {}
    for number, ((height, width), value) in enumerate(zip(sizes, grey, strict=True)):
        image = np.zeros((height, width), dtype=np.uint8)
        label = np.zeros_like(image)
        image[0] = value
        label[0] = 2 if number < foreground else 0
        items.append(Item(f"case-{number}", 0, f"p{number}", f"{number}", width, height, 1, (0, 2)))
        pixels[f"case-{number}", 0] = image, label
    return SiteData(name, {"train": tuple(items)}, "val", SPEC, 0, MemorySource(pixels))


def test_by_hand() -> None:
    # Heights 32 x 5, 33 x 3 (-> 64), 100 x 2 (-> 128, which takes the three of 64 with it); widths all 10 (-> 32).
    sizes = [(32, 10)] * 5 + [(33, 10)] * 3 + [(100, 10)] * 2
    made = fingerprint(_site("a", sizes, [4] * 5 + [8] * 5))
    assert (made.images, made.heights, made.widths) == (10, ((32, 5), (128, 5)), ((32, 10),))
    assert made.grey[1] == made.grey[2] == 50  # ten images of ten foreground pixels; bins of four values
    assert (sum(made.grey), made.grey_sum, made.grey_squares) == (100, 50 * 4 + 50 * 8, 50 * 16 + 50 * 64)
    assert (made.side("heights", 0.5), made.side("heights", 0.95), made.side("widths", 0.5)) == (32, 128, 32)
    assert made.summary()["foreground"] == {"pixels": 100, "mean": 6.0, "sd": 2.0, "p0.5": 6.0, "p99.5": 10.0}


def test_a_few_large_images_count_as_the_last_side_that_many_have() -> None:
    made = fingerprint(_site("a", [(32, 32)] * 6 + [(2000, 32)], [9] * 7))
    assert made.heights == ((32, 7),)


def test_nothing_leaves_for_fewer_than_five_images() -> None:
    with pytest.raises(DataError, match=r"^site a: there are 4 training images; a fingerprint takes 5"):
        fingerprint(_site("a", [(32, 32)] * 4, [9] * 4))
    made = fingerprint(_site("a", [(32, 32)] * 9, [9] * 9, foreground=4))
    assert (sum(made.grey), made.grey_sum, made.grey_squares) == (0, 0, 0)
    assert made.summary()["foreground"] is None


@given(st.lists(st.lists(st.tuples(st.integers(1, 90), st.integers(0, 255)), min_size=5, max_size=12), min_size=1,
                max_size=4), st.randoms())  # fmt: skip
def test_a_merge_is_a_sum_whatever_the_order(rows: list[list[tuple[int, int]]], random: Any) -> None:
    parts = [
        fingerprint(_site(f"s{i}", [(side, 7) for side, _ in row], [grey for _, grey in row]))
        for i, row in enumerate(rows)
    ]
    merged = merge(parts)
    random.shuffle(parts)
    assert merge(parts) == merged == Fingerprint.from_dict(json.loads(json.dumps(merged.to_dict())))
    greys = np.array([grey for row in rows for _, grey in row], dtype=np.float64)
    foreground = merged.summary()["foreground"]
    assert merged.images == len(greys)
    assert foreground["mean"] == pytest.approx(greys.mean())
    assert foreground["sd"] == pytest.approx(greys.std(), abs=1e-6)
    assert min(count for _, count in (*merged.heights, *merged.widths)) >= 5


def test_a_site_counts_once_and_structures_must_agree() -> None:
    one = fingerprint(_site("a", [(32, 32)] * 5, [9] * 5))
    with pytest.raises(DataError, match="of one site each"):
        merge([one, one])
    with pytest.raises(DataError, match="of one site each"):
        merge([])
    other = Fingerprint.from_dict({**one.to_dict(), "sites": ["b"], "structures": ["disc"]})
    with pytest.raises(DataError, match="of other structures"):
        merge([one, other])


@pytest.mark.parametrize(
    "change",
    [
        {"more": 1}, {"images": 4}, {"images": 6}, {"images": 5.0}, {"images": True}, {"sites": []}, {"sites": "a"},
        {"heights": [[32, -5], [64, 10]]}, {"heights": [[0, 5]]}, {"heights": [32, 5]}, {"heights": 5},
        {"heights": [[64, 2], [32, 3]]}, {"grey": [1]}, {"grey": 1}, {"grey_sum": 10**9}, {"structures": [1]},
    ],
)  # fmt: skip
def test_a_strangers_fingerprint_is_checked(change: dict[str, Any]) -> None:
    sound = fingerprint(_site("a", [(32, 32)] * 5, [9] * 5)).to_dict()
    with pytest.raises(DataError, match="^fingerprint: "):
        Fingerprint.from_dict({**sound, **change})


def test_from_sites_to_a_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for site in ("a", "b"):
        files.append(str(tmp_path / f"{site}.json"))
        assert main(["fingerprint", "phantom", "--site", site, "--out", files[-1]]) == 0
        told = capsys.readouterr().out
        assert told.startswith(Path(files[-1]).read_text())  # what is printed is what leaves
        assert "phantom-" not in told  # no case
    plan = tmp_path / "plan.json"
    assert main(["plan", *files, "--out", str(plan)]) == 0
    job = tmp_path / "job"
    assert main(["job", "build", "fednnunet", "--study", "phantom", "--plan", str(plan), "--out", str(job)]) == 0
    config = json.loads((job / "app" / "config" / "config_fed_client.json").read_text())
    study = Study.from_dict(config["executors"][0]["executor"]["args"]["study"])
    made = Plan.from_dict(study.method_options["plan"])
    assert (study.model.backbone, study.model.input_px, study.data.augment) == ("nnunet_tiny", 128, "nnunet")
    assert made.input_px == 128


def test_faults_of_the_commands_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = tmp_path / "odd.json"
    odd.write_text("[1]")
    out = str(tmp_path / "out.json")
    for command, says in [
        (["fingerprint", "phantom", "--site", "site-4", "--out", out], "site site-4: there are 0 training images"),
        (["fingerprint", "phantom", "--site", "a", "--site-settings", "no.yaml", "--out", out], "settings names"),
        (["plan", str(odd), "--out", out], "odd.json, fingerprint: this is no fingerprint"),
        (["plan", str(tmp_path / "none.json"), "--out", out], "none.json cannot be read"),
        (["job", "build", "fednnunet", "--study", "phantom", "--plan", str(odd), "--out", out], "holds no plan"),
        (["job", "build", "fedmsa", "--study", "phantom", "--set", "method_options.plan={}", "--out", out], "'plan'"),
    ]:
        assert main(command) == 1
        error = capsys.readouterr().err.splitlines()
        assert says in error[-1]
        assert str(tmp_path) not in error[-1]
    assert not Path(out).exists()
