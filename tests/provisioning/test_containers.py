"""`nvflare deploy prepare` for Docker and Kubernetes: where the private key is, and that the policy is preserved.

No daemon or cluster is needed: NVFLARE copies the kit and replaces its start scripts.
"""

import base64
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fedfms.flare.revocation import CertificateRevocation
from fedfms.provisioning.encryption import KIT_PLACEHOLDER
from fedfms.provisioning.policy import REVOKED, SERVER_CLASSES, SITE_CLASSES

from .make import LEAD, opened

pytestmark = pytest.mark.slow  # seconds each

RUNTIMES, KEYS = ("docker", "k8s"), {"localhost": "server.key", "site-1": "client.key"}
WORKSPACE = "/var/tmp/nvflare/workspace"  # the kit's folder in the container
CONFIG = {"docker": {"runtime": "docker"}, "k8s": {"runtime": "k8s", "namespace": "fedfms"}}


def _deploy(folder: Path, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nvflare.cli", "deploy", *arguments], cwd=folder, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False, umask=0o022, env=os.environ | {"PATH": path + os.environ["PATH"]},
    )  # fmt: skip


def _config(folder: Path, runtime: str) -> Path:
    path = folder / f"{runtime}.yaml"
    path.write_text(yaml.safe_dump(CONFIG[runtime] | {"parent": {"docker_image": "fedfms:0.1"}}))
    return path


@pytest.fixture(scope="module")
def prepared(federation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's and a site's kit (`kits/NAME`), prepared for both runtimes (`NAME-RUNTIME`) with umask 022."""
    folder = tmp_path_factory.mktemp("prepared")
    for name in KEYS:
        kit = opened(federation, name, folder / "kits")
        for runtime in RUNTIMES:
            config = _config(folder, runtime)
            done = _deploy(folder, "prepare", str(kit), "--config", str(config), "--output", f"{name}-{runtime}")
            assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", KEYS)
def test_the_key_is_in_one_file_that_only_the_owner_can_read(prepared: Path, name: str, runtime: str) -> None:
    made = prepared / f"{name}-{runtime}"
    key = made / "startup" / KEYS[name]
    assert stat.S_IMODE(made.stat().st_mode) == stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    lines = key.read_bytes().splitlines()[1:-1]
    holders = [path for path in made.rglob("*") if path.is_file() and any(one in path.read_bytes() for one in lines)]
    assert holders == [key]
    assert not list((made / "startup").glob("*start.sh"))  # scripts that start it as a process are removed


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("name", "classes"), [("localhost", SERVER_CLASSES), ("site-1", SITE_CLASSES)])
def test_the_policy_is_preserved(prepared: Path, name: str, classes: tuple[str, ...], runtime: str) -> None:
    """NVFLARE deletes `resources.json` and uses `resources.json.default`, which in its own kits is NVFLARE's."""
    local = prepared / f"{name}-{runtime}" / "local"
    assert not (local / "resources.json").exists()
    resources = json.loads((local / "resources.json.default").read_text())
    assert resources["class_list_enforcement_mode"] == "enforce"
    assert resources["class_allow_list"] == list(classes)
    assert resources["app_validator"]["path"] == "fedfms.flare.job_validator.JobValidator"
    assert f"{runtime}_launcher" in {one["id"] for one in resources["components"]}
    kit = prepared / "kits" / name / "local"
    for file in ("authorization.json", "privacy.json", "fedfms_site.yaml", REVOKED):
        assert (local / file).is_file() is (kit / file).is_file()
        assert not (kit / file).is_file() or (local / file).read_bytes() == (kit / file).read_bytes()
    if name == "site-1":
        assert resources["allow_log_streaming"] is False
    within = json.loads((local / "comm_config.json").read_text())["internal"]["resources"]
    assert within["connection_security"] == "mtls"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_server_that_cannot_find_its_revocation_list_does_not_start(prepared: Path, runtime: str) -> None:
    text = (prepared / f"localhost-{runtime}" / "local" / "resources.json.default").read_text()
    (own,) = [one for one in json.loads(text)["components"] if one["id"] == "revocation"]
    assert own["args"]["file"] == f"{KIT_PLACEHOLDER}/local/{REVOKED}"
    with pytest.raises(ValueError, match="cannot be read"):
        CertificateRevocation(**own["args"])
    placed = text.replace(KIT_PLACEHOLDER, WORKSPACE).replace(
        '"startup/', f'"{WORKSPACE}/startup/'
    )  # the runbook's `sed`
    assert f"{WORKSPACE}/startup/server.crt" in placed
    assert KIT_PLACEHOLDER not in placed and f"{WORKSPACE}/local/{REVOKED}" in placed
    assert f"{WORKSPACE}/jobs-storage" in placed and "/tmp/nvflare/jobs-storage" not in placed.replace(WORKSPACE, "")


def test_a_sites_container_opens_no_port_and_mounts_the_docker_socket(prepared: Path) -> None:
    site, server = ((prepared / f"{name}-docker" / "startup" / "start_docker.sh").read_text() for name in
                    ("site-1", "localhost"))  # fmt: skip
    assert "-p " not in site.split(" run --name ")[1] and " -p " in server.split(" run --name ")[1]
    for script in (site, server):  # the runbook warns: a process in the container is root on the host
        assert "dst=/var/run/docker.sock" in script


def test_in_kubernetes_the_key_is_in_a_secret_and_in_no_config_map(prepared: Path, tmp_path: Path) -> None:
    kit = Path(shutil.copytree(prepared / "site-1-k8s", tmp_path / "kit"))
    stand_in = tmp_path / "bin" / "kubectl"
    stand_in.parent.mkdir()
    stand_in.write_text(f"#!/bin/sh\necho --- >>{tmp_path}/applied\ncat >>{tmp_path}/applied\n")
    stand_in.chmod(0o700)
    done = _deploy(tmp_path, "k8s", "stage", str(kit), path=f"{stand_in.parent}{os.pathsep}")
    assert done.returncode == 0, done.stdout + done.stderr
    applied = {one["kind"]: one for one in yaml.safe_load_all((tmp_path / "applied").read_text())}
    assert set(applied) == {"ConfigMap", "Secret"}
    secret = [base64.b64decode(value) for value in applied["Secret"]["data"].values()]
    public = [base64.b64decode(value) for value in applied["ConfigMap"]["binaryData"].values()]
    key = (kit / "startup" / "client.key").read_bytes()
    assert key in secret and not any(b"PRIVATE KEY" in content for content in public)
    assert (kit / "local" / "fedfms_site.yaml").read_bytes() in public  # paths of the site, readable in the namespace


def test_a_persons_kit_is_rejected(federation: Path, tmp_path: Path) -> None:
    kit = opened(federation, LEAD, tmp_path)
    done = _deploy(tmp_path, "prepare", str(kit), "--config", str(_config(tmp_path, "docker")))
    assert done.returncode != 0 and not (kit / "prepared").exists()
