"""Run NVFLARE's command line in a subprocess, with umask 077 and without the passphrase in its environment.

NVFLARE is not imported here.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

from pydantic import AliasPath, ConfigDict, Field
from pydantic.dataclasses import dataclass

from fedfms.errors import ProvisioningError
from fedfms.schema import parse

PASSPHRASE_VARIABLE = "FEDFMS_PASSPHRASE"  # of kits and of the root key; see `provisioning`
MAX_JOB_MB = 16  # default limit of a site on the size of a job
TIMEOUT_S = 120.0
TIMEOUT = "TIMEOUT"
_UNREACHABLE = ("CONNECTION_FAILED", "INTERNAL_ERROR", TIMEOUT)
LENIENT = ConfigDict(extra="ignore", use_attribute_docstrings=True)  # NVFLARE's JSON has more keys than are used here


@dataclass(frozen=True, config=LENIENT)
class Reply:
    """The JSON that an `nvflare` command prints; most fields belong to one command each."""

    status: str | None = None
    error_code: str | None = None
    message: Any = None
    detail: Any = None
    job_id: str = Field(default="", validation_alias=AliasPath("data", "job_id"))
    clients: list[dict[str, Any]] | None = Field(default=None, validation_alias=AliasPath("data", "clients"))
    output_dir: str = Field(default="", validation_alias=AliasPath("data", "output_dir"))
    deployments: list[str] | None = Field(default=None, validation_alias=AliasPath("data", "job_deploy_detail"))
    """`SITE: OK` or `SITE: REASON`."""
    schedule: list[str] | None = Field(default=None, validation_alias=AliasPath("data", "schedule_history"))
    """`YYYY-MM-DD hh:mm:ss: REASON` for which a job was not started."""


@dataclass(frozen=True, config=LENIENT)
class Event:
    """One line of JSON from an `nvflare` command that streams events."""

    job_status: str | None = None
    metrics: dict[str, Any] | None = None
    terminal: bool = False
    error_code: str | None = None
    message: str | None = None


class NvflareError(ProvisioningError):
    """An `nvflare` command failed; `code` is NVFLARE's error code, or empty."""

    code = ""

    @property
    def unreachable(self) -> bool:
        """Whether the server did not answer, so that a later attempt may succeed."""
        return self.code in _UNREACHABLE


def clean_environment() -> dict[str, str]:
    """The environment for subprocesses, without the passphrase."""
    return {key: value for key, value in os.environ.items() if key != PASSPHRASE_VARIABLE}


def run_with_kit(kit: Path, *command: str, timeout_s: float = TIMEOUT_S) -> Reply:
    """Run an `nvflare` command with the startup kit of a lead or admin; see `run_nvflare`."""
    return run_nvflare(*command, "--startup-kit", str(kit), folder=kit, timeout_s=timeout_s)


def run_nvflare(*arguments: str, folder: Path, timeout_s: float = TIMEOUT_S) -> Reply:
    """Run `nvflare ARGUMENTS` in `folder`.

    Raises:
        NvflareError: the command failed, with NVFLARE's message, or timed out.
    """
    what = f"nvflare {' '.join(arguments[:2])}"
    try:
        done = subprocess.run(
            [*_command("json"), *arguments], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=timeout_s, check=False, umask=0o077, env=clean_environment(),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise _error(f"{what} timed out after {timeout_s:.0f} s", TIMEOUT, "check that the server runs") from None
    reply = parse(Reply, _json_object(done.stdout), NvflareError, where=what, machine_written=True)
    if done.returncode or reply.status == "error":
        message = str(reply.message or reply.detail or done.stderr.strip()[-300:] or done.returncode)
        # NVFLARE's messages name paths. They are shown on the terminal of the person who gave those paths.
        raise _error(f"{what} failed: {message.replace(str(folder), folder.name)}", reply.error_code or "")
    return reply


def stream_events(kit: Path, *command: str, timeout_s: float) -> Generator[Event, None, None]:
    """Yield the events of a streaming `nvflare` command; the last one is `terminal`.

    The process is killed when the caller closes the generator, and after `timeout_s`.
    """
    with subprocess.Popen(
        [*_command("jsonl"), *command, "--startup-kit", str(kit)], cwd=kit, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, umask=0o077, env=clean_environment(),
    ) as process:  # fmt: skip
        timer = threading.Timer(timeout_s, process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if printed := _json_object(line):
                    yield parse(Event, printed, NvflareError, where=" ".join(command[:2]), machine_written=True)
        finally:
            timer.cancel()
            process.kill()


def _command(output_format: str) -> list[str]:
    return [sys.executable, "-m", "nvflare.cli", "--format", output_format]


def _error(what: str, code: str, do: str = "") -> NvflareError:
    error = NvflareError(what, do=do)
    error.code = code
    return error


def _json_object(text: str) -> dict[str, Any]:
    """The first JSON object that starts a line and extends to the end of `text`; empty if there is none."""
    for start in (i for i, c in enumerate(text) if c == "{" and (i == 0 or text[i - 1] == "\n")):
        try:
            found = json.loads(text[start:])
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    return {}
