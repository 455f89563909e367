"""Progress of a running job for people who may view it: counts, mean Dice, bytes, seconds, rejection reasons by round.

It travels in NVFLARE's statistics of a running job (`nvflare job stats`, `show_stats`), which the server answers
without asking a site. Values from sites are cleaned as in a report. It holds no scores of images and no file names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from nvflare.apis.fl_context import FLContext
from nvflare.widgets.info_collector import GroupInfoCollector, InfoCollector
from pydantic.dataclasses import dataclass

from fedfms.flare.nvflare_cli import LENIENT
from fedfms.methods import training_sites
from fedfms.reporting.records import ENDED, clean_reason
from fedfms.reporting.scores import clean_number, clean_scores
from fedfms.study import Study

STATS_REQUESTED = InfoCollector.EVENT_TYPE_GET_STATS
GROUP, KEY = "fedfms", "fedfms_rounds"  # of NVFLARE's statistics; the value is `Snapshot` as JSON
MAX_ROWS = 400  # the newest ones, about 100 kB; the run's records have all
ENDED_FILE = f"fedfms/{ENDED}"  # {"reason"} of a run that the server ended early
Number = int | float | None
_NUMBERS = ("samples", "train_loss", "seconds", "bytes_up", "bytes_down")


@dataclass(frozen=True, config=LENIENT)
class SiteRow:
    """A site in a round, with one number for its scores."""

    round: int
    site: str
    accepted: bool
    held_out: bool
    reason: str
    dice: Number
    """Mean Dice of the model that the site received."""
    samples: Number
    train_loss: Number
    seconds: Number
    bytes_up: Number
    bytes_down: Number

    @classmethod
    def from_record(cls, row: Mapping[str, Any], structures: Sequence[str]) -> SiteRow:
        """The summary of a row of `rounds.jsonl`."""
        scores = clean_scores(row.get("scores"), structures)
        return cls(
            int(row["round"]), str(row["site"]), bool(row["accepted"]), bool(row.get("held_out")),
            clean_reason(row.get("reason")), None if scores is None else scores["dice"],
            **{key: clean_number(row.get(key)) for key in _NUMBERS},
        )  # fmt: skip


@dataclass(frozen=True, config=LENIENT)
class Snapshot:
    """Planned number of rounds, sites that the study names, and the newest rows."""

    planned: int | None = None
    sites: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    rows: tuple[SiteRow, ...] = ()


class Progress:
    """The newest rounds of a run, limited in size."""

    def __init__(self) -> None:
        self._plan = Snapshot()
        self._rounds: dict[int, list[SiteRow]] = {}
        self._structures: Sequence[str] = ()

    def start(self, study: Study) -> None:
        """Set the plan: rounds and sites of the study."""
        self._structures = study.structure_names
        self._plan = Snapshot(study.train.rounds, training_sites(study), study.held_out)

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows of `rounds.jsonl`."""
        rounds = {number: list(known) for number, known in self._rounds.items()}
        for row in rows:
            rounds.setdefault(int(row["round"]), []).append(SiteRow.from_record(row, self._structures))
        while len(rounds) > 1 and sum(map(len, rounds.values())) > MAX_ROWS:
            del rounds[min(rounds)]
        self._rounds = rounds  # in one step: another thread may read it

    def add_to_stats(self, fl_ctx: FLContext) -> None:
        """Answer NVFLARE's request for statistics."""
        collector = fl_ctx.get_prop(InfoCollector.CTX_KEY_STATS_COLLECTOR)
        if isinstance(collector, GroupInfoCollector) and self._plan.planned is not None:
            text = json.dumps(asdict(self.snapshot()), allow_nan=False, separators=(",", ":"))
            collector.add_info(GROUP, {KEY: text})

    def snapshot(self) -> Snapshot:
        """The plan and the newest rows, sorted by round."""
        rounds = self._rounds
        return replace(self._plan, rows=tuple(row for number in sorted(rounds) for row in rounds[number]))
