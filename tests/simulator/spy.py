"""A filter for tests, behind a site's executor, that records what leaves the site."""

import json
from pathlib import Path
from typing import Any

from nvflare.apis.dxo import DataKind, from_shareable
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

PLAIN = (bool, int, float, str, type(None))  # a list of numbers counts as an array
FILE = "left_the_site.jsonl"


class Spy(Filter):
    """Writes one line per reply: its task, the names of its tensors, and every other array or text in it."""

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        dxo = from_shareable(shareable)
        weights = dxo.data if dxo.data_kind in (DataKind.WEIGHTS, DataKind.WEIGHT_DIFF) else {}
        other = {"meta": dxo.meta, "data": {} if weights else dxo.data}
        line = {
            "task": fl_ctx.get_prop(FLContextKey.TASK_NAME),
            "tensors": sorted(weights),
            "dtypes": sorted({str(array.dtype) for array in weights.values()}),
            "bytes": sum(array.nbytes for array in weights.values()),
            "other arrays": [path for path, value in _walk(other) if not isinstance(value, PLAIN)],
            "other texts": sorted({str(value) for _, value in _walk(other) if isinstance(value, str)}),
        }
        run = Path(fl_ctx.get_workspace().get_run_dir(fl_ctx.get_job_id()))
        with (run / FILE).open("a") as file:
            file.write(json.dumps(line) + "\n")
        return shareable


def _walk(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [found for key, inner in value.items() for found in _walk(inner, f"{path}/{key}")]
    return [(path, value)]
