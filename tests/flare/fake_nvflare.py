"""A stand-in for the `nvflare` command: a separate process that gives scripted answers."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from fedfms.flare import nvflare_cli
from fedfms.flare.progress import KEY

ID = "0f9e8d7c-1111-2222-3333-444455556666"
_FAKE = """
import json, sys, time
from pathlib import Path

form, command = sys.argv[2], " ".join(sys.argv[3:5])
calls = Path("calls.txt")
with calls.open("a") as log:
    log.write(" ".join(sys.argv[3:]) + "\\n")
answers = json.loads(Path("answers.json").read_text())[command]
turn = sum(line.startswith(command) for line in calls.read_text().splitlines()) - 1
answer = answers[min(turn, len(answers) - 1)]
for line in answer if form == "jsonl" else [answer]:
    if "sleep" in line:
        time.sleep(line["sleep"])
    elif "until" in line:
        while not Path(line["until"]).exists():
            time.sleep(0.02)
    elif "copy" in line:
        source, target = (Path(name) for name in line["copy"])
        import shutil
        shutil.copytree(source, target, dirs_exist_ok=True)
        print(json.dumps({"status": "ok", "data": {}}), flush=True)
    else:
        print(json.dumps(line), flush=True)
sys.exit(1 if answer and isinstance(answer, dict) and answer.get("status") == "error" else 0)
"""


class Fake:
    """A kit with a scripted `nvflare`: each call of a command gets its next answer; the last answer repeats."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kit = folder / "kit"
        (self.kit / "startup").mkdir(parents=True)
        (self.kit / "startup" / "fed_admin.json").write_text("{}")
        script = folder / "fake.py"
        script.write_text(_FAKE)
        monkeypatch.setattr(nvflare_cli, "_command", lambda form: [sys.executable, str(script), "--format", form])
        self._answers: dict[str, list[Any]] = {
            "job submit": [ok(job_id=ID)], "job meta": [ok()], "job abort": [ok()],
            "job download": [error("JOB_NOT_FOUND")],
            "system status": [ok(clients=[{"client_name": "site-1"}])],
        }  # fmt: skip
        self._write()

    def answers(self, command: str, *turns: Any) -> None:
        """Set the answers of a command in order; for `job monitor`, each answer is a list of events."""
        self._answers[command] = list(turns)
        self._write()

    def calls(self, command: str = "") -> list[str]:
        """The calls so far, in order."""
        path = self.kit / "calls.txt"
        lines = path.read_text().splitlines() if path.is_file() else []
        return [line for line in lines if line.startswith(command)]

    def _write(self) -> None:
        (self.kit / "answers.json").write_text(json.dumps(self._answers))


def ok(**data: Any) -> dict[str, Any]:
    """A successful reply of `nvflare --format json`."""
    return {"schema_version": "1", "status": "ok", "exit_code": 0, "data": data}


def error(code: str, message: str = "rejected") -> dict[str, Any]:
    """A reply or last event that reports an error."""
    return {"status": "error", "exit_code": 1, "error_code": code, "message": message, "event": "terminal",
            "terminal": True}  # fmt: skip


def runs(*rows: dict[str, Any], **of: Any) -> dict[str, Any]:
    """An event of a running job, with the rounds that its recorder reports."""
    progress = {"planned": 3, "sites": ["site-1", "site-2"], "held_out": [], "rows": list(rows)} | of
    return state("RUNNING", metrics={"round": 0, KEY: json.dumps(progress)})


def state(status: str, **more: Any) -> dict[str, Any]:
    """An event that reports a job's state."""
    ended = status.startswith("FINISHED:")
    return {"event": "terminal" if ended else "progress", "job_status": status, "terminal": ended} | more


def row(round_: int, site: str, **more: Any) -> dict[str, Any]:
    """A row as the recorder reports it, by default of an accepted update."""
    return {
        "round": round_, "site": site, "accepted": True, "held_out": False, "reason": "", "dice": 0.5, "seconds": 9.0,
        "bytes_up": 1_000_000, "bytes_down": 2_000_000, "samples": 10, "train_loss": 1.0,
    } | more  # fmt: skip
