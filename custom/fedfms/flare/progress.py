"""A run's rounds as the people who may look at it see them while it runs: counts, means, bytes, seconds and reasons.

It goes the way of NVFLARE's own statistics of a running job (`nvflare job stats`, `show_stats`): who may view a job may
see it, and no site is asked. What sites told is cleaned as in a report; no image's score and no name of a file is here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nvflare.apis.fl_context import FLContext
from nvflare.widgets.info_collector import GroupInfoCollector, InfoCollector

from fedfms.methods import training_sites
from fedfms.reporting.records import ENDED, clean_reason
from fedfms.reporting.scores import clean_number, clean_scores
from fedfms.study import Study

ASKED = InfoCollector.EVENT_TYPE_GET_STATS
GROUP, KEY = "fedfms", "fedfms_rounds"  # where it stands in NVFLARE's answer, as JSON in a text
MAX_ROWS = 400  # the newest: an answer of 100 kB or so; all are in the run's records
ENDED_FILE = f"fedfms/{ENDED}"  # of a run that the server gave up: {"reason"}
_NUMBERS = ("samples", "train_loss", "seconds", "bytes_up", "bytes_down")


class Progress:
    """The newest rounds of a run, kept small."""

    def __init__(self) -> None:
        self._of: dict[str, Any] = {}
        self._rounds: dict[int, list[dict[str, Any]]] = {}
        self._structures: Sequence[str] = ()

    def start(self, study: Study) -> None:
        """What is to come: rounds, and the sites that the study names."""
        self._structures = study.structure_names
        self._of = {
            "planned": study.train.rounds,
            "sites": list(training_sites(study)),
            "held_out": list(study.held_out),
        }

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows of one round or more, as the recorder writes them."""
        rounds = {number: list(known) for number, known in self._rounds.items()}
        for row in rows:
            rounds.setdefault(int(row["round"]), []).append(brief(row, self._structures))
        while len(rounds) > 1 and sum(map(len, rounds.values())) > MAX_ROWS:
            del rounds[min(rounds)]
        self._rounds = rounds  # at once: another thread may be asked for it

    def tell(self, fl_ctx: FLContext) -> None:
        """Answer NVFLARE's question for statistics."""
        collector = fl_ctx.get_prop(InfoCollector.CTX_KEY_STATS_COLLECTOR)
        if isinstance(collector, GroupInfoCollector) and self._of:
            collector.add_info(GROUP, {KEY: json.dumps(self.content(), allow_nan=False, separators=(",", ":"))})

    def content(self) -> dict[str, Any]:
        """{"planned" rounds, "sites", "held_out", "rows" (as `brief` makes them)}."""
        rounds = self._rounds
        return self._of | {"rows": [row for number in sorted(rounds) for row in rounds[number]]}


def brief(row: Mapping[str, Any], structures: Sequence[str]) -> dict[str, Any]:
    """A row of a round and site with one number for its scores: the mean Dice of the model that the site received."""
    scores = clean_scores(row.get("scores"), structures)
    return {
        "round": int(row["round"]),
        "site": str(row["site"]),
        "accepted": bool(row["accepted"]),
        "held_out": bool(row.get("held_out")),
        "reason": clean_reason(row.get("reason")),
        "dice": None if scores is None else scores["dice"],
        **{key: clean_number(row.get(key)) for key in _NUMBERS},
    }
