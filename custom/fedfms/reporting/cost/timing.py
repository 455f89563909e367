"""Seconds and memory of one training step and one prediction on this machine, by the trainer of a site."""

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
from typing import Any

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
_FAULT = 3  # exit code of a child whose last line on standard error is a readable error


@dataclass(frozen=True)
class Timing:
    """Medians in seconds; peak memory in MiB: of the GPU if there is one, else of the process.

    base_mib: memory of the process before it built the model (0 on a GPU).
    """

    device: str
    steps: int
    step_s: float
    predict_s: float
    peak_mib: int
    base_mib: int


def measure(
    study: Study, settings: SiteSettings, steps: int, prefix: Path | None = None, *, training: bool = True
) -> Timing:
    """Measure `steps` steps of the first round at the study's batch size, then as many predictions of one image.

    Weights and images are random. A step includes the method's penalty, but neither what the method does before
    training nor data loading.

    Args:
        prefix: a folder for the cached outputs of a frozen prefix, if the model has one; the first step computes them.
        training: false omits the steps; the peak is then that of the predictions.

    Raises:
        FedfmsError: as `build`.
    """
    base = _peak_of_process()
    gpu = settings.torch_device.type == "cuda"
    built = build(study, settings)
    received = _receive(built, study)
    cache = PrefixCache(built, prefix) if prefix is not None and PrefixCache.applies(built) else None
    trainer = Trainer(built, study.train, study.structure_names, cache)
    optimizer = trainer.optimizer(0)
    batch = _random_batch(built, study.train.batch_size)
    step_s, peak = 0.0, 0
    if training:
        step_s = _median(lambda: trainer.epoch([batch], optimizer, received), steps, gpu)
        peak = _peak(gpu)
    if trainer.max_slices:  # the trainer has split the batch: not the requested step
        raise TrainingError("not measured: there is too little memory", do="--set train.batch_size=1")
    built.method.after_training(built.model)
    predict_s = _median(lambda: trainer.predict({key: batch[key][:1] for key in ("image", "view")}), steps, gpu)
    return Timing(
        device=torch.cuda.get_device_name() if gpu else "cpu",
        steps=steps,
        step_s=round(step_s, 4),
        predict_s=round(predict_s, 4),
        peak_mib=round((peak or _peak(gpu)) / 2**20),
        base_mib=0 if gpu else round(base / 2**20),
    )


def _random_batch(built: BuiltModel, batch_size: int) -> dict[str, Any]:
    model = built.model
    masks = torch.rand(batch_size, model.n_structures, model.mask_px, model.mask_px) > 0.5
    return {
        "image": torch.rand(batch_size, 3, model.input_px, model.input_px),
        "label": masks.float(),
        "view": [f"{index:064d}" for index in range(batch_size)],
    }


def measure_in_subprocess(
    study: Study, settings: SiteSettings, steps: int, timeout_s: float | None, *, prefix: bool = False,
    training: bool = True,
) -> Timing:  # fmt: skip
    """`measure` in a new process, so that peak memory is that of the measurement alone.

    Args:
        settings: without folders: neither data nor weights are read.
        prefix: cache the outputs of a frozen prefix, as a site without augmentation does.

    Raises:
        TrainingError: the process timed out or failed, for example because of too little memory.
    """
    how = {"steps": steps, "prefix": prefix, "training": training}
    order = json.dumps({"study": study.to_dict(), "settings": settings.to_dict(), **how})
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD], input=order, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise TrainingError(f"not measured within {timeout_s:g} s", do="raise --timeout") from None
    if done.returncode == _FAULT:
        raise TrainingError(done.stderr.splitlines()[-1])
    if done.returncode:
        raise TrainingError(
            f"not measured: the process ended with {done.returncode}",
            do="if it ran out of memory, --set train.batch_size=1",
        )
    return Timing(**json.loads(done.stdout.splitlines()[-1]))


def child() -> None:
    """The new process: an order as JSON on standard input, the result as the last line on standard output."""
    order = json.load(sys.stdin)
    try:
        with tempfile.TemporaryDirectory() as folder:
            study, settings = Study.from_dict(order["study"]), SiteSettings.from_dict(order["settings"])
            torch.set_num_threads(settings.threads or torch.get_num_threads())
            prefix = Path(folder) if order["prefix"] else None
            timing = measure(study, settings, order["steps"], prefix, training=order["training"])
    except (FedfmsError, torch.cuda.OutOfMemoryError) as error:
        too_little = "not measured: the GPU has too little memory; --set train.batch_size=1"
        sys.stderr.write(f"{error.line() if isinstance(error, FedfmsError) else too_little}\n")
        sys.exit(_FAULT)
    sys.stdout.write(json.dumps(asdict(timing)) + "\n")


def _receive(built: BuiltModel, study: Study) -> dict[str, torch.Tensor]:
    """The tensors that the first site receives in the first round; sets the model to train them, as a site does."""
    sites = planned_sites(study)
    received = built.method.dispatch(ServerState(built.shared(), 0, study.seed), sites)[sites[0]]
    built.train_only({*received, *built.partition.private})
    built.method.before_training(built.model, 0, received)
    return received


def _median(run: Callable[[], object], times: int, gpu: bool) -> float:
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        run()
        if gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _peak(gpu: bool) -> int:
    return torch.cuda.max_memory_allocated() if gpu else _peak_of_process()


def _peak_of_process() -> int:
    """Bytes. On Linux a child inherits its parent's `ru_maxrss`, so the process's own VmHWM is preferred."""
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.is_file() else None
    return (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024
