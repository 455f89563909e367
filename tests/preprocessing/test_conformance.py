"""Every registered data set with every defect that it can have, through the command line.

A newly registered data set needs an entry in `layouts.py`. Without it, only the tests of this data set fail.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedfms.data.manifest import load_manifest
from fedfms.preprocessing import convert
from fedfms.preprocessing.registry import DATASETS
from tests.preprocessing.faults import FAULTS
from tests.preprocessing.layouts import FLAT, LAYOUTS, VOLUME, layout_of, of_kind
from tests.preprocessing.make import CANARY, main

REPO = Path(__file__).parents[2]
MATRIX = [(name, fault, 0) for name in DATASETS for fault, one in FAULTS.items()
          if name in LAYOUTS and LAYOUTS[name].kind in one.kinds]  # fmt: skip
PROCESSES = [(of_kind(kind), "cut short", 2) for kind in (FLAT, VOLUME)]


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A function from the name of a data set to a folder with its `raw`, converted without faults to `out`."""
    made: dict[str, Path] = {}

    def give(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            layout_of(name).make(made[name] / "raw")
            assert _convert(name, made[name]) == 0
        return made[name]

    return give


def _convert(name, folder, workers=0, *more):
    return main([name, "--raw", str(folder / "raw"), "--out", str(folder / "out"), "--workers", str(workers), *more])


def _files(out):
    """Inode and time of all written files except manifests."""
    return {
        path: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in out.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


def _victim(name, raw):
    """The id of the case that the layout damages, from the key file."""
    layout = layout_of(name)
    (key,) = (raw / ".fedfms-keys").glob(f"*-{layout.site}.json")
    links = json.loads(key.read_text())["links"]
    (case,) = (id_ for id_, link in links.items() if link.get("image") == layout.image)
    return case


def _check_no_names(raw, out, shown):
    """Check that `shown` has no name of a raw file or folder that contains a digit or the canary, except sites."""
    names = {path.relative_to(raw).parts[-1] for path in raw.rglob("*")}
    stems = {name.removesuffix(".gz").rpartition(".")[0] for name in names}
    secret = {name for name in names | stems if CANARY in name or re.search(r"\d", name)}
    for site in sorted((path.name for path in out.glob("*/*")), key=len, reverse=True):
        shown = shown.replace(site, "SITE")
    assert secret
    assert [name for name in sorted(secret) if name in shown] == []
    assert str(raw) not in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_has_a_test_layout(name):
    assert layout_of(name).make


@pytest.mark.slow
def test_a_data_set_without_a_test_layout_fails_alone(tmp_path):
    """The tests are collected and run for all other data sets; the message says what to add."""
    (tmp_path / "new_data_set.py").write_text(
        "from fedfms.preprocessing import registry\n"
        "registry.DATASETS._builtin = {'aaa': registry.DATASETS['polyp'], **registry.DATASETS._builtin}\n"
    )
    chosen = "test_every_data_set_has_a_test_layout or test_an_output_that_is_a_file_is_one_line"
    command = [sys.executable, "-m", "pytest", "-p", "new_data_set", "-p", "no:cacheprovider", "tests/preprocessing"]
    done = subprocess.run(
        [*command, "-k", chosen], cwd=REPO, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (tmp_path, REPO, REPO / "custom")))},
    )  # fmt: skip
    summary = done.stdout.splitlines()
    failed = [line for line in summary if line.startswith("FAILED")]
    assert len(failed) == 2
    assert all("[aaa]" in line for line in failed)
    assert "error" not in summary[-1]
    assert f"{2 * len(DATASETS)} passed" in done.stdout
    assert "add a Layout 'aaa' to LAYOUTS in tests/preprocessing/layouts.py" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fault", "workers"), MATRIX + PROCESSES)
def test_a_fault_and_its_correction_affect_one_case(
    converted, tmp_path, monkeypatch, capfd, caplog, name, fault, workers
):
    monkeypatch.setattr(convert, "_FEW", 0)  # worker processes even for few cases
    base, layout, folder = converted(name), layout_of(name), tmp_path / CANARY
    shutil.copytree(base, folder)
    raw, out = folder / "raw", folder / "out"
    target = next(out.glob(f"*/{layout.site}"))
    case, whole, before = _victim(name, raw), load_manifest(target), _files(out)
    of_case = {path for path in before if path.name.startswith(case)}
    image, label = raw / layout.image, raw / layout.label
    contents = {path: path.read_bytes() for path in (image, label)}

    FAULTS[fault].make(image, label, layout)
    capfd.readouterr()
    assert _convert(name, folder, workers, *(["--site", layout.site] if workers else ())) == 1
    shown = capfd.readouterr()
    *_, line, end = shown.out.splitlines()
    assert line.startswith(f"site {layout.site}, case {case}: ")
    assert re.search(FAULTS[fault].message or re.escape(layout.message), line), line
    assert end.startswith("1 fault. ")
    assert shown.out.count(case) == 1
    _check_no_names(raw, out, shown.out + shown.err + caplog.text)
    assert load_manifest(target).cases == tuple(one for one in whole.cases if one.id != case)
    assert len(whole.cases) > 1
    assert _files(out) == {path: seen for path, seen in before.items() if path not in of_case}
    assert main(["check", str(out)]) == 0

    for path, content in contents.items():
        path.unlink(missing_ok=True)
        path.write_bytes(content)
    assert _convert(name, folder) == 0
    after = _files(out)
    assert load_manifest(target) == whole
    assert after.keys() == before.keys()
    assert {path for path in after if after[path] != before[path]} == of_case
    assert main(["check", str(out)]) == 0
