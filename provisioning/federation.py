"""Run a real federation on this machine: a server and its sites as separate processes, with mutual TLS on loopback.

    fedfms kits federation --job JOB [--job JOB ...] --out DIR

All waiting is by polling. Each started process has a mark in its environment and passes it on to its children; only
processes with that mark are terminated.
"""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml
from pydantic import AliasPath, Field
from pydantic.dataclasses import dataclass

from fedfms.errors import ProvisioningError
from fedfms.files import write_atomic
from fedfms.flare.nvflare_cli import LENIENT, clean_environment, run_with_kit
from fedfms.flare.preflight import Context, Row, failed, preflight
from fedfms.flare.preflight.context import read_config
from fedfms.flare.preflight.job import JobDescription
from fedfms.flare.submit import registered_sites, submit_job, watch_job
from fedfms.provisioning.deployment import create_federation
from fedfms.provisioning.kit import SUFFIX, open_kit
from fedfms.provisioning.passphrase import generate_passphrase

Show = Callable[[str, str, list[Row]], object]  # (site, job, rows of its preflight)
POLL_S = 0.5
ADMIN, LEAD = "admin@lead.example", "lead@lead.example"
_SERVER = "localhost"
_MARK = "FEDFMS_FEDERATION"  # environment variable of started processes
_GRACE_S, _STOP_POLL_S = 10.0, 0.1


def free_port() -> int:
    """A free TCP port on loopback."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def local_project(sites: Sequence[str], jobs: Sequence[Path], admins: Mapping[str, str]) -> dict[str, Any]:
    """The content of a project file for this machine: a server on a free port, sites, and people with their roles."""
    port = free_port()
    server = {"name": _SERVER, "type": "server", "org": "lead", "fed_learn_port": port, "admin_port": port}
    clients = [{"name": site, "type": "client", "org": f"org_{index}"} for index, site in enumerate(sites)]
    people = [{"name": name, "type": "admin", "org": "lead", "role": role} for name, role in admins.items()]
    options = {"jobs": [str(job.resolve()) for job in jobs]}
    return {"api_version": 3, "name": "local", "participants": [server, *clients, *people], "fedfms": options}


class LocalFederation:
    """Processes of opened kits. Call `stop` at the end, or use it as a context manager."""

    def __init__(self, kits: Mapping[str, Path], environment: Mapping[str, str] | None = None) -> None:
        self.kits = dict(kits)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # kits' scripts call `python3`
        self._environment = {**clean_environment(), "PATH": path, **(environment or {})}
        self._mark = uuid.uuid4().hex
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> LocalFederation:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str) -> None:
        """Start a server or site; its output goes to `console.log` in its kit."""
        kit = self.kits[name]
        with os.fdopen(os.open(kit / "console.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
            self._processes[name] = subprocess.Popen(
                ["bash", str(kit / "startup" / "sub_start.sh"), "--once"],
                cwd=kit, env=self._environment | {_MARK: f"{self._mark} {name}"}, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True, umask=0o077,
            )  # fmt: skip

    def log(self, name: str) -> str:
        """The output of a server or site."""
        path = self.kits[name] / "console.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

    def is_running(self, name: str) -> bool:
        """Whether the process of a server or site runs."""
        return name in self._processes and self._processes[name].poll() is None

    def stop(self, name: str = "") -> None:
        """Terminate a server or site with its jobs, or (by default) all processes."""
        self._terminate(name)
        for stopped in [name] if name else list(self._processes):
            self._processes.pop(stopped).wait()

    def _terminate(self, name: str) -> None:
        """Terminate processes by their mark: a job has its own session and outlives the process that started it."""
        start, signalled = time.monotonic(), set[psutil.Process]()
        while (found := self.marked(name)) and (elapsed := time.monotonic() - start) < 2 * _GRACE_S:
            for process in found:
                with suppress(psutil.Error):
                    if elapsed > _GRACE_S:
                        process.kill()
                    elif process not in signalled:  # once, so as not to interrupt an orderly shutdown
                        process.terminate()
            signalled.update(found)
            time.sleep(_STOP_POLL_S)

    def marked(self, name: str = "") -> list[psutil.Process]:
        """Running processes of a server or site (by default of all), including those that they started."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                mark, _, owner = process.environ().get(_MARK, "").partition(" ")
                if mark == self._mark and name in ("", owner) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def wait(self, what: str, ready: Callable[[], bool], timeout_s: float, may_end: Sequence[str] = ()) -> None:
        """Poll until `ready` is true.

        Raises:
            ProvisioningError: the timeout is over, or a process has ended that is not in `may_end`.
        """
        until = time.monotonic() + timeout_s
        while not ready():
            ended = [name for name in self._processes if not self.is_running(name) and name not in may_end]
            if ended:
                raise ProvisioningError(f"{', '.join(ended)} ended", where=what, do="see console.log in its kit")
            if time.monotonic() > until:
                what_failed = f"not ready within {timeout_s:.0f} s"
                raise ProvisioningError(what_failed, where=what, do="see console.log in the kits")
            time.sleep(POLL_S)

    def start_all(self, sites: Sequence[str], admin: str, timeout_s: float) -> None:
        """Start the server and the sites, and wait until all sites have registered."""
        self.start(_SERVER)
        port = _admin_port(self.kits[admin])
        self.wait("the server", lambda: _accepts_connections(port), timeout_s)
        for site in sites:
            self.start(site)
        self.wait("the sites", lambda: set(sites) <= set(registered_sites(self.kits[admin])), timeout_s)


