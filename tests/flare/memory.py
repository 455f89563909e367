"""Program: prints, as JSON, the memory that a server's process needs for rounds with many sites."""

import json
import sys
import threading
import time

import numpy as np
import psutil
import torch
from nvflare.apis.shareable import Shareable

from fedfms.compression import CODECS, Payload, digest, upload
from fedfms.federation.messages import Dispatch
from fedfms.flare.messages import update_dxo

from .make import ROUND, Server, payload_of

ROUNDS = 3


def _anonymous_bytes() -> int:
    """Memory of this process that no file backs, so without memory-mapped updates."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - memory.shared)


class _Watch(threading.Thread):
    """Peak of the process's anonymous memory inside `with` blocks: at the start of each, then every millisecond."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.samples, self.on, self.ended = 0, 0, False, False
        self._lock = threading.Lock()

    def run(self) -> None:
        while not self.ended:
            before, seen = self.on, _anonymous_bytes()
            if before and self.on:
                self._add(seen)
            time.sleep(0.001)

    def _add(self, seen: int) -> None:
        with self._lock:
            self.peak, self.samples = max(self.peak, seen), self.samples + 1

    def __enter__(self) -> None:
        self._add(_anonymous_bytes())  # the thread may be scheduled too late for a short block
        self.on = True

    def __exit__(self, *_: object) -> None:
        self.on = False


def _round(server: Server, round_: int, sites: int, watch: _Watch) -> None:
    server.set_round(round_)
    for index in range(sites):
        site = f"site-{index:02d}"
        with watch:
            dispatch = server.aggregator.dispatch(site, round_, "", server.context)
        assert dispatch is not None
        shareable = _update(server, dispatch, round_, index)
        del dispatch
        with watch:
            assert server.send(site, shareable, round_), server.aggregator.rows[site]["reason"]
        del shareable
    with watch:
        after = server.aggregate()
    assert all(np.isfinite(array).all() for array in after.values())
    server.aggregator.reset(server.context)


def _update(server: Server, dispatch: Dispatch, round_: int, index: int) -> Shareable:
    """A site's update in the study's form: the initial model plus `index`."""
    tensors = {name: tensor + index for name, tensor in server.model.items()}
    codec = CODECS.get(server.study.federation.compression)
    if codec is None:
        payload = payload_of(tensors)
    else:
        payload = Payload(upload(tensors, dispatch.tensors, {}, codec).arrays, digest(dispatch.tensors))
    return update_dxo(payload, samples=10 + index, round_=round_, report={}, val_dice=None).to_shareable()


def main() -> None:
    """Print the peak over three rounds above what NVFLARE holds before them, the model, in copies of the model."""
    sites, parameters, compression = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    shape = (parameters // 16_000, 1000)
    server = Server(compression=compression, model={f"layer-{index}": torch.rand(shape) for index in range(16)})
    before, watch = _anonymous_bytes(), _Watch()
    watch.start()
    for round_ in range(ROUND, ROUND + ROUNDS):
        _round(server, round_, sites, watch)
    watch.ended = True
    watch.join()
    copies = round((watch.peak - before) / (4 * parameters), 2)
    measured = {"copies": copies, "samples": watch.samples, "sites": sites, "parameters": parameters}
    sys.stdout.write(json.dumps(measured) + "\n")


if __name__ == "__main__":
    main()
