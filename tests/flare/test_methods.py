"""Every registered method in a job's components and in the in-process loop gives the same bits.

tests/simulator runs the components in NVFLARE's simulator, for one method of each kind.
"""

from pathlib import Path

import pytest

from fedfms.federation.inprocess import rounds
from fedfms.methods import METHODS, training_sites
from fedfms.settings import SiteSettings
from fedfms.study import STUDIES, load_study
from fedfms.training.state import StateStore

from .inprocess import Job, same

PHANTOM = STUDIES / "phantom.yaml"
SMALL = [
    "data.phantom_images=7", "data.phantom_px=32", "model.input_px=32", "train.rounds=2", "train.local_epochs=1",
    "sites=[a, b]", "held_out=[]", "federation.min_cases=1", "federation.tracking=none",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_job_equals_the_in_process_loop(method: str, tmp_path: Path) -> None:
    study = load_study(PHANTOM, method=method, overrides=SMALL)
    job = Job(study, tmp_path / "job", "one")
    for round_ in range(study.train.rounds):
        job.round(round_)
    *_, last = rounds(study, study.sites, SiteSettings(), tmp_path / "inprocess")
    assert job.server.round == last.server.round == 2
    for name in ("shared", "per_site", "state", "notes"):
        assert same(getattr(job.server, name), getattr(last.server, name)), name
    for site in training_sites(study):
        places = tmp_path / "job" / site / "one" / "fedfms", tmp_path / "inprocess" / site
        one, other = (StateStore(place / "state").load() for place in places)
        assert one is not None and other is not None
        assert same(vars(one), vars(other)), site
