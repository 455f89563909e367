"""Helpers of the tests with processes: small studies, logs, and submission of several jobs."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from nvflare.fuel.flare_api.flare_api import new_secure_session

from fedfms.flare.submit import stage
from fedfms.provisioning.federation import LEAD, LocalFederation
from fedfms.study import STUDIES, Study, load_study

TIMEOUT_S = 400
PHANTOM = STUDIES / "phantom.yaml"
MARKED = "marked"  # the data set whose raw files contain a marker
_SMALL = [
    "sites=[site-1, site-2, site-3]", "held_out=[]", "data.phantom_images=12", "train.rounds=2",
    "train.local_epochs=1", "model.input_px=64", "federation.min_cases=1", "federation.straggler_timeout_s=60",
]  # fmt: skip


def small_study(method: str = "fedmsa", *overrides: str) -> Study:
    """Two rounds at three sites, on the phantom."""
    return load_study(PHANTOM, method=method, overrides=[*_SMALL, *overrides])


def marked_study() -> Study:
    """Two rounds on data at the sites; a round needs two of the three sites."""
    structures = [{"name": "structure", "values": [1]}]
    overrides = [*_SMALL, f"data.dataset={MARKED}", "federation.min_sites=2"]
    return load_study(PHANTOM, method="fedmsa", overrides=overrides, **{"data.structures": structures})


def edit_json(path: Path, change: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    """Change a JSON file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def logs(running: LocalFederation, name: str) -> str:
    """The console output of a server or site, and its log files."""
    kit = running.kits[name]
    return running.log(name) + "".join(path.read_text(errors="replace") for path in kit.rglob("*log.txt"))


def submit_all(running: LocalFederation, jobs: Mapping[str, Path], folder: Path) -> dict[str, str]:
    """Submit staged copies of jobs in one session of the lead; returns how each ended, or its error."""
    session, outcomes, ids = new_secure_session(LEAD, str(running.kits[LEAD])), {}, {}
    try:
        for name, job in jobs.items():
            try:
                ids[name] = session.submit_job(str(stage(job, folder / name, max_mb=100)))
            except Exception as error:  # noqa: BLE001 - of many kinds; the test checks the text
                outcomes[name] = f"{type(error).__name__}: {error}"
        for name, id_ in ids.items():
            running.wait(name, lambda id_=id_: "FINISHED" in session.get_job_meta(id_)["status"], TIMEOUT_S)
            outcomes[name] = json.dumps(session.get_job_meta(id_))
    finally:
        session.close()
    return outcomes
