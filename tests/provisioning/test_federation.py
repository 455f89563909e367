"""A server and three sites as processes, with mutual TLS: what works, and what is rejected where."""

import json
import shutil
import socket
import ssl
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from fedfms.errors import ProvisioningError
from fedfms.federation.inprocess import rounds
from fedfms.flare.job import build_job
from fedfms.flare.kit import load_certificate
from fedfms.flare.nvflare_cli import run_with_kit
from fedfms.flare.submit import run_job
from fedfms.flare.watch import COMPLETED
from fedfms.provisioning.certificates import RootState
from fedfms.provisioning.deployment import Deployment, create_federation
from fedfms.provisioning.encryption import decrypt
from fedfms.provisioning.federation import LEAD, LocalFederation
from fedfms.provisioning.kit import revocation_list
from fedfms.settings import SiteSettings
from tests.simulator.common import assert_equal
from tests.simulator.spy import FILE

from .make import MEMBER, PASSPHRASE, SITES, opened, project_file
from .processes import TIMEOUT_S, edit_json, logs, small_study, submit_all

pytestmark = [pytest.mark.federation, pytest.mark.processes, pytest.mark.slow]

Edit = Callable[[Path], None]


def test_the_final_model_equals_the_in_process_run_and_only_shared_tensors_left(
    running: LocalFederation, out: Path
) -> None:
    run = _run(out.parent / "fedmsa", running.kits[LEAD], out / "plain")
    *_, last = rounds(small_study(), SITES, SiteSettings(), out / "reference")
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
    return run_job(job, kit, out, timeout_s=TIMEOUT_S, max_mb=max_mb).completed()


def test_rounds_are_printed_while_the_job_runs(running: LocalFederation, out: Path) -> None:
    study = small_study("fedmsa", "train.rounds=6")
    ids, lines = list[str](), list[str]()
    live: set[str] = set()

    def print_line(line: str) -> None:
        lines.append(line)
        if (running.kits["localhost"] / ids[-1]).is_dir():  # the server deletes it when the job has ended
            live.add(line)

    job = build_job(study, out.parent / "longer")
    kit, timeout_s = running.kits[LEAD], 2.0 * TIMEOUT_S
    result = run_job(job, kit, out / "longer", timeout_s=timeout_s, print_line=print_line, on_submit=ids.append)
    rounds = [line for line in lines if line.startswith("round")]
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
    edit_json(path, lambda c: c["components"].append({"id": "log", "path": "fedfms.files.replace_folder", "args": {}}))


def _is_large(job: Path) -> None:
    (job / "app" / "more.bin").write_bytes(bytes(17_000_000))


PLACES = {"site-1": {"data_root": "/etc"}, "site-2": {"dataset": "../other"}, "site-3": {"dataset": "/etc"}}


def _names_other_places(job: Path) -> None:
    """Each site gets an app of its own with another place."""
    for site, data in PLACES.items():
        shutil.copytree(job / "app", job / site)
        path = job / site / "config" / "config_fed_client.json"
        edit_json(path, lambda c, data=data: c["executors"][0]["executor"]["args"]["study"]["data"].update(data))
    places = {"app": ["server"], **{site: [site] for site in PLACES}}
    edit_json(job / "meta.json", lambda meta: meta.update(deploy_map=places))


def _deploys_from_above(job: Path) -> None:
    edit_json(job / "meta.json", lambda meta: meta.update(deploy_map={"../app": ["@ALL"]}))


def _deploys_from_an_absolute_path(job: Path) -> None:
    edit_json(job / "meta.json", lambda meta: meta.update(deploy_map={"/app": ["@ALL"]}))


def _asks_for_another_scope(job: Path) -> None:
    edit_json(job / "meta.json", lambda meta: meta.update(scope="public"))


REJECTED: list[tuple[Edit, str, str]] = [  # whose log has the reason, and the reason
    (_brings_code, "localhost", "site-2: NVFLARE_ERROR: BYOC not permitted"),
    (_names_another_class, "site-2", "'fedfms.files.replace_folder' at config path"),
    (_names_other_places, "site-1", "data_root"),
    (_names_other_places, "site-2", "'../other' is not a name"),
    (_names_other_places, "site-3", "'/etc' is not a name"),
    (_deploys_from_above, "localhost", "'../app'"),
    (_deploys_from_an_absolute_path, "localhost", "'/app'"),
    (_asks_for_another_scope, "localhost", "site-2: NVFLARE_ERROR: privacy scope 'public' is not allowed"),
    (_is_large, "localhost", "the job holds 17."),
]
BLOCKED = "the site's privacy filter blocks this result: a tensor is not on the site's allow-list"


def _name(edit: Edit) -> str:
    return edit.__name__.strip("_")  # NVFLARE rejects a job whose name starts with it


@pytest.fixture(scope="module")
def rejected(running: LocalFederation, out: Path) -> dict[str, str]:
    """Submit all jobs that are rejected; returns how they ended, by name."""
    edits = {_name(edit): edit for edit, *_ in REJECTED}
    jobs = {name: _other(out, name, edit) for name, edit in edits.items()}
    jobs["fedsam"] = build_job(small_study("fedsam"), out.parent / "fedsam")
    return submit_all(running, jobs, out / "rejected")


@pytest.mark.parametrize(("edit", "where", "reason"), REJECTED)
def test_a_job_is_rejected_with_the_reason(
    running: LocalFederation, rejected: dict[str, str], edit: Edit, where: str, reason: str
) -> None:
    assert "COMPLETED" not in rejected[_name(edit)]
    assert reason in logs(running, where) + rejected[_name(edit)]


