"""The search for a marker finds it in every container and encoding."""

import base64
import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from .search import holders

MARKER = "ZZCANARY"


def _zip(content: bytes, name: str = "inner") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def _tar(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("inner")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _model(content: bytes) -> bytes:
    buffer = io.BytesIO()
    torch.save({"model": torch.zeros(2), "note": content.decode()}, buffer)
    return buffer.getvalue()


PLANTED: dict[str, Callable[[bytes], bytes]] = {
    "text": lambda text: b"a line\n" + text + b"\n",
    "zip": lambda text: _zip(text * 40),
    "name in a zip": lambda text: _zip(b"", text.decode()),
    "zip in a zip": lambda text: _zip(_zip(text * 40)),
    "gzip": lambda text: gzip.compress(text * 40),
    "zlib": lambda text: zlib.compress(text * 40),
    "tar in gzip": lambda text: gzip.compress(_tar(text)),
    "model": _model,
    "utf-16": lambda text: text.decode().encode("utf-16-le"),
    **{f"base64 from {n}": lambda text, n=n: base64.b64encode(b"a patient's"[:n] + text + b"!") for n in range(6)},
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_marker_is_found(kind: str, tmp_path: Path) -> None:
    for name, text in (("marked", MARKER), ("clean", "anothername")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(PLANTED[kind](text.encode()))
    assert holders(tmp_path / "marked", MARKER)
    assert not holders(tmp_path / "clean", MARKER)


def test_a_marker_in_a_name_is_found(tmp_path: Path) -> None:
    (tmp_path / f"{MARKER}1").mkdir()
    (tmp_path / f"{MARKER}1" / "empty").touch()
    assert holders(tmp_path, MARKER) == [f"{MARKER}1", f"{MARKER}1/empty"]


def test_archives_nested_too_deeply_are_an_error(tmp_path: Path) -> None:
    content = b""
    for _ in range(8):
        content = _zip(content)
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(AssertionError, match="too deeply"):
        holders(tmp_path, MARKER)
