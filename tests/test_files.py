"""Writes that survive a kill."""

import json
import os
import stat
from pathlib import Path
from typing import BinaryIO

import pytest

from fedfms import files
from fedfms.files import append_line, json_text, replace_folder, write_atomic


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("content", ["Dice: 0,9 · é\n", b"\x00\xff"])
def test_content_replaces_the_old_file_and_leaves_no_temporary_file(content: bytes | str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    write_atomic(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o644, 0o600])
def test_mode_does_not_depend_on_the_umask(mode: int, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_atomic(tmp_path / "a", "x", mode=mode)
    finally:
        os.umask(before)
    assert _mode(tmp_path / "a") == mode


@pytest.mark.parametrize("fault", [OSError("disk full"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_and_no_temporary_file(
    fault: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def broken(_: int) -> None:
        raise fault

    monkeypatch.setattr(files.os, "fsync", broken)
    with pytest.raises(type(fault)):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "a", []
    real = os.fsync

    def recording(descriptor: int) -> None:
        seen.append(path.exists())
        real(descriptor)

    monkeypatch.setattr(files.os, "fsync", recording)
    write_atomic(path, "new")
    assert seen == [False, True]  # the content before the rename, the folder after the rename


def test_lines_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    append_line(path, "one")
    append_line(path, "")
    append_line(path, "three")
    assert path.read_text() == "one\n\nthree\n"


@pytest.mark.parametrize("left", ["", "whole\n", "whole\n" * 2000])
@pytest.mark.parametrize("incomplete", ["", '{"round": 3, "si', "x" * 10_000])
def test_an_incomplete_line_does_not_corrupt_the_next(left: str, incomplete: str, tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    path.write_text(left + incomplete)
    append_line(path, "next")
    assert path.read_text() == left + "next\n"


def test_a_line_break_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line break"):
        append_line(tmp_path / "a", "one\ntwo")
    assert not (tmp_path / "a").exists()


def test_a_function_can_write_the_content_and_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomic(path, lambda file: file.write(b"new"), mode=0o600)
    assert (path.read_bytes(), _mode(path)) == (b"new", 0o600)

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, fail)
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_json_has_one_line_per_record() -> None:
    record = {"text": "a" * 60, "value": 1.0, "mark": None}
    content = {"rows": [[record, record], []], "long": [0.125] * 40, "short": [{"a": {}}, ("b", 2)]}
    text = json_text(content)
    line = json.dumps(record)
    assert text.splitlines() == [
        "{", ' "rows": [', "  [", f"   {line},", f"   {line}", "  ],", "  []", " ],",
        f' "long": {json.dumps([0.125] * 40)},', ' "short": [{"a": {}}, ["b", 2]]', "}",
    ]  # fmt: skip
    assert json.loads(text) == json.loads(json.dumps(content))
    assert json_text("x" * 200) == f'"{"x" * 200}"\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_text([float("nan")])


def _job(folder: Path) -> Path:
    (folder / "job").mkdir()
    (folder / "job" / "a").write_text("old")
    return folder / "job"


@pytest.mark.parametrize("moves", [0, 1])
def test_an_interrupted_replacement_leaves_the_old_folder(
    moves: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, rename, calls = _job(tmp_path), Path.rename, list[Path]()

    def interrupted(source: Path, target: Path) -> Path:
        calls.append(source)
        if len(calls) == moves + 1:
            raise KeyboardInterrupt
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace_folder(job, lambda folder: (folder / "a").write_text("new"))
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["job", "job/a"]
    assert (job / "a").read_text() == "old"


def test_a_folder_whose_replacement_was_killed_is_not_lost(tmp_path: Path) -> None:
    job = _job(tmp_path)
    job.rename(tmp_path / ".job.old")  # what a kill between the two moves leaves

    def fails(_: Path) -> None:
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        replace_folder(job, fails)
    assert (job / "a").read_text() == "old"
    replace_folder(job, lambda folder: (folder / "a").write_text("new"))
    assert [path.read_text() for path in tmp_path.rglob("a")] == ["new"]


def test_a_file_is_not_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "job").write_text("mine")
    with pytest.raises(NotADirectoryError):
        replace_folder(tmp_path / "job", lambda folder: None)
    assert [path.name for path in tmp_path.iterdir()] == ["job"]
    assert (tmp_path / "job").read_text() == "mine"
