"""A federation's kits: what is in them, who reads them, and what one command changes."""

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from fedfms import cli
from fedfms.errors import ProvisioningError
from fedfms.flare.kit import LIST_FILE, changed_files, kit_fingerprint, load_certificate
from fedfms.provisioning.deployment import Deployment, create_federation
from fedfms.provisioning.encryption import decrypt, encrypt, pack
from fedfms.provisioning.kit import open_kit
from fedfms.provisioning.passphrase import PASSPHRASE_VARIABLE
from fedfms.provisioning.project import load_project

from .make import ADMIN, LEAD, PASSPHRASE, REPO, SITES, opened, project_file, umask

pytestmark = pytest.mark.slow  # NVFLARE takes seconds to make kits


def main(command: list[str]) -> int:
    """`fedfms kits`."""
    return cli.main(["kits", *command])


def _digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*") if path.is_file()
    }  # fmt: skip


def _exposed(folder: Path) -> list[str]:
    return [path.name for path in [folder, *folder.rglob("*")] if stat.S_IMODE(path.lstat().st_mode) & 0o077]


@pytest.fixture
def copy(federation: Path, tmp_path: Path) -> Path:
    """The federation, to change."""
    return Path(shutil.copytree(federation, tmp_path / "fed"))


def test_nothing_is_readable_by_others_with_umask_0(federation: Path, tmp_path: Path) -> None:
    assert _exposed(federation) == []
    with umask(0):
        assert _exposed(opened(federation, "site-1", tmp_path)) == []


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_nothing_is_readable_by_others_with_any_umask(mask: int, tmp_path: Path) -> None:
    with umask(mask):
        create_federation(project_file(tmp_path / "project.yml"), tmp_path / "fed", PASSPHRASE)
    assert _exposed(tmp_path / "fed") == []


def test_the_root_key_is_in_no_kit_and_nowhere_unencrypted(federation: Path, tmp_path: Path) -> None:
    root = json.loads(decrypt((federation / "ca.sealed").read_bytes(), PASSPHRASE))
    key = serialization.load_pem_private_key(root["root_pri_key"].encode(), password=None)
    secret = "".join(root["root_pri_key"].splitlines()[1:-1])
    number = str(key.private_numbers().p)  # type: ignore[union-attr]
    names = {one.name for one in Deployment(federation).issued}
    for name in names:
        opened(federation, name, tmp_path)
    assert len(list(tmp_path.glob("*/startup/rootCA.pem"))) == len(names) == 7
    for path in [*tmp_path.rglob("*"), *federation.rglob("*")]:
        if path.is_file():
            text = path.read_bytes().decode("latin-1")
            assert secret[40:120] not in "".join(text.split()) and number not in text, path.name
    assert [path.name for path in federation.rglob("*") if path.suffix in (".key", ".pem")] == ["rootCA.pem"]


def test_each_kit_has_its_own_passphrase(federation: Path, tmp_path: Path) -> None:
    secrets = [path.read_text().strip() for path in (federation / "passphrases").iterdir()]
    assert len(set(secrets)) == 7
    other = (federation / "passphrases" / "site-2.txt").read_text().strip()
    with pytest.raises(ProvisioningError, match="passphrase is wrong"):
        open_kit(federation / "kits" / "site-1.kit", tmp_path / "kit", other)


def test_the_fingerprint_is_in_the_leads_list(federation: Path, tmp_path: Path) -> None:
    lines = (federation / "fingerprints.txt").read_text().splitlines()
    fingerprints = dict(reversed(line.split("  ")) for line in lines)
    kit = opened(federation, "site-1", tmp_path)
    assert kit_fingerprint(kit) == fingerprints["site-1"]
    assert len(fingerprints["site-1"]) == 29
    assert len(set(fingerprints.values())) == 7


