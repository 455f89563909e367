"""One training step and one prediction on the machine at hand, by the trainer that a site uses; random images."""

from __future__ import annotations

import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from fedfms.errors import FedfmsError, TrainingError
from fedfms.methods import ServerState
from fedfms.reporting.cost.traffic import planned_sites
from fedfms.settings import SiteSettings
from fedfms.study import Study
from fedfms.training.build import BuiltModel, build
from fedfms.training.prefix import PrefixCache
from fedfms.training.trainer import Trainer

_CHILD = "from fedfms.reporting.cost import timing; timing.child()"
_FAULT = 3  # exit code of a child whose last line of text is a fault that a person reads


@dataclass(frozen=True)
class Timing:
    """Medians in seconds; peak memory in MiB: of the card where there is one, else of the process.

    `base_mib`: of that, what the process had before it built the model (0 on a card).
    """

    device: str
    steps: int
    step_s: float
    predict_s: float
    peak_mib: int
    base_mib: int


class Ready(NamedTuple):
    """A site's trainer with random weights and images: `step` and `predict` work with what the first round sends."""

    step: Callable[[], object]
    predict: Callable[[], object]
    built: BuiltModel
    trainer: Trainer


def ready(study: Study, settings: SiteSettings, prefix: Path | None = None) -> Ready:
    """All that a step of the study's batch needs, and the prediction of one image.

    Args:
        prefix: a folder in which to keep the outputs of a frozen stage, where it pays: the first step computes them.

    Raises:
        FedfmsError: as `build`.
    """
    built = build(study, settings)
    received = _receive(built, study)
    cache = PrefixCache(built, prefix) if prefix is not None and PrefixCache.applies(built) else None
    trainer = Trainer(built, study.train, study.structure_names, cache)
    optimizer = trainer.optimizer(0)
    model, batch = built.model, study.train.batch_size
    images = torch.rand(batch, 3, model.input_px, model.input_px)
    masks = (torch.rand(batch, model.n_structures, model.mask_px, model.mask_px) > 0.5).float()
    keys = [f"{index:064d}" for index in range(batch)]
    loader = [{"image": images, "label": masks, "key": keys}]
    return Ready(
        lambda: trainer.epoch(loader, optimizer, received, cached=cache is not None),
        lambda: trainer.predict({"image": images[:1], "key": keys[:1]}),
        built, trainer,
    )  # fmt: skip


def measure(
    study: Study, settings: SiteSettings, steps: int, prefix: Path | None = None, *, training: bool = True
) -> Timing:
    """`steps` steps of the first round with the study's batch, after them as many predictions of one image.

    From random weights; the method's penalty is in a step, what it does before training and data loading are not.

    Args:
        prefix: as of `ready`.
        training: false leaves the steps out; the peak is then that of the predictions.

    Raises:
        FedfmsError: as `build`.
    """
    base = _peak_of_process()
    card = settings.torch_device.type == "cuda"
    made = ready(study, settings, prefix)
    step_s, peak = 0.0, 0
    if training:
        step_s = _median(made.step, steps, card)
        peak = _peak(card)
    if made.trainer.most:  # another step than the one that was asked for
        raise TrainingError("not measured: there is too little memory", do="--set train.batch_size=1")
    made.built.method.after_training(made.built.model)
    predict_s = _median(made.predict, steps, card)
    return Timing(
        device=torch.cuda.get_device_name() if card else "cpu",
        steps=steps,
        step_s=round(step_s, 4),
        predict_s=round(predict_s, 4),
        peak_mib=round((peak or _peak(card)) / 2**20),
        base_mib=0 if card else round(base / 2**20),
    )


def apart(
    study: Study, settings: SiteSettings, steps: int, timeout_s: float | None, *, prefix: bool = False,
    training: bool = True,
) -> Timing:  # fmt: skip
    """As `measure`, in a process of its own, whose peak memory is therefore its own.

    Args:
        settings: without folders: neither data nor weights are read.
        prefix: keep the outputs of a frozen stage where it pays, as a site does that augments nothing.

    Raises:
        TrainingError: it did not end in time, or not well (no memory, for instance).
    """
    how = {"steps": steps, "prefix": prefix, "training": training}
    order = json.dumps({"study": study.to_dict(), "settings": settings.to_dict(), **how})
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD], input=order, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise TrainingError(f"not measured within {timeout_s:g} s", do="give --timeout more") from None
    if done.returncode == _FAULT:
        raise TrainingError(done.stderr.splitlines()[-1])
    if done.returncode:
        raise TrainingError(
            f"not measured: the process ended with {done.returncode}",
            do="if it ran out of memory, --set train.batch_size=1",
        )
    return Timing(**json.loads(done.stdout.splitlines()[-1]))


def child() -> None:
    """`measure` for `apart`: an order on standard input, the result as the last line on standard output."""
    order = json.load(sys.stdin)
    try:
        with tempfile.TemporaryDirectory() as folder:
            study, settings = Study.from_dict(order["study"]), SiteSettings.from_dict(order["settings"])
            torch.set_num_threads(settings.threads or torch.get_num_threads())
            prefix = Path(folder) if order["prefix"] else None
            timing = measure(study, settings, order["steps"], prefix, training=order["training"])
    except FedfmsError as error:
        sys.stderr.write(f"{error.line()}\n")
        sys.exit(_FAULT)
    except torch.cuda.OutOfMemoryError:
        sys.stderr.write("not measured: the card has too little memory; --set train.batch_size=1\n")
        sys.exit(_FAULT)
    sys.stdout.write(json.dumps(asdict(timing)) + "\n")


def _receive(built: BuiltModel, study: Study) -> dict[str, torch.Tensor]:
    """What the first site gets in the first round, and the model set to train it, as a site does."""
    sites = planned_sites(study)
    received = built.method.dispatch(ServerState(built.shared(), 0, study.seed), sites)[sites[0]]
    built.train_only({*received, *built.partition.private})
    built.method.before_training(built.model, 0, received)
    return received


def _median(run: Callable[[], object], times: int, card: bool) -> float:
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        run()
        if card:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _peak(card: bool) -> int:
    return torch.cuda.max_memory_allocated() if card else _peak_of_process()


def _peak_of_process() -> int:
    """Bytes. Linux hands `ru_maxrss` of a parent on to its child, so its own count is asked first."""
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.is_file() else None
    return (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024