@dataclass(frozen=True, config=LENIENT)
class _AdminConfig:
    """Of NVFLARE's `fed_admin.json`: the server's port."""

    port: int = Field(validation_alias=AliasPath("admin", "port"))


def _admin_port(kit: Path) -> int:
    name = "startup/fed_admin.json"
    return read_config(kit / name, _AdminConfig, where=name, do="name a person's opened kit").port


def _accepts_connections(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def prepare_kits(
    out: Path, sites: Sequence[str], jobs: Sequence[Path], admins: Mapping[str, str], passphrase: str = ""
) -> dict[str, Path]:
    """Create a federation of this machine in a new folder, and open its kits; returns their folders by name."""
    out.mkdir(parents=True, mode=0o700)
    write_atomic(out / "project.yml", yaml.safe_dump(local_project(sites, jobs, admins)), mode=0o600)
    federation, kits = out / "federation", out / "kits"
    made = create_federation(out / "project.yml", federation, passphrase or generate_passphrase())
    kits.mkdir(mode=0o700)
    for name in (one.name for one in made):
        secret = (federation / "passphrases" / f"{name}.txt").read_text(encoding="utf-8").strip()
        open_kit(federation / "kits" / f"{name}{SUFFIX}", kits / name, secret)
    return {one.name: kits / one.name for one in made}


def run_jobs(out: Path, jobs: Sequence[Path], timeout_s: float, show: Show = lambda *_: None) -> list[Path]:
    """Run jobs in a federation of this machine and stop it; returns the server's folder of each run.

    Args:
        show: receives the results of each site's preflight for each job.

    Raises:
        ProvisioningError: the federation cannot be created or does not start in time, a preflight fails, or a job does
            not complete.
    """
    sites = sorted({site for job in jobs for site in _sites(job)}) or ["site-1", "site-2", "site-3"]
    with LocalFederation(prepare_kits(out, sites, jobs, {ADMIN: "project_admin", LEAD: "lead"})) as running:
        running.start_all(sites, ADMIN, timeout_s)
        for job, site in itertools.product(jobs, sites):
            rows = list(preflight(Context(running.kits[site], job)))
            show(site, job.name, rows)
            if failed(rows):
                what = f"the preflight fails: {', '.join(failed(rows))}"
                raise ProvisioningError(what, where=site, do="see its rows")
        lead = running.kits[LEAD]
        ids = [submit_job(job, lead) for job in jobs]  # all at once: the server schedules them
        found = [watch_job(id_, lead, out, timeout_s=timeout_s).completed() for id_ in ids]
        run_with_kit(running.kits[ADMIN], "system", "shutdown", "all", "--force")
    return found


def _sites(job: Path) -> list[str]:
    """The sites that a job names."""
    found = read_config(job / "meta.json", JobDescription, where=job.name, do="name a job's folder").sites
    return [site for site in found if site not in ("server", "@ALL")]
