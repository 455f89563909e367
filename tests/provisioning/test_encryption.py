"""Encrypted files and kits."""

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
from fedfms.provisioning import encryption
from fedfms.provisioning.encryption import MAGIC, EncryptionError, decrypt, encrypt, pack, unpack

from .make import umask


def test_only_the_right_passphrase_decrypts() -> None:
    encrypted = encrypt(b"a key", "one passphrase")
    assert b"a key" not in encrypted
    assert decrypt(encrypted, "one passphrase") == b"a key"
    with pytest.raises(EncryptionError, match="passphrase is wrong, or the file was changed"):
        decrypt(encrypted, "one passphrasE")


@pytest.mark.parametrize("place", [len(MAGIC), len(MAGIC) + 20, -1])
def test_a_changed_bit_is_detected(place: int) -> None:
    encrypted = bytearray(encrypt(b"a key", "one passphrase"))
    encrypted[place] ^= 1
    with pytest.raises(EncryptionError):
        decrypt(bytes(encrypted), "one passphrase")


@pytest.mark.parametrize("content", [b"", b"PK", MAGIC])
def test_another_file_is_an_error(content: bytes) -> None:
    with pytest.raises(EncryptionError, match="not an encrypted file"):
        decrypt(content, "one passphrase")


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_only_the_owner_can_read_unpacked_files(mask: int, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "startup").mkdir(parents=True)
    (source / "startup" / "start.sh").write_text("#!/bin/sh\n")
    (source / "startup" / "client.key").write_text("key")
    with umask(mask):
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
    with pytest.raises(EncryptionError, match="outside"):
        unpack(buffer.getvalue(), tmp_path / "kit")
    assert list(tmp_path.iterdir()) == []


def test_a_kit_that_is_too_large_is_not_written(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(encryption.MAX_BYTES + 1))
    with pytest.raises(EncryptionError, match="too large"):
        unpack(buffer.getvalue(), tmp_path / "kit")


def test_a_false_declared_size_does_not_help(tmp_path: Path) -> None:
    """The zip file declares ten bytes; unpacked, it would be too large."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(encryption.MAX_BYTES + 1))
    content = buffer.getvalue().replace(struct.pack("<I", encryption.MAX_BYTES + 1), struct.pack("<I", 10))
    tracemalloc.start()
    with pytest.raises(EncryptionError, match="not a kit"):
        unpack(content, tmp_path / "kit")
    assert tracemalloc.get_traced_memory()[1] < encryption.MAX_BYTES / 8
    tracemalloc.stop()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "kit").mkdir()
    with pytest.raises(EncryptionError, match="the folder exists"):
        unpack(pack(tmp_path / "kit"), tmp_path / "kit")


def test_the_file_alone_opens_a_kit(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "local").mkdir(parents=True)
    (source / "local" / "resources.json").write_text('{"store": "@KIT@/store"}')
    (tmp_path / "site.kit").write_bytes(encrypt(pack(source), "one passphrase"))
    (tmp_path / "alone").mkdir()
    alone = tmp_path / "alone" / "encryption.py"
    alone.write_bytes(Path(encryption.__file__).read_bytes())
    code = "import getpass, runpy, sys; getpass.getpass = lambda _: 'one passphrase'; sys.argv = sys.argv[1:]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(alone), str(tmp_path / "site.kit"), str(tmp_path / "kit")],
        cwd=tmp_path / "alone", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "kit" / "local" / "resources.json").read_text() == f'{{"store": "{tmp_path}/kit/store"}}'


def test_both_modules_have_the_same_placeholder() -> None:
    """It is defined twice, because `encryption.py` imports nothing of the package."""
    assert kit.KIT_PLACEHOLDER == encryption.KIT_PLACEHOLDER
