"""Compression of the shared tensors in transit: differences in bfloat16, float16 or int8, with error feedback.

Pure: no NVFLARE, no files. Each sender adds what rounding lost to its next message: the site through its residual, the
server by sending differences to what a site holds rather than to the last target. A new form is a `Codec` and a line in
`CODECS`.
"""

from fedfms.compression.codecs import CODECS, Arrays, ArrayStore, Codec, Layout, Tensors, in_memory, layout, nbytes
from fedfms.compression.digests import digest
from fedfms.compression.download import DownlinkCompressor, Download, read_download
from fedfms.compression.upload import Payload, Upload, read_upload, upload

COMPRESSIONS = ("none", *CODECS)

__all__ = [
    "CODECS", "COMPRESSIONS", "ArrayStore", "Arrays", "Codec", "DownlinkCompressor", "Download", "Layout", "Payload",
    "Tensors", "Upload", "digest", "in_memory", "layout", "nbytes", "read_download", "read_upload", "upload",
]  # fmt: skip
