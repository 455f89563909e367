"""Search a folder for a marker: in names, in bytes, and in nested archives."""

import base64
import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

MAX_DEPTH = 6  # of nested archives


def holders(folder: Path, marker: str) -> list[str]:
    """Files and archive members (`file!member`) that contain the marker in their name or bytes, in any encoding."""
    encodings = _encodings(marker)
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        content = path.read_bytes() if path.is_file() else b""
        for part, packed in [(name, content), *_packed(name, content, MAX_DEPTH)]:
            if any(one in text for text in (part.encode(), packed) for one in encodings):
                found.append(part)
    return found


def _encodings(marker: str) -> tuple[bytes, ...]:
    """The marker as UTF-8, UTF-16, and base64 at each offset in a group of three bytes."""
    plain = marker.encode()
    coded = [base64.b64encode(bytes(start) + plain) for start in range(3)]
    # The ends of the base64 text also hold bits of neighbouring bytes.
    return plain, marker.encode("utf-16-le"), *(one[4 if start else 0 : -4] for start, one in enumerate(coded))


def _packed(name: str, content: bytes, left: int) -> Iterator[tuple[str, bytes]]:
    if not left:
        raise AssertionError(f"{name} is nested too deeply to be searched")
    for member, inner in _members(content):
        yield f"{name}!{member}", inner
        yield from _packed(f"{name}!{member}", inner, left - 1)


def _members(content: bytes) -> Iterator[tuple[str, bytes]]:
    if content[:2] == b"\x1f\x8b":
        yield "gzip", gzip.decompress(content)
    elif content[:1] == b"\x78" and (inner := _inflated(content)):
        yield "zlib", inner
    elif zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for info in archive.infolist():
                yield info.filename, archive.read(info)
    elif content[257:262] == b"ustar":
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for member in archive.getmembers():
                file = archive.extractfile(member)
                yield member.name, file.read() if file else b""


def _inflated(content: bytes) -> bytes:
    try:
        return zlib.decompress(content)
    except zlib.error:
        return b""  # a text that starts with an x
