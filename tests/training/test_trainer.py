"""Errors while loading a batch are one line, in this process and in loader processes."""

from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from fedfms.errors import DataError
from fedfms.settings import SiteSettings
from fedfms.study import Study
from fedfms.training.build import build
from fedfms.training.trainer import Aborted, Trainer, batches


class _Damaged(Dataset[Any]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        if index == 1:
            try:
                raise FileNotFoundError("/data/StMary/smith.png")
            except FileNotFoundError as error:
                raise DataError("the image is missing", where="site a, case 0a", do="run the check") from error
        return {"image": torch.zeros(3, 32, 32), "label": torch.zeros(1, 32, 32), "key": str(index)}


def _trainer(stop: bool = False) -> Trainer:
    study = Study.from_dict({"name": "t", "model": {"backbone": "vit_tiny", "input_px": 32}})
    return Trainer(build(study, SiteSettings()), study.train, study.structure_names, stop=lambda: stop)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_batch_is_one_line_without_a_path(workers: int) -> None:
    with pytest.raises(DataError) as caught:
        _trainer().score(batches(_Damaged(), 2, workers=workers))
    assert caught.value.line() == "site a, case 0a: the image is missing; run the check"
    assert caught.value.at("round 0").line() == "round 0, site a, case 0a: the image is missing; run the check"


@pytest.mark.slow
def test_a_stop_is_honoured_before_the_next_batch() -> None:
    with pytest.raises(Aborted):
        _trainer(stop=True).score(batches(_Damaged(), 2))
