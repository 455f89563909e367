"""Run as a program: the memory that a server's process takes for rounds of many sites, as JSON."""

from __future__ import annotations

import json
import sys
import threading
import time

import numpy as np
import torch
from nvflare.apis.dxo import DXO
from nvflare.app_common.app_constant import AppConstants

from benchmarks.aggregate import anonymous
from fedfms.compression import upload
from fedfms.flare.messages import update_dxo
from fedfms.training.link import Coded

from .make import Server


class _Watch(threading.Thread):
    """The most that was seen, as it is turned `on` and every millisecond after: while the server works."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.looks, self.on, self.ended = 0, 0, False, False
        self._lock = threading.Lock()

    def run(self) -> None:
        while not self.ended:
            before, seen = self.on, anonymous()
            if before and self.on:
                self._see(seen)
            time.sleep(0.001)

    def _see(self, seen: int) -> None:
        with self._lock:
            self.peak, self.looks = max(self.peak, seen), self.looks + 1

    def __enter__(self) -> None:
        self._see(anonymous())  # what a thread that is let run late would not see
        self.on = True

    def __exit__(self, *_: object) -> None:
        self.on = False


def _round(server: Server, round_: int, sites: int, model: dict[str, torch.Tensor], watch: _Watch) -> None:
    server.context.set_prop(AppConstants.CURRENT_ROUND, round_)
    for index in range(sites):
        site = f"site-{index:02d}"
        with watch:
            if server.aggregator.download_for(site, round_, "", server.context) is None:  # as `flare/personal.py` asks
                server.aggregator.tensors_for(site, round_, server.context)
        shareable = _sent(server, site, round_, index, model).to_shareable()
        with watch:
            assert server.send(site, shareable, round_), server.aggregator.rows[site]["reason"]
        del shareable
    with watch:
        after = server.aggregate()
    assert all(np.isfinite(array).all() for array in after.values())
    server.aggregator.reset(server.context)


def _sent(server: Server, site: str, round_: int, index: int, model: dict[str, torch.Tensor]) -> DXO:
    """A site's update, in the form of the study's wire."""
    update, coded = {name: tensor + index for name, tensor in model.items()}, None
    downlink = server.aggregator._downlink
    if downlink is not None:
        coded = Coded(upload(update, downlink.received(site), {}, downlink.codec).arrays, downlink.holds(site))
    return update_dxo(update, samples=10 + index, round_=round_, report={}, val_dice=None, coded=coded)


def main() -> None:
    """Peak over three rounds beside what NVFLARE holds before them: the model; in copies of it."""
    sites, parameters, wire = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    server = Server(compression=wire)
    shape = (parameters // 16_000, 1000)
    server.persistor.shared = model = {f"layer-{index}": torch.rand(shape) for index in range(16)}
    before, watch = anonymous(), _Watch()
    watch.start()
    for round_ in (3, 4, 5):
        _round(server, round_, sites, model, watch)
    watch.ended = True
    watch.join()
    copies = round((watch.peak - before) / (4 * parameters), 2)
    told = {"copies": copies, "looks": watch.looks, "sites": sites, "parameters": parameters}
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