@pytest.mark.parametrize("name", ["site-1", LEAD])
def test_coreutils_can_compare_an_opened_kit_with_its_file_list(name: str, federation: Path, tmp_path: Path) -> None:
    runbook = (REPO / "provisioning" / "RUNBOOK.md").read_text()
    (command,) = re.findall(r"^\(cd /srv/fedfms/kit && (sha256sum .*?)\)", runbook, re.M)
    kit = opened(federation, name, tmp_path)
    done = subprocess.run(shlex.split(command), cwd=kit, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": OK\n") == sum(path.is_file() for path in kit.rglob("*")) - 1  # without the list itself
    with (kit / "startup" / "rootCA.pem").open("a") as file:
        file.write("x")
    assert subprocess.run(shlex.split(command), cwd=kit, capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize("content", [b"not a list\n", b"\xff\xfe", b"\n"])
def test_a_damaged_file_list_is_a_one_line_error(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / LIST_FILE).write_bytes(content)
    assert main(["verify", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.endswith("the kit's file list is damaged; open the encrypted kit again\n") and error.count("\n") == 1


def test_changes_in_a_kit_are_listed(federation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kit = opened(federation, "site-1", tmp_path)
    assert changed_files(kit) == ([], [])
    assert main(["verify", str(kit)]) == 0
    (kit / "local" / "fedfms_site.yaml").write_text("device: cpu\n")
    assert main(["verify", str(kit)]) == 0
    assert "changed by the site, which is allowed: local/fedfms_site.yaml" in capsys.readouterr().out
    (kit / "startup" / "sub_start.sh").write_text("#!/bin/sh\n")
    (kit / "startup" / "more.py").write_text("")
    assert main(["verify", str(kit)]) == 1
    assert "CHANGED: startup/more.py\nCHANGED: startup/sub_start.sh" in capsys.readouterr().out
    with (kit / LIST_FILE).open("a") as file:
        file.write(f"{hashlib.sha256(b'').hexdigest()}  startup/more.py\n")
    # A changed file list has another fingerprint.
    assert kit_fingerprint(kit) not in (federation / "fingerprints.txt").read_text()


def test_a_kit_encrypted_again_with_other_files_and_the_old_list_is_rejected(federation: Path, tmp_path: Path) -> None:
    """Anyone who knows the passphrase can make one, and its list's fingerprint would match the lead's."""
    kit = opened(federation, "site-1", tmp_path)
    for name in ("startup/sub_start.sh", "startup/more.py", "more.py", LIST_FILE):
        changed = Path(shutil.copytree(kit, tmp_path / "changed"))
        (changed / name).unlink(missing_ok=True)
        if name != LIST_FILE:
            (changed / name).write_text("#!/bin/sh\n")
        (tmp_path / "site-1.kit").write_bytes(encrypt(pack(changed), PASSPHRASE))
        with pytest.raises(ProvisioningError, match="do not match the kit's file list"):
            open_kit(tmp_path / "site-1.kit", tmp_path / "opened", PASSPHRASE)
        assert not (tmp_path / "opened").exists()
        shutil.rmtree(changed)


def test_a_servers_stores_are_in_its_kit_not_in_a_folder_shared_by_all_servers(
    federation: Path, tmp_path: Path
) -> None:
    kit = opened(federation, "localhost", tmp_path)
    text = (kit / "local" / "resources.json").read_text()
    assert "/tmp/nvflare" not in text and "@KIT@" not in text
    assert f"{kit}/store/jobs" in text and f"{kit}/store/snapshots" in text
    assert f"{kit}/local/revoked_serials.json" in text


def test_add_renew_and_replace_change_neither_other_kits_nor_the_root(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE)
    before, kits = _digests(copy), tmp_path / "kits"
    old = {site: load_certificate(opened(copy, site, tmp_path / "old")) for site in SITES}
    assert main(["add", "site-4", "--org", "d", "--out", str(copy)]) == 0
    assert main(["renew", "site-1", "--out", str(copy)]) == 0
    server = opened(copy, "localhost", kits)
    assert main(["replace", "site-2", "--out", str(copy), "--server", str(server)]) == 0
    after = _digests(copy)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {
        *(f"kits/site-{n}.kit" for n in (1, 2, 4)), *(f"passphrases/site-{n}.txt" for n in (1, 2, 4)),
        "fingerprints.txt", "issued.jsonl", "project.yml", "revoked.json",
    }  # fmt: skip
    assert not before.keys() - after.keys()
    root = x509.load_pem_x509_certificate((copy / "rootCA.pem").read_bytes())
    for site in ("site-1", "site-2", "site-4"):
        new = load_certificate(opened(copy, site, kits))
        new.verify_directly_issued_by(root)
        assert (kits / site / "startup" / "rootCA.pem").read_bytes() == (copy / "rootCA.pem").read_bytes()
        if site in old:
            assert new.serial_number != old[site].serial_number
            assert new.public_key() != old[site].public_key()
            assert new.subject == old[site].subject
    serial = format(old["site-2"].serial_number, "x")
    listed = {"serials": {serial: "site-2"}}
    assert json.loads((server / "local" / "revoked_serials.json").read_text()) == listed
    assert json.loads((copy / "revoked.json").read_text()) == listed
    states = [(one.name, one.state) for one in Deployment(copy).issued if one.name in ("site-1", "site-2", "site-4")]
    assert states == [
        ("site-1", "renewed"), ("site-2", "revoked"),
        ("site-4", "current"), ("site-1", "current"), ("site-2", "current"),
    ]  # fmt: skip
    assert "site-4" in {one["name"] for one in yaml.safe_load((copy / "project.yml").read_text())["participants"]}
    capsys.readouterr()


def test_a_servers_new_kit_has_the_revocation_list_of_the_old_one(copy: Path, tmp_path: Path) -> None:
    deployment = Deployment(copy)
    serial = deployment.revoke("site-3")
    deployment.renew("localhost", PASSPHRASE)
    kit = opened(copy, "localhost", tmp_path)
    assert json.loads((kit / "local" / "revoked_serials.json").read_text()) == {"serials": {serial: "site-3"}}


@pytest.mark.parametrize("command", ["replace", "revoke"])
def test_a_folder_that_is_not_a_servers_kit_is_an_error_before_anything_changes(
    command: str, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE)
    before = _digests(copy)
    assert main([command, "site-2", "--out", str(copy), "--server", str(tmp_path)]) == 1
    assert "this is not a server's kit of this package" in capsys.readouterr().err
    assert _digests(copy) == before


def test_a_wrong_passphrase_changes_nothing(copy: Path) -> None:
    before = _digests(copy)
    with pytest.raises(ProvisioningError, match="passphrase is wrong"):
        Deployment(copy).renew("site-1", "another passphrase")
    assert _digests(copy) == before


def test_a_failure_of_nvflare_leaves_no_key(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _digests(copy)

    def fails(*_: str, folder: Path) -> None:
        raise ProvisioningError("nvflare provision failed")

    monkeypatch.setattr("fedfms.provisioning.deployment.run_nvflare", fails)
    with pytest.raises(ProvisioningError):
        Deployment(copy).renew("site-1", PASSPHRASE)
    assert _digests(copy) == before
    assert not [path for path in copy.iterdir() if path.name.startswith(".work")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_end_leaves_no_key(number: signal.Signals, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE)
    before, seen = _digests(copy), list[str]()

    def interrupted(*_: str, folder: Path) -> None:
        seen.extend(path.name for path in folder.rglob("cert.json") if "root_pri_key" in path.read_text())
        os.kill(os.getpid(), number)

    monkeypatch.setattr("fedfms.provisioning.deployment.run_nvflare", interrupted)
    assert main(["renew", "site-1", "--out", str(copy)]) == 130
    assert seen == ["cert.json"]
    assert _digests(copy) == before
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_next_command_removes_the_key_of_a_killed_one_and_locks_out_others(copy: Path) -> None:
    (copy / ".work.killed").mkdir()
    (copy / ".work.killed" / "cert.json").write_text("a key")
    with Deployment(copy).root_key(PASSPHRASE) as work:
        assert not (copy / ".work.killed").exists()
        with pytest.raises(ProvisioningError, match="another command"), Deployment(copy).root_key(PASSPHRASE):
            pass
        assert (work / "cert.json").is_file()
    with Deployment(copy).root_key(PASSPHRASE):
        pass
    assert not list(copy.glob(".work*"))


@pytest.mark.parametrize("left, expected", [(31, 0), (29, 1), (-1, 1)])
def test_expiry_lists_who_must_renew(left: int, expected: int, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expires = (datetime.now(timezone.utc) + timedelta(days=left, hours=1)).isoformat(timespec="seconds")
    lines = [json.loads(line) for line in (copy / "issued.jsonl").read_text().splitlines()]
    lines = [line | {"expires": expires} if line["name"] == LEAD else line for line in lines]
    (copy / "issued.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["expiry", "--out", str(copy)]) == expected
    out = capsys.readouterr().out
    assert (f"{left} renew now" in out) is bool(expected)
    assert ADMIN in out


def test_invalid_names_are_rejected(tmp_path: Path) -> None:
    for name, fault in (("../site", "a name must"), ("site-2", "duplicate names"), ("a b", "a name must")):
        path = project_file(tmp_path / "project.yml")
        content = yaml.safe_load(path.read_text())
        content["participants"][1]["name"] = name
        path.write_text(yaml.safe_dump(content))
        with pytest.raises(ProvisioningError, match=fault):
            create_federation(path, tmp_path / "fed", PASSPHRASE)
    assert not (tmp_path / "fed").exists()


@pytest.mark.parametrize(
    ("section", "fault"),
    [
        (3, "fedfms: expected mapping"), (["jobs"], "fedfms: expected mapping"), ({3: 4, "x": 5}, "unknown key '3'"),
        ({"jobs": None}, "fedfms.jobs: expected list"), ({"jobs": [3]}, "fedfms.jobs.0: expected str"),
        ({"jobs": "src/x"}, "fedfms.jobs: expected list"), ({"max_job_mb": "16"}, "max_job_mb: expected int"),
        ({"max_job_mb": 0}, "fedfms.max_job_mb is 0; it must be 1 or more"), ({"job": []}, "did you mean 'jobs'"),
    ],
)  # fmt: skip
def test_an_invalid_section_is_rejected(section: object, fault: str, tmp_path: Path) -> None:
    path = project_file(tmp_path / "project.yml")
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"fedfms": section}))
    with pytest.raises(ProvisioningError, match=fault):
        load_project(path)


def test_the_template_is_a_valid_project(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["template"]) == 0
    (tmp_path / "project.yml").write_text(capsys.readouterr().out)
    project = load_project(tmp_path / "project.yml")
    assert project.server.fed_learn_port != 8002
    assert {one.role for one in project.participants} >= {"project_admin", "lead", "org_admin"}
