"""How shared tensors travel: whole in float32, or as differences in two bytes or one an element. Pure: no FLARE, no
files.

A compressed sender keeps what rounding took and adds it the next time: the site in its residual, the server by sending
differences to what a site holds rather than to what it was meant to hold. A new form: a `Codec`, and a line in
`CODECS`.
"""

from __future__ import annotations

from fedfms.compression.codecs import CODECS, Arrays, Codec, Keep, Layout, in_memory, layout, nbytes
from fedfms.compression.digest import digest
from fedfms.compression.download import DownlinkCompressor, Download, read_download
from fedfms.compression.upload import Upload, read_upload, upload

COMPRESSIONS = ("none", *CODECS)

__all__ = [
    "CODECS", "COMPRESSIONS", "Arrays", "Codec", "Download", "DownlinkCompressor", "Keep", "Layout", "Upload", "digest",
    "in_memory", "layout", "nbytes", "read_download", "read_upload", "upload",
]  # fmt: skip
