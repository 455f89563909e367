"""An NVFLARE recipe runs in a federation of this package's kits, whose sites reject code in a job."""

import json
from pathlib import Path

import pytest
from nvflare.recipe import ProdEnv

from fedfms.flare.recipe import FedfmsRecipe
from fedfms.provisioning.federation import LEAD, LocalFederation

from .make import SITES
from .processes import TIMEOUT_S, small_study

pytestmark = [pytest.mark.federation, pytest.mark.processes, pytest.mark.slow]


def test_a_recipe_runs_in_a_federation_of_kits(running: LocalFederation) -> None:
    made = FedfmsRecipe(small_study("fedmsa", "train.rounds=1"))
    run = made.execute(ProdEnv(str(running.kits[LEAD]), username=LEAD, login_timeout=60.0))
    assert run is not None
    result = run.get_result(timeout=TIMEOUT_S)
    assert run.get_status() == "FINISHED:COMPLETED"
    assert result is not None
    final = json.loads((Path(result) / "workspace" / "fedfms" / "final.json").read_text())
    assert set(final["models"]["final"]["sites"]) == set(SITES)
