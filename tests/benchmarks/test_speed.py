"""The benchmarks run, and count correctly; no timing is asserted."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import aggregate, compression, loader, memory, step
from benchmarks.parser import make_parser
from benchmarks.step import PATHS
from fedfms.errors import TrainingError
from fedfms.reporting.cost.step import LiveBytes
from fedfms.reporting.cost.timing import Timing
from fedfms.settings import SiteSettings
from fedfms.study import Study


def test_live_bytes_of_a_product() -> None:
    weight = torch.empty(100, 100, device="meta", requires_grad=True)
    images = torch.empty(10, 100, device="meta")
    with LiveBytes([weight, images]) as live:
        out = (images @ weight).relu()  # autograd retains the result of relu, but not the product
        assert (live.now, live.peak) == (4000, 8000)
        view = out.view(-1)  # a view has no bytes of its own
        assert live.now == 4000
        del out, view
        assert live.now == 0


@pytest.mark.slow
def test_the_memory_count_is_reproducible_and_grows_with_the_batch() -> None:
    one = memory.measure("fedmsa", "vit_tiny", 64, 1, ["plain", "fast"])
    assert one == memory.measure("fedmsa", "vit_tiny", 64, 1, ["plain", "fast"])
    two = memory.measure("fedmsa", "vit_tiny", 64, 2, ["plain"])
    assert one[0]["share"] == 1
    assert 1.5 * one[0]["retained_mb"] < two[0]["retained_mb"] <= two[0]["live_mb"]


def test_a_failed_measurement_has_a_reason_and_the_others_continue(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure_in_subprocess(study: Study, settings: SiteSettings, *_: object, **__: object) -> Timing:
        if settings.attention == "plain":
            raise TrainingError("not measured: the card has too little memory")
        return Timing("cpu", 1, step_s=2.0, predict_s=1.0, peak_mib=300, base_mib=100)

    monkeypatch.setattr(step, "measure_in_subprocess", measure_in_subprocess)
    cases = [step.Case("plain", "float32"), step.Case("fast", "float32")]
    plain, fast = step.measure(step.make_study("fedmsa", "vit_tiny", 64, 1), cases, steps=1, repeats=2)
    assert "too little memory" in plain["failed"]
    assert "step_s" not in plain
    assert (fast["step_s"], fast["predict_s"], fast["peak_mb"], fast["times_faster"]) == (2.0, 1.0, 300, None)


def test_a_benchmark_without_any_measurement_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure_in_subprocess(*_: object, **__: object) -> Timing:
        raise TrainingError("not measured: the card has too little memory")

    monkeypatch.setattr(step, "measure_in_subprocess", measure_in_subprocess)
    with pytest.raises(TrainingError, match="no row of fedmsa on vit_tiny"):
        step.measure(step.make_study("fedmsa", "vit_tiny", 64, 1), [step.Case("fast", "float32")], steps=1, repeats=1)


def test_updates_in_memory_and_on_disk_are_aggregated() -> None:
    rows = aggregate.measure("fedmsa", "vit_tiny", 3, 1)
    assert [row["held"] for row in rows] == ["memory", "disk"]
    assert {row["sites"] for row in rows} == {3}
    assert all(row["parameters"] == rows[0]["parameters"] > 100_000 for row in rows)
    assert all(row["read_s"] >= 0 and row["aggregate_s"] > 0 for row in rows)


@pytest.mark.slow
def test_the_loader_delivers_every_image_with_each_setting() -> None:
    rows = loader.measure(64, images=6, batch=4, workers=[0, 1])
    assert [(row["workers"], row["cache"]) for row in rows] == [(0, True), (0, False), (1, True), (1, False)]
    assert all(row["images"] == 6 and row["images_per_s_later"] > 0 for row in rows)


def test_each_codec_has_the_size_of_its_layout() -> None:
    rows = {row["compression"]: row for row in compression.measure("fedmsa", "vit_tiny", 1)}
    assert rows["none"]["share"] == 1
    assert rows["bfloat16"]["share"] == rows["float16"]["share"] == 0.5
    assert 0.25 < rows["int8"]["share"] < 0.3
    assert all(0 < row["error"] < 0.02 for row in rows.values() if row["compression"] != "none")


@pytest.mark.parametrize(
    "line",
    ["step --paths fastest", "step --dtypes int8", "predict --paths checkpointed", "step --steps 0", "epoch x",
     "memory --dtypes bfloat16"],
)  # fmt: skip
def test_wrong_usage(line: str) -> None:
    with pytest.raises(SystemExit):
        make_parser("").parse_args(line.split())


def test_a_command_line_is_parsed() -> None:
    line = "step --method fedmsa --backbone vit_b --size 1024 --batch 1 --steps 3 --json out.json"
    args = make_parser("").parse_args(line.split())
    assert (args.paths, args.dtypes) == (["plain", "fast", "checkpointed"], ["float32", "bfloat16"])
    assert set(args.paths) < set(PATHS)
    assert args.json == Path("out.json")


@pytest.mark.slow
def test_an_error_is_one_line() -> None:
    command = [sys.executable, "-m", "benchmarks", "step", "--method", "nosuch"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("benchmarks: ") and "nosuch" in done.stderr and "Traceback" not in done.stderr
