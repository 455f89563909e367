"""Failed and stopped conversions (full disk, no rights, kill, Ctrl-C): one line, and the next run completes them."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from fedfms.data.manifest import load_manifest
from fedfms.preprocessing.check import check_site
from fedfms.preprocessing.registry import DATASETS
from tests.preprocessing.layouts import FLAT, VOLUME, layout_of, of_kind
from tests.preprocessing.make import CANARY, main, make_raw
from tests.preprocessing.volume_layouts import pair, scan, truth

REPO = Path(__file__).parents[2]
KINDS = pytest.mark.parametrize("name", [of_kind(FLAT), of_kind(VOLUME)])
MANY = 72


def _arguments(name, raw, out, workers=0):
    return [name, "--raw", str(raw), "--out", str(out), "--workers", str(workers)]


def _content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _half_written(out):
    return [path for path in out.rglob("*.tmp") if path.is_file()]


def _line(capfd, site, text):
    """Check that exactly one line reports why a site stopped."""
    shown = "".join(capfd.readouterr())
    (line,) = (line for line in shown.splitlines() if line.startswith(f"site {site}: "))
    assert line == f"site {site}: cannot write: {text}; check disk space and rights, then run the command again"
    assert CANARY not in shown
    assert "Traceback" not in shown


@pytest.fixture
def disk(tmp_path):
    """A real disk of 64 kB, whose mount needs rights."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=64k,nr_inodes=400", "none", str(folder)]
    if not mount or subprocess.run([mount, *options], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _fill(disk):
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC


def _polyp(raw, n):
    make_raw(raw / "a", n)
    return _arguments("polyp", raw, raw.parent / "disk" / "out")


def test_a_full_disk_and_a_second_run(tmp_path, disk, capfd):
    """Written slices remain for the next run, which has enough space."""
    arguments = _polyp(tmp_path / "raw", 12)
    assert main(arguments) == 1
    _line(capfd, "a", "No space left on device")
    out = disk / "out"
    written = {path: path.stat().st_ino for path in out.rglob("*_[0-9]*.*")}
    assert 0 < len(written) < 24
    assert _half_written(out) == []
    assert not list(out.rglob("manifest.json"))
    subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
    assert main(arguments) == 0
    assert written.items() <= {path: path.stat().st_ino for path in out.rglob("*_[0-9]*.*")}.items()
    assert check_site(out / "polyp" / "a") == []


@pytest.mark.parametrize("change", ["another case", "nothing"])
def test_a_full_disk_leaves_an_earlier_conversion_unchanged(tmp_path, disk, capfd, change):
    arguments = _polyp(tmp_path / "raw", 4)
    assert main(arguments) == 0
    before = _content(disk / "out")
    if change == "another case":
        make_raw(tmp_path / "more", 5)
        for part, suffix in (("images", ""), ("labels", "_mask")):
            name = f"{CANARY}4{suffix}.png"
            shutil.copy(tmp_path / "more" / part / name, tmp_path / "raw" / "a" / part / name)
    _fill(disk)
    capfd.readouterr()
    assert main(arguments) == 1
    _line(capfd, "a", "No space left on device")
    assert _content(disk / "out") == before
    assert check_site(disk / "out" / "polyp" / "a") == []
    (disk / "filler").unlink()
    assert main(arguments) == 0
    assert len(load_manifest(disk / "out" / "polyp" / "a").cases) == (5 if change == "another case" else 4)


@pytest.mark.parametrize("name", DATASETS)
def test_an_output_that_is_a_file_is_one_line(tmp_path, capfd, name):
    layout = layout_of(name)
    layout.make(tmp_path / "raw")
    out = tmp_path / "out"
    arguments = _arguments(name, tmp_path / "raw", out)
    out.write_text("in the way")
    assert main(arguments) == 1
    _line(capfd, layout.site, "Not a directory")
    assert out.read_text() == "in the way"
    out.unlink()
    assert main(arguments) == 0


@KINDS
def test_missing_rights_to_write_are_one_line(tmp_path, capfd, monkeypatch, name):
    """Simulated, because root may write everywhere: no new file in a site that was converted before."""
    layout = layout_of(name)
    layout.make(tmp_path / "raw")
    out = tmp_path / "out"
    arguments = _arguments(name, tmp_path / "raw", out)
    assert main(arguments) == 0
    gone = min(out.glob(f"*/{layout.site}/labels/*.png"))
    gone.unlink()
    before = _content(out)
    capfd.readouterr()

    make = tempfile.mkstemp

    def deny(*arguments, **named):
        if Path(named["dir"]).is_relative_to(out):
            raise PermissionError(errno.EACCES, "Permission denied", str(named["dir"]))
        return make(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr("fedfms.files.tempfile.mkstemp", deny)
        assert main(arguments) == 1
    _line(capfd, layout.site, "Permission denied")
    assert _content(out) == before
    assert main(arguments) == 0
    assert gone.is_file()


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A raw folder of many volumes, and its conversion."""
    folder = tmp_path_factory.mktemp("many")
    raw, whole = folder / CANARY, folder / "whole"
    label = truth((12, 14, 30))
    for number in range(MANY):
        pair(raw / "UCL", f"{CANARY}{number:02}", scan(label.shape, np.uint8, 255, seed=number), label)
    assert main(_arguments("prostate", raw, whole)) == 0
    return raw, whole


def _children(process):
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


def _alive(pid):
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _wait(condition):
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.005)
    pytest.fail("timeout after 30 s")


def _stopped(command, out, by):
    """Output, children and exit code of the command, stopped after its first file."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(REPO / "custom"), str(REPO)))}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a script may ignore it
    with subprocess.Popen(command, cwd=REPO, env=environment, start_new_session=True, **options) as process:
        _wait(lambda: next(out.rglob("*_0.*"), None))
        children = _children(process)
        if by == "kill":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        shown = process.communicate()
    return shown, children, process.returncode


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("by", ["kill", "Ctrl-C"])
def test_a_conversion_resumes_after_a_kill_or_ctrl_c(many, out, by):
    """No process remains, and the next run gives the same bytes as an uninterrupted one."""
    raw, whole = many
    command = [sys.executable, "-m", "preprocessing", *_arguments("prostate", raw, out, workers=2)]
    shown, children, returned = _stopped(command, out, by)
    if by == "Ctrl-C":
        assert (returned, *shown) == (130, "", "fedfms: interrupted; run the same command again\n")
        assert _half_written(out) == []
    assert len(children) == 3  # two workers, and Python's resource tracker
    _wait(lambda: not any(map(_alive, children)))
    assert 0 < len(list(out.rglob("*_[0-9]*.*"))) < 2 * 30 * MANY
    assert not list(out.rglob("manifest.json"))
    assert main(command[3:-1] + ["0"]) == 0
    assert _content(out) == _content(whole)
