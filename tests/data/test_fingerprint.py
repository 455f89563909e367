"""Fingerprints: computed by hand, merged, of few images, untrusted; and the commands from a site to a job."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfms.cli import main
from fedfms.data.fingerprint import GREY_BIN, Fingerprint, fingerprint, merge
from fedfms.data.site import SiteData
from fedfms.data.source import Item, MemorySource
from fedfms.errors import DataError
from fedfms.models.nnunet_plan import Plan
from fedfms.study import DataSpec, Structure, Study

SPEC = DataSpec(structures=(Structure("disc", (1, 2)), Structure("cup", (2,))))


def _site(name: str, sizes: list[tuple[int, int]], grey: list[int], foreground: int = 10**9) -> SiteData:
    """Images of (height, width) whose first row has the grey value: foreground in the first `foreground` images."""
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
    # Heights 32 x 5, 33 x 3 (-> 64), 100 x 2 (-> 128, which also takes the three of 64); widths all 10 (-> 32).
    sizes = [(32, 10)] * 5 + [(33, 10)] * 3 + [(100, 10)] * 2
    made = fingerprint(_site("a", sizes, [4] * 5 + [8] * 5))
    assert (made.images, made.heights, made.widths) == (10, ((32, 5), (128, 5)), ((32, 10),))
    assert made.grey[1] == made.grey[2] == 50  # ten images of ten foreground pixels; bins of four values
    assert sum(made.grey) == 100
    assert (made.side("heights", 0.5), made.side("heights", 0.95), made.side("widths", 0.5)) == (32, 128, 32)
    assert made.summary()["foreground"] == {"pixels": 100, "mean": 7.5, "sd": 2.0, "p0.5": 5.5, "p99.5": 9.5}


@pytest.mark.parametrize(
    ("sides", "counted"),
    [
        ([64] * 5 + [900] * 4, ((928, 9),)),  # one of 64 completes five of 928, but only four would remain
        ([64] * 9 + [900], ((64, 5), (928, 5))),
        ([64] * 100 + [900], ((64, 96), (928, 5))),  # one large image moves only four small ones
        ([64] * 5 + [900], ((928, 6),)),
        ([32] * 3 + [64] * 2 + [96] * 6 + [300, 900], ((64, 5), (928, 8))),
    ],
)
def test_a_bin_of_few_large_images_takes_the_next_smaller(
    sides: list[int], counted: tuple[tuple[int, int], ...]
) -> None:
    made = fingerprint(_site("a", [(side, 32) for side in sides], [9] * len(sides)))
    assert made.heights == counted


def test_the_median_of_two_sites_is_the_majoritys() -> None:
    few = fingerprint(_site("a", [(64, 64)] * 5 + [(900, 900)] * 4, [9] * 9))
    many = fingerprint(_site("b", [(900, 900)] * 9, [9] * 9))
    assert merge([few, many]).side("heights", 0.5) == merge([few, many]).side("widths", 0.5) == 928


def _greys(rows: list[list[int]]) -> tuple[int, ...]:
    """The reported pixels by bin for images one pixel high, all foreground, with these grey values."""
    data = _site("a", [(1, len(row)) for row in rows], [0] * len(rows))
    for row, item in zip(rows, data.parts["train"], strict=True):
        data.source.read(item)[0][0] = row
    return fingerprint(data).grey


def test_grey_values_of_fewer_than_five_images_are_not_reported() -> None:
    bright = [[100] * 97 + [250] * 3, *[[100] * 100] * 4]
    assert _greys(bright) == tuple(500 if b == 25 else 0 for b in range(64))
    # Bin 2 has one image and is merged with bin 25, which has five; bin 60 has four and is merged with bin 30.
    # Means: (5 x 2 + 45 x 25) / 50 = 22.7, (50 x 30 + 8 x 60) / 58 = 34.1 bins.
    mixed = [[8] * 5 + [100] * 5 + [120] * 10, *[[100] * 10 + [120] * 10 + [240] * 2] * 4]
    assert _greys(mixed) == tuple({23: 50, 34: 58}.get(b, 0) for b in range(64))
    # Five values of one image each: reported together, as their mean.
    assert _greys([[40 * n] for n in range(1, 6)]) == tuple(5 if b == 30 else 0 for b in range(64))


def test_fewer_than_five_images_have_no_fingerprint() -> None:
    with pytest.raises(DataError, match=r"^site a: there are 4 training images, a fingerprint needs 5"):
        fingerprint(_site("a", [(32, 32)] * 4, [9] * 4))
    made = fingerprint(_site("a", [(32, 32)] * 9, [9] * 9, foreground=4))
    assert sum(made.grey) == 0
    assert made.summary()["foreground"] is None


@given(st.lists(st.lists(st.tuples(st.integers(1, 90), st.integers(0, 255)), min_size=5, max_size=12), min_size=1,
                max_size=4), st.randoms())  # fmt: skip
def test_a_merge_is_a_sum_in_any_order(rows: list[list[tuple[int, int]]], random: Any) -> None:
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
    assert foreground["pixels"] == sum(len(row) for row in rows) * 7
    assert abs(foreground["mean"] - greys.mean()) < GREY_BIN
    assert min(count for _, count in (*merged.heights, *merged.widths)) >= 5
    assert merged.side("heights", 0.5) >= sorted(side for row in rows for side, _ in row)[(len(greys) - 1) // 2]


def test_each_site_counts_once_and_structures_must_agree() -> None:
    one = fingerprint(_site("a", [(32, 32)] * 5, [9] * 5))
    with pytest.raises(DataError, match="one fingerprint per site"):
        merge([one, one])
    with pytest.raises(DataError, match="one fingerprint per site"):
        merge([])
    other = Fingerprint.from_dict({**one.to_dict(), "sites": ["b"], "structures": ["disc"]})
    with pytest.raises(DataError, match="of different structures"):
        merge([one, other])


@pytest.mark.parametrize(
    "change",
    [
        {"more": 1}, {"images": 4}, {"images": 6}, {"images": 5.0}, {"images": True}, {"sites": []}, {"sites": "a"},
        {"heights": [[32, -5], [64, 10]]}, {"heights": [[0, 5]]}, {"heights": [32, 5]}, {"heights": 5},
        {"heights": [[64, 2], [32, 3]]}, {"grey": [1]}, {"grey": 1}, {"grey": [4] + [0] * 63},
        {"images": 9, "heights": [[32, 4], [64, 5]], "widths": [[32, 9]]}, {"grey_sum": 50}, {"structures": [1]},
    ],
)  # fmt: skip
def test_an_untrusted_fingerprint_is_validated(change: dict[str, Any]) -> None:
    good = fingerprint(_site("a", [(32, 32)] * 5, [9] * 5)).to_dict()
    with pytest.raises(DataError, match="fingerprint.*; make it again with `fedfms fingerprint`"):
        Fingerprint.from_dict({**good, **change})


@pytest.mark.slow
def test_from_sites_to_a_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for site in ("a", "b"):
        files.append(str(tmp_path / f"{site}.json"))
        assert main(["fingerprint", "phantom", "--site", site, "--out", files[-1]]) == 0
        printed = capsys.readouterr().out
        assert printed.startswith(Path(files[-1]).read_text())  # the site's user sees exactly what leaves the site
        assert "phantom-" not in printed  # no case
    plan = tmp_path / "plan.json"
    assert main(["plan", *files, "--out", str(plan)]) == 0
    job = tmp_path / "job"
    assert main(["job", "build", "fednnunet", "--study", "phantom", "--plan", str(plan), "--out", str(job)]) == 0
    config = json.loads((job / "app" / "config" / "config_fed_client.json").read_text())
    study = Study.from_dict(config["executors"][0]["executor"]["args"]["study"])
    made = Plan.from_dict(study.method_options["plan"])
    assert (study.model.backbone, study.model.input_px, study.data.augment) == ("nnunet_tiny", 128, "nnunet")
    assert made.input_px == 128


def test_errors_of_the_commands_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = tmp_path / "odd.json"
    odd.write_text("[1]")
    out = str(tmp_path / "out.json")
    for command, says in [
        (["fingerprint", "phantom", "--site", "site-4", "--out", out], "site site-4: there are 0 training images"),
        (["fingerprint", "phantom", "--site", "a", "--site-settings", "no.yaml", "--out", out], "settings names"),
        (["plan", str(odd), "--out", out], "odd.json: fingerprint: expected mapping"),
        (["plan", str(tmp_path / "none.json"), "--out", out], "cannot read none.json"),
        (["job", "build", "fednnunet", "--study", "phantom", "--plan", str(odd), "--out", out], "contains no plan"),
        (["job", "build", "fedmsa", "--study", "phantom", "--set", "method_options.plan={}", "--out", out], "'plan'"),
    ]:
        assert main(command) == 1
        error = capsys.readouterr().err.splitlines()
        assert says in error[-1]
        assert str(tmp_path) not in error[-1]
    assert not Path(out).exists()
