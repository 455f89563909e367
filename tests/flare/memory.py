"""Run as a program: the memory that a server's process takes for a round of many sites, as JSON."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch
from nvflare.app_common.app_constant import AppConstants

from fedfms.flare.wire import update_dxo

from .make import Server


def _anonymous() -> int:
    """Bytes of this process that no file holds."""
    found = re.search(r"^RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


class _Watch(threading.Thread):
    """The most that was seen, every millisecond."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.ended = 0, False

    def run(self) -> None:
        while not self.ended:
            self.peak = max(self.peak, _anonymous())
            time.sleep(0.001)


def _round(server: Server, round_: int, sites: int, model: dict[str, torch.Tensor]) -> None:
    server.context.set_prop(AppConstants.CURRENT_ROUND, round_)
    for index in range(sites):
        update = {name: tensor + index for name, tensor in model.items()}
        dxo = update_dxo(update, samples=10 + index, round_=round_, report={}, val_dice=None)
        assert server.send(f"site-{index:02d}", dxo.to_shareable(), round_)
        del update, dxo
    after = server.aggregate()
    assert all(np.isfinite(array).all() for array in after.values())
    server.aggregator.reset(server.context)


def main() -> None:
    """Peak over two rounds beside what NVFLARE holds before them: the model; in copies of it."""
    sites, parameters = int(sys.argv[1]), int(sys.argv[2])
    server = Server()
    server.persistor.shared = model = {f"layer-{index}": torch.rand(parameters // 4) for index in range(4)}
    before, watch = _anonymous(), _Watch()
    watch.start()
    for round_ in (3, 4):
        _round(server, round_, sites, model)
    watch.ended = True
    watch.join()
    told = {"copies": round((watch.peak - before) / (4 * parameters), 2), "sites": sites, "parameters": parameters}
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
