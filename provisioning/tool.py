"""NVFLARE's own command line, run so that nothing it writes is readable by others, and without our passphrase."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from fedfms.errors import ProvisioningError
from provisioning.secret import environment

LIMIT_S = 120


def nvflare(*arguments: str, folder: Path, limit_s: float = LIMIT_S) -> dict[str, Any]:
    """Run `nvflare ARGUMENTS` in `folder` with the umask 077; returns what it answers as JSON.

    Raises:
        ProvisioningError: it failed, with its own words, or did not end in time.
    """
    command = [sys.executable, "-m", "nvflare.cli", "--format", "json", *arguments]
    what = f"nvflare {' '.join(arguments[:2])}"
    try:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit_s, check=False,
            umask=0o077, env=environment(),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ProvisioningError(f"{what} did not end in {limit_s:.0f} s", do="look whether the server runs") from None
    answer = _answer(done.stdout)
    if done.returncode or answer.get("status") == "error":
        # Its own words name the places it was given: they are for the terminal of the person who gave them.
        told = str(answer.get("message") or answer.get("detail") or done.stderr.strip()[-300:] or done.returncode)
        raise ProvisioningError(f"{what} failed: {told.replace(str(folder), folder.name)}")
    data = answer.get("data")
    return data if isinstance(data, dict) else answer


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
