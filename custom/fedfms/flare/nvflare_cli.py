"""NVFLARE's own command line, run so that nothing it writes is readable by others, and without our passphrase.

Nothing here imports NVFLARE: it runs in a process of its own, and ours survives whatever happens to that.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

from fedfms.errors import ProvisioningError

PASSPHRASE = "FEDFMS_PASSPHRASE"  # of kits and the root's key; see `provisioning`
MAX_JOB_MB = 16  # of a job: what sites take, where their policy does not say otherwise
LIMIT_S = 120.0
TIMEOUT = "TIMEOUT"
_UNREACHED = ("CONNECTION_FAILED", "INTERNAL_ERROR", TIMEOUT)


class ConsoleError(ProvisioningError):
    """A command of NVFLARE's failed; `code` is NVFLARE's own name for the fault, or empty."""

    code = ""

    @property
    def unreached(self) -> bool:
        """Whether the server was not reached, or not in time: it may be, the next time."""
        return self.code in _UNREACHED


def environment() -> dict[str, str]:
    """The environment without the passphrase: for processes that are started, which have no need of it."""
    return {key: value for key, value in os.environ.items() if key != PASSPHRASE}


def ask(kit: Path, *command: str, limit_s: float = LIMIT_S) -> dict[str, Any]:
    """An `nvflare` command with a person's kit; see `nvflare`."""
    return nvflare(*command, "--startup-kit", str(kit), folder=kit, limit_s=limit_s)


def nvflare(*arguments: str, folder: Path, limit_s: float = LIMIT_S) -> dict[str, Any]:
    """Run `nvflare ARGUMENTS` in `folder` with the umask 077; returns what it answers as JSON.

    Raises:
        ConsoleError: it failed, with its own words, or did not end in time.
    """
    command = [*_nvflare("json"), *arguments]
    what = f"nvflare {' '.join(arguments[:2])}"
    try:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit_s, check=False,
            umask=0o077, env=environment(),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise _failed(f"{what} did not end in {limit_s:.0f} s", TIMEOUT, "look whether the server runs") from None
    answer = _answer(done.stdout)
    if done.returncode or answer.get("status") == "error":
        # Its own words name the places it was given: they are for the terminal of the person who gave them.
        told = str(answer.get("message") or answer.get("detail") or done.stderr.strip()[-300:] or done.returncode)
        raise _failed(f"{what} failed: {told.replace(str(folder), folder.name)}", str(answer.get("error_code") or ""))
    data = answer.get("data")
    return data if isinstance(data, dict) else answer


def follow(kit: Path, *command: str, limit_s: float) -> Generator[dict[str, Any], None, None]:
    """What an `nvflare` command that goes on tells, an event a line, as it comes; its last has "terminal": true.

    The process is ended when the caller has seen enough, and after `limit_s`.
    """
    with subprocess.Popen(
        [*_nvflare("jsonl"), *command, "--startup-kit", str(kit)], cwd=kit, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, umask=0o077, env=environment(),
    ) as process:  # fmt: skip
        timer = threading.Timer(limit_s, process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if found := _answer(line):
                    yield found
        finally:
            timer.cancel()
            process.kill()


def _nvflare(form: str) -> list[str]:
    return [sys.executable, "-m", "nvflare.cli", "--format", form]


def _failed(what: str, code: str, do: str = "") -> ConsoleError:
    error = ConsoleError(what, do=do)
    error.code = code
    return error


def _answer(text: str) -> dict[str, Any]:
    """The last JSON object of what was printed; empty where there is none."""
    for start in (i for i, c in enumerate(text) if c == "{" and (i == 0 or text[i - 1] == "\n")):
        try:
            found = json.loads(text[start:])
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    return {}
