"""A search through all that lies in a folder: names, bytes, and what is packed in archives, as deep as they go."""

from __future__ import annotations

import base64
import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

DEEPEST = 6  # archives in archives


def holders(folder: Path, marker: str) -> list[str]:
    """Files, and members of archives as `file!member`, that have the marker in their name or bytes in any spelling."""
    spellings = _spellings(marker)
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        content = path.read_bytes() if path.is_file() else b""
        for part, packed in [(name, content), *_packed(name, content, DEEPEST)]:
            if any(one in text for text in (part.encode(), packed) for one in spellings):
                found.append(part)
    return found


def _spellings(marker: str) -> tuple[bytes, ...]:
    """As text of two encodings, and as base64 wherever in a group of three bytes it starts."""
    plain = marker.encode()
    coded = [base64.b64encode(bytes(start) + plain) for start in range(3)]
    # The ends also hold bits of what stands before and after.
    return plain, marker.encode("utf-16-le"), *(one[4 if start else 0 : -4] for start, one in enumerate(coded))


def _packed(name: str, content: bytes, left: int) -> Iterator[tuple[str, bytes]]:
    if not left:
        raise AssertionError(f"{name} is packed too deep to be searched")
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
        return b""  # a text that begins with an x