def test_a_result_with_more_tensors_than_allowed_is_blocked_and_audited(
    running: LocalFederation, rejected: dict[str, str]
) -> None:
    assert "COMPLETED" not in rejected["fedsam"]
    assert BLOCKED in logs(running, "site-2") and BLOCKED in logs(running, "localhost")
    audits = "".join(path.read_text() for path in running.kits["site-2"].rglob("audit.log"))
    assert "[A:fedfms.result_rejected]" in audits and BLOCKED in audits


def test_a_member_can_view_but_not_submit(running: LocalFederation, out: Path) -> None:
    assert run_with_kit(running.kits[MEMBER], "system", "status")
    with pytest.raises(ProvisioningError, match="(?i)authoriz|permi"):
        _run(out.parent / "fedmsa", running.kits[MEMBER], out / "member")


def _assert_rejected(running: LocalFederation, kit: Path, reason: str, where: str) -> None:
    running.kits["other"] = kit
    running.start("other")
    try:
        running.wait(
            "the rejection", lambda: reason in logs(running, where) or not running.is_running("other"), TIMEOUT_S,
            ["other"],
        )  # fmt: skip
    finally:
        running.stop("other")
    assert reason in logs(running, where), logs(running, "other")[-3000:] + logs(running, "localhost")[-3000:]


def test_a_kit_of_another_root_is_rejected(running: LocalFederation, tmp_path: Path) -> None:
    create_federation(project_file(tmp_path / "project.yml"), tmp_path / "foreign", PASSPHRASE)
    kit = opened(tmp_path / "foreign", "site-1", tmp_path)
    shutil.copy(running.kits["site-1"] / "startup" / "fed_client.json", kit / "startup")
    _assert_rejected(running, kit, "CERTIFICATE_VERIFY_FAILED", "other")


def test_a_kit_under_another_name_is_rejected(running: LocalFederation, tmp_path: Path) -> None:
    kit = Path(shutil.copytree(running.kits["site-2"] / "startup", tmp_path / "kit" / "startup")).parent
    shutil.copytree(running.kits["site-2"] / "local", kit / "local")
    for name in ("sub_start.sh", "fed_client.json"):
        path = kit / "startup" / name
        path.write_text(path.read_text().replace("site-2", "site-9"))
    _assert_rejected(running, kit, "authenticated as 'site-2' but claimed endpoint 'site-9'", "localhost")


def _expired(own: x509.Certificate, root: RootState) -> bytes:
    """The certificate as if it had expired, signed by the federation's root."""
    now = datetime.now(timezone.utc)
    builder = x509.CertificateBuilder().subject_name(own.subject).issuer_name(own.issuer)
    builder = builder.public_key(own.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=360)).not_valid_after(now - timedelta(days=1))
    for extension in own.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    key = load_pem_private_key(root.root_pri_key.encode(), None)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)  # type: ignore[arg-type]


def _is_accepted(kit: Path, running: LocalFederation) -> bool:
    """Show the kit's certificate to the server: it waits for data, or closes (in TLS 1.3 after the handshake)."""
    startup = kit / "startup"
    context = ssl.create_default_context(cafile=startup / "rootCA.pem")
    context.load_cert_chain(startup / "client.crt", startup / "client.key")
    port = json.loads((running.kits[LEAD] / "startup" / "fed_admin.json").read_text())["admin"]["port"]
    plain = socket.create_connection(("127.0.0.1", port), timeout=10)
    try:
        with context.wrap_socket(plain, server_hostname="localhost") as connection:
            return bool(connection.recv(1))
    except TimeoutError:
        return True
    except ssl.SSLError:
        return False


def test_an_expired_certificate_is_rejected(running: LocalFederation, out: Path, tmp_path: Path) -> None:
    root = RootState(**json.loads(decrypt((out / "federation" / "ca.sealed").read_bytes(), PASSPHRASE)))
    kit = tmp_path / "kit"
    for part in ("startup", "local"):
        shutil.copytree(running.kits["site-2"] / part, kit / part)
    assert _is_accepted(kit, running)
    (kit / "startup" / "client.crt").write_bytes(_expired(load_certificate(kit), root))
    load_certificate(kit).verify_directly_issued_by(x509.load_pem_x509_certificate(root.root_cert.encode()))
    assert not _is_accepted(kit, running)
    _assert_rejected(running, kit, "fedfms: this kit's certificate expired on", "other")


def test_a_revoked_certificate_is_rejected_at_once_and_its_replacement_works(
    running: LocalFederation, out: Path
) -> None:
    deployment = Deployment(out / "federation")
    lost = running.kits["site-3"]
    _, (serial,) = deployment.replace("site-3", PASSPHRASE)
    assert serial == format(load_certificate(lost).serial_number, "x")
    running.stop("site-3")
    shutil.copy(deployment.folder / "revoked.json", revocation_list(running.kits["localhost"]))
    running.start("site-3")
    message = f"the certificate {serial} of site-3 is revoked"
    running.wait("the rejection", lambda: message in logs(running, "localhost"), TIMEOUT_S, ["site-3"])
    assert "[A:fedfms.certificate_revoked]" in (running.kits["localhost"] / "audit.log").read_text()
    running.stop("site-3")
    running.kits["site-3"] = opened(deployment.folder, "site-3", out / "replaced")
    shutil.copy(lost / "local" / "privacy.json", running.kits["site-3"] / "local")  # the site's own policy
    running.start("site-3")
    running.wait("the new kit", lambda: "Successfully registered" in running.log("site-3"), TIMEOUT_S)
