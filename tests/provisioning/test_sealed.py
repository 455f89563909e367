"""Sealed files: what opens them, and what does not."""

from __future__ import annotations

import io
import stat
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from fedfms.flare import kit
from provisioning import sealed
from provisioning.sealed import MAGIC, SealError, pack, seal, unpack, unseal

from .make import umask


def test_the_passphrase_opens_and_another_does_not() -> None:
    closed = seal(b"a key", "one passphrase")
    assert b"a key" not in closed
    assert unseal(closed, "one passphrase") == b"a key"
    with pytest.raises(SealError, match="passphrase is wrong, or the file was changed"):
        unseal(closed, "one passphrasE")


@pytest.mark.parametrize("place", [len(MAGIC), len(MAGIC) + 20, -1])
def test_a_changed_bit_is_found(place: int) -> None:
    closed = bytearray(seal(b"a key", "one passphrase"))
    closed[place] ^= 1
    with pytest.raises(SealError):
        unseal(bytes(closed), "one passphrase")


@pytest.mark.parametrize("content", [b"", b"PK", MAGIC])
def test_what_is_no_sealed_file_is_told(content: bytes) -> None:
    with pytest.raises(SealError, match="not a sealed file"):
        unseal(content, "one passphrase")


@pytest.mark.parametrize("habit", [0o000, 0o022, 0o077])
def test_only_the_owner_reads_what_was_unpacked(habit: int, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "startup").mkdir(parents=True)
    (source / "startup" / "start.sh").write_text("#!/bin/sh\n")
    (source / "startup" / "client.key").write_text("key")
    with umask(habit):
        unpack(pack(source), tmp_path / "kit")
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in [tmp_path / "kit", *(tmp_path / "kit").rglob("*")]}
    assert modes == {"kit": 0o700, "startup": 0o700, "start.sh": 0o700, "client.key": 0o600}


def test_the_same_files_make_the_same_archive(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "one").write_text("1")
    assert pack(tmp_path / "a") == pack(tmp_path / "b")


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside", "..\\outside"])
def test_a_kit_cannot_write_outside_its_folder(name: str, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, "x")
    with pytest.raises(SealError, match="outside"):
        unpack(buffer.getvalue(), tmp_path / "kit")
    assert list(tmp_path.iterdir()) == []


def test_a_kit_as_large_as_none_can_be_is_not_written(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(sealed.MAX_BYTES + 1))
    with pytest.raises(SealError, match="larger"):
        unpack(buffer.getvalue(), tmp_path / "kit")


def test_a_size_that_is_not_so_is_not_believed(tmp_path: Path) -> None:
    """The list says ten bytes; unpacked, it would be larger than a kit can be."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(sealed.MAX_BYTES + 1))
    content = buffer.getvalue().replace(struct.pack("<I", sealed.MAX_BYTES + 1), struct.pack("<I", 10))
    tracemalloc.start()
    with pytest.raises(SealError, match="not a kit"):
        unpack(content, tmp_path / "kit")
    assert tracemalloc.get_traced_memory()[1] < sealed.MAX_BYTES / 8
    tracemalloc.stop()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "kit").mkdir()
    with pytest.raises(SealError, match="there already"):
        unpack(pack(tmp_path / "kit"), tmp_path / "kit")


def test_the_file_opens_a_kit_without_this_package(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "local").mkdir(parents=True)
    (source / "local" / "resources.json").write_text('{"store": "@KIT@/store"}')
    (tmp_path / "site.kit").write_bytes(seal(pack(source), "one passphrase"))
    (tmp_path / "alone").mkdir()
    alone = tmp_path / "alone" / "sealed.py"
    alone.write_bytes(Path(sealed.__file__).read_bytes())
    code = "import getpass, runpy, sys; getpass.getpass = lambda _: 'one passphrase'; sys.argv = sys.argv[1:]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(alone), str(tmp_path / "site.kit"), str(tmp_path / "kit")],
        cwd=tmp_path / "alone", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "kit" / "local" / "resources.json").read_text() == f'{{"store": "{tmp_path}/kit/store"}}'


def test_the_place_in_a_kit_is_the_same_word_for_who_seals_and_who_looks() -> None:
    assert kit.PLACE == sealed.PLACE  # said twice, for each of the two files stands alone
