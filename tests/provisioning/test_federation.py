"""A server, three sites and their people as processes of their own, over mTLS: what works, and who refuses what."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fedfms.errors import ProvisioningError
from fedfms.flare.console import ask
from fedfms.flare.job import build_job
from fedfms.flare.submit import run_job
from fedfms.flare.watch import COMPLETED
from fedfms.settings import SiteSettings
from fedfms.study import Study, load_study
from fedfms.training.reference import rounds
from provisioning.deployment import Deployment, make
from provisioning.federation import ADMIN, LEAD, Running, prepare
from provisioning.kit import certificate, put_blocked
from tests.federation.common import assert_equal
from tests.federation.spy import FILE

from .make import MEMBER, PASSPHRASE, REPO, SITES, opened, project_file

pytestmark = [pytest.mark.federation, pytest.mark.processes, pytest.mark.slow]

LIMIT_S = 400
PHANTOM = REPO / "jobs" / "studies" / "phantom.yaml"
SMALL = [
    "sites=[site-1, site-2, site-3]", "held_out=[]", "data.phantom_images=12", "train.rounds=2",
    "train.local_epochs=1", "model.input_px=64", "federation.min_cases=1", "federation.wait_s=60",
]  # fmt: skip
Edit = Callable[[Path], None]


def _study(method: str = "fedmsa") -> Study:
    return load_study(PHANTOM, method=method, overrides=SMALL)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("federation") / "out"


@pytest.fixture(scope="module")
def running(out: Path) -> Iterator[Running]:
    """All are up. Site 1 writes down what leaves it; the server itself lets the lead bring code, and no site does."""
    job = build_job(_study(), out.parent / "fedmsa")
    roles = {ADMIN: "project_admin", LEAD: "lead", MEMBER: "member"}
    kits = prepare(out, SITES, [job], roles, PASSPHRASE)
    _edit(kits["site-1"] / "local" / "privacy.json", lambda policy: policy["scopes"][0]["task_result_filters"].append(
        {"path": "tests.federation.spy.Spy", "args": {}}
    ))  # fmt: skip
    _edit(kits["localhost"] / "local" / "authorization.json", _let_in_code)
    with Running(kits, {"PYTHONPATH": f"{REPO / 'custom'}:{REPO}", "OMP_NUM_THREADS": "1"}) as started:
        started.start_all(SITES, ADMIN, LIMIT_S)
        yield started


def _edit(path: Path, change: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _let_in_code(policy: dict) -> None:  # type: ignore[type-arg]
    policy["permissions"]["lead"]["byoc"] = "any"


def _logs(running: Running, name: str) -> str:
    """What a server or site has printed, and what its jobs have written."""
    kit = running.kits[name]
    return running.log(name) + "".join(path.read_text(errors="replace") for path in kit.rglob("*log.txt"))


def test_the_final_model_is_the_references_and_only_shared_names_left(running: Running, out: Path) -> None:
    run = _run(out.parent / "fedmsa", running.kits[LEAD], out / "plain")
    *_, last = rounds(_study(), SITES, SiteSettings(), out / "reference")
    saved = torch.load(run / "app_server" / "FL_global_model.pt", weights_only=True)["model"]
    assert_equal({name: torch.as_tensor(value) for name, value in saved.items()}, last.server.shared, 1e-6)
    (record,) = running.kits["site-1"].rglob(FILE)
    left = [json.loads(line) for line in record.read_text().splitlines()]
    assert [line["task"] for line in left] == ["train", "train", "validate", "validate"]
    assert {name for line in left for name in line["tensors"]} == set(last.server.shared)
    assert not any(line["arrays beside"] for line in left)
    store = running.kits["localhost"] / "store" / "jobs"
    assert list(store.iterdir())
    for name in ("localhost", *SITES):
        assert not [path.name for path in running.kits[name].rglob("*.key") if path.stat().st_mode & 0o077]


def _run(job: Path, kit: Path, out: Path, max_mb: float = 16) -> Path:
    return run_job(job, kit, out, limit_s=LIMIT_S, max_mb=max_mb).completed()


def test_rounds_are_told_while_the_job_runs(running: Running, out: Path) -> None:
    study = load_study(PHANTOM, method="fedmsa", overrides=[*SMALL, "train.rounds=6"])
    ids, told = list[str](), list[str]()
    live: set[str] = set()

    def tell(line: str) -> None:
        told.append(line)
        if (running.kits["localhost"] / ids[-1]).is_dir():  # which the server clears away when the job has ended
            live.add(line)

    job = build_job(study, out.parent / "longer")
    kit, limit_s = running.kits[LEAD], 2.0 * LIMIT_S
    result = run_job(job, kit, out / "longer", limit_s=limit_s, tell=tell, submitted=ids.append)
    rounds = [line for line in told if line.startswith("round")]
    assert [line.split(";")[0] for line in rounds] == [f"round {n}/6: 3 of 3 sites" for n in range(1, 7)]
    assert rounds[0] in live and "val dice 0." in rounds[0]
    assert (result.status, result.absent) == (COMPLETED, {})


def _other(out: Path, name: str, edit: Edit) -> Path:
    job = out.parent / name
    shutil.copytree(out.parent / "fedmsa", job)
    shutil.rmtree(job / "app" / "custom")
    edit(job)
    return job


def _brings_code(job: Path) -> None:
    (job / "app" / "custom").mkdir()
    (job / "app" / "custom" / "mine.py").write_text("x = 1\n")


def _names_another_class(job: Path) -> None:
    path = job / "app" / "config" / "config_fed_client.json"
    _edit(path, lambda c: c["components"].append({"id": "log", "path": "fedfms.files.replace_folder", "args": {}}))


def _is_large(job: Path) -> None:
    (job / "app" / "more.bin").write_bytes(bytes(17_000_000))


def _asks_for_another_root(job: Path) -> None:
    path = job / "app" / "config" / "config_fed_client.json"
    _edit(path, lambda c: c["executors"][0]["executor"]["args"]["study"]["data"].update(data_root="/etc"))


def _asks_for_another_scope(job: Path) -> None:
    _edit(job / "meta.json", lambda meta: meta.update(scope="public"))


@pytest.mark.parametrize(
    ("edit", "where", "reason"),
    [
        (_brings_code, "localhost", "site-2: NVFLARE_ERROR: BYOC not permitted"),
        (_names_another_class, "site-2", "'fedfms.files.replace_folder' at config path"),
        (_asks_for_another_root, "site-2", "data_root"),
        (_asks_for_another_scope, "localhost", "site-2: NVFLARE_ERROR: privacy scope 'public' is not allowed"),
        (_is_large, "localhost", "the job holds 17."),
    ],
)
def test_a_job_is_refused_with_the_reason(running: Running, out: Path, edit: Edit, where: str, reason: str) -> None:
    job = _other(out, edit.__name__, edit)
    with pytest.raises(ProvisioningError) as told:
        _run(job, running.kits[LEAD], out / "refused", max_mb=100)
    assert reason in _logs(running, where) + told.value.line()


def test_a_job_that_sends_more_than_the_site_allows_is_refused_there_and_the_audit_says_so(
    running: Running, out: Path
) -> None:
    job = build_job(_study("fedsam"), out.parent / "fedsam")
    with pytest.raises(ProvisioningError, match="0 updates accepted, 3 needed"):
        _run(job, running.kits[LEAD], out / "more")
    told = "the site's own policy lets no result leave in which there is a tensor that the site has not allowed"
    assert told in _logs(running, "site-2") and told in _logs(running, "localhost")
    audits = "".join(path.read_text() for path in running.kits["site-2"].rglob("audit.log"))
    assert "[A:fedfms.result_refused]" in audits and told in audits


def test_a_member_looks_and_does_not_submit(running: Running, out: Path) -> None:
    assert ask(running.kits[MEMBER], "system", "status")
    with pytest.raises(ProvisioningError, match="(?i)authoriz|permi"):
        _run(out.parent / "fedmsa", running.kits[MEMBER], out / "member")


def _starts_and_is_refused(running: Running, kit: Path, reason: str, where: str) -> None:
    running.kits["other"] = kit
    running.start("other")
    try:
        running.wait("it", lambda: reason in _logs(running, where) or not running.alive("other"), LIMIT_S, ["other"])
    finally:
        running.end("other")
    assert reason in _logs(running, where), _logs(running, "other")[-3000:] + _logs(running, "localhost")[-3000:]


def test_a_kit_of_another_root_is_refused(running: Running, tmp_path: Path) -> None:
    make(project_file(tmp_path / "project.yml"), tmp_path / "foreign", PASSPHRASE)
    kit = opened(tmp_path / "foreign", "site-1", tmp_path)
    shutil.copy(running.kits["site-1"] / "startup" / "fed_client.json", kit / "startup")
    _starts_and_is_refused(running, kit, "CERTIFICATE_VERIFY_FAILED", "other")


def test_a_certificate_of_another_name_is_refused(running: Running, tmp_path: Path) -> None:
    kit = Path(shutil.copytree(running.kits["site-2"] / "startup", tmp_path / "kit" / "startup")).parent
    shutil.copytree(running.kits["site-2"] / "local", kit / "local")
    for name in ("sub_start.sh", "fed_client.json"):
        path = kit / "startup" / name
        path.write_text(path.read_text().replace("site-2", "site-9"))
    _starts_and_is_refused(running, kit, "authenticated as 'site-2' but claimed endpoint 'site-9'", "localhost")


def test_a_blocked_serial_is_refused_at_once_and_its_replacement_works(running: Running, out: Path) -> None:
    deployment = Deployment(out / "federation")
    lost = running.kits["site-3"]
    _, (serial,) = deployment.replace("site-3", PASSPHRASE)
    assert serial == format(certificate(lost).serial_number, "x")
    running.end("site-3")
    put_blocked(deployment.folder / "blocked.json", running.kits["localhost"])
    running.start("site-3")
    told = f"the certificate {serial} of site-3 is blocked"
    running.wait("the refusal", lambda: told in _logs(running, "localhost"), LIMIT_S, ["site-3"])
    assert "[A:fedfms.certificate_blocked]" in (running.kits["localhost"] / "audit.log").read_text()
    running.end("site-3")
    running.kits["site-3"] = opened(deployment.folder, "site-3", out / "replaced")
    running.start("site-3")
    running.wait("the new kit", lambda: "Successfully registered" in running.log("site-3"), LIMIT_S)
