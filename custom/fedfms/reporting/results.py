"""From a run's records to the numbers of its report: plain dicts that a program can read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedfms.methods import POOL, required_updates, training_sites
from fedfms.reporting.records import Records
from fedfms.reporting.scores import METRICS, mean, modes_of
from fedfms.reporting.validity import objections
from fedfms.training.disclosure import MIN_CASES

FORMAT = 1
NO_ANSWER, NO_RECORD = "did not answer", "no record of this round"


def make_results(records: Records, overlays: Sequence[Path] = ()) -> dict[str, Any]:
    """Everything in the report; `results.json` is this. Units: bytes, seconds; scores in 0..1 or null.

    Scores are means over images at a site, then plain means over structures and over the sites that train. A run
    that was cut has no "final" model; "last" then is the newest model that sites received and scored.
    """
    study = records.study
    rounds = list(range(max((row["round"] for row in records.rounds), default=-1) + 1))
    accepted = Counter(row["round"] for row in records.rounds if row["accepted"])
    done = sum(count >= required_updates(study) for count in accepted.values())
    complete = "final" in records.models and done >= study.train.rounds
    participation = _participation(records, rounds)
    found = objections(study, done, complete=complete, participation=participation)
    models = dict(records.models)
    if "final" not in models and (last := _last(records)) is not None:
        models["last"] = last
    return {
        "format": FORMAT,
        "study": study.name,
        "title": study.title,
        "method": study.method,
        "method_options": dict(study.method_options),
        "backbone": study.model.backbone,
        "checkpoint": study.model.checkpoint,
        "seed": study.seed,
        "started": records.run.get("started"),
        "rounds": {"planned": study.train.rounds, "done": done},
        "resumed": records.run.get("resumed", []),
        "complete": complete,
        "valid": not found,
        "objections": found,
        "required_sites": list(study.federation.required_sites),
        "structures": list(study.structure_names),
        "parameters": records.run["parameters"],
        "model": records.run.get("model"),
        "versions": records.run["versions"],
        "participation": participation,
        "bytes": _bytes(records.rounds, rounds),
        "seconds": {
            site: sum(row["seconds"] or 0.0 for row in records.rounds if row["site"] == site)
            for site in _sites(records)
        },
        "before": _model(records, 0, _rows_of(records, 0)),
        "models": {name: _model(records, model["round"], model["sites"]) for name, model in models.items()},
        "curves": _curves(records, rounds),
        "mixing": records.mixing,
        "overlays": dict(sorted(Counter(path.parent.as_posix() for path in overlays).items())),
        "notes": [*records.notes, *_left_out(records.rounds)],
    }


def summary(scores: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Scores, as a site tells them, with means over structures: {mode: {"dice", "iou"}, "by_structure", "images",
    "min_cases", "empty"}.
    """
    if not scores:
        return None
    modes = modes_of([scores])
    out: dict[str, Any] = {
        mode: {metric: mean(row[metric] for row in scores[mode].values()) for metric in METRICS} for mode in modes
    }
    out |= {key: scores[key] for key in ("images", MIN_CASES)}
    out["empty"] = {name: row["empty"] for name, row in scores["standard"].items()}
    out["by_structure"] = {mode: scores[mode] for mode in modes}
    return out


def _sites(records: Records) -> list[str]:
    """All sites that were to train or to score, or that sent a row; held-out ones with them."""
    named = {*training_sites(records.study), *records.study.held_out}
    return sorted(named | {row["site"] for row in records.rounds} | (_scored(records) - set(records.study.sites)))


def _scored(records: Records) -> set[str]:
    """Sites of which a model's scores are told; where data are pooled, these are not those that train."""
    named = {*records.study.sites, *records.study.held_out}
    seen = {row["site"] for row in records.rounds} | {s for m in records.models.values() for s in m["sites"]}
    return (named | seen) - {POOL}


def _held_out(records: Records) -> set[str]:
    """By the study and the server's rows; where there are none of a site, by its own word."""
    rows = {row["site"]: row["held_out"] for row in records.rounds}
    own_word = {
        site
        for model in records.models.values()
        for site, entry in model["sites"].items()
        if entry["held_out"] and site not in rows and site not in records.study.sites
    }
    return {*records.study.held_out, *(site for site, held_out in rows.items() if held_out), *own_word}


def _rows_of(records: Records, round_: int) -> dict[str, dict[str, Any]]:
    return {row["site"]: row for row in records.rounds if row["round"] == round_}


def _last(records: Records) -> dict[str, Any] | None:
    """The newest global model of which any site has told scores: the one received in round r is of r rounds."""
    scored = [row["round"] for row in records.rounds if row["scores"] is not None]
    return {"round": max(scored), "sites": _rows_of(records, max(scored))} if scored else None


def _model(records: Records, round_: int, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Scores of one global model by site, their mean over the sites that train and over the held-out ones, and the
    mean that the same sites began with.
    """
    held_out = _held_out(records)
    sites: dict[str, dict[str, Any]] = {
        site: {
            "held_out": site in held_out,
            "part": rows.get(site, {}).get("part"),
            "scores": summary(rows.get(site, {}).get("scores")),
        }
        for site in sorted(_scored(records))
    }
    first = _rows_of(records, 0)
    means: dict[str, Any] = {}
    for key, kind in (("mean", False), ("mean_held_out", True)):
        of_kind = [site for site, entry in sites.items() if entry["held_out"] == kind]
        means[key] = _mean_of(records, [sites[site]["scores"] for site in of_kind])
        # A mean over other sites would be no start to compare with.
        scored = [site for site in of_kind if _told(sites[site]["scores"])]
        means[f"{key}_before"] = _mean_of(records, [summary(first.get(site, {}).get("scores")) for site in scored])
    return {"round": round_, "sites": sites, **means}


def _mean_of(records: Records, scores: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """Plain means over sites: {mode: {"dice", "iou"}, "by_structure", "scored" of "sites"}; of a mode, over the sites
    that have it.
    """
    known = [score for score in scores if score and _told(score)]
    means: dict[str, Any] = {}
    by_structure: dict[str, Any] = {}
    for mode in modes_of(known):
        having = [score for score in known if mode in score]
        means[mode] = {metric: mean(score[mode][metric] for score in having) for metric in METRICS}
        by_structure[mode] = {
            name: {metric: mean(score["by_structure"][mode][name][metric] for score in having) for metric in METRICS}
            for name in records.study.structure_names
        }
    return {**means, "by_structure": by_structure, "scored": len(known), "sites": len(scores)}


def _told(score: Mapping[str, Any] | None) -> bool:
    """Whether a site tells a number at all: of too few images it tells none."""
    return bool(score) and score["fedfms"]["dice"] is not None  # type: ignore[index]


def _participation(records: Records, rounds: Sequence[int]) -> dict[str, Any]:
    """Per site: the rounds whose global model holds its update, and why others do not; held-out sites apart."""
    held_out, recorded = _held_out(records), {row["round"] for row in records.rounds}
    out: dict[str, Any] = {}
    for site in _sites(records):
        rows = {row["round"]: row for row in records.rounds if row["site"] == site}
        took_part = [round_ for round_ in rounds if round_ in rows and rows[round_]["accepted"]]
        missed = {}
        for round_ in () if site in held_out else sorted(set(rounds) - set(took_part)):
            absent = NO_ANSWER if round_ in recorded else NO_RECORD
            missed[str(round_)] = (rows[round_]["reason"] or "no reason given") if round_ in rows else absent
        out[site] = {"held_out": site in held_out, "rounds": took_part, "missed": missed}
    return out


def _left_out(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each site that went on without damaged images."""
    most: dict[str, int] = {}
    for row in rows:
        most[row["site"]] = max(most.get(row["site"], 0), int(row["unreadable_images"] or 0))
    return [f"{site}: {count} damaged images were left out" for site, count in sorted(most.items()) if count]


def _bytes(rows: Iterable[Mapping[str, Any]], rounds: Sequence[int]) -> dict[str, Any]:
    """Payload of shared tensors, both directions as the sites see them (up: to the server), summed over sites."""
    by_round = [{"round": round_, "up": 0, "down": 0} for round_ in rounds]
    for row in rows:
        for way in ("up", "down"):
            by_round[row["round"]][way] += int(row[f"bytes_{way}"] or 0)
    up, down = (sum(row[way] for row in by_round) for way in ("up", "down"))
    return {"by_round": by_round, "up": up, "down": down, "total": up + down}


def _curves(records: Records, rounds: Sequence[int]) -> dict[str, Any]:
    """By site, all arrays as long as "rounds", the count of finished rounds: Dice of the global model after so many
    (0: before training), and the training loss of the last of them.
    """
    final, held_out = records.models.get("final"), _held_out(records)
    finished = [*rounds, len(rounds)] if rounds else []
    if final is not None and final["round"] not in finished:
        finished = sorted({*finished, final["round"]})
    scores = {(row["round"], row["site"]): row["scores"] for row in records.rounds}
    losses = {(row["round"] + 1, row["site"]): row["train_loss"] for row in records.rounds}
    for site, entry in (final["sites"] if final else {}).items():
        scores[final["round"] if final else 0, site] = entry["scores"]
    sites = {
        site: {
            "held_out": site in held_out,
            "dice": [(scores.get((count, site)) or {}).get("dice") for count in finished],
            "train_loss": [losses.get((count, site)) for count in finished],
        }
        for site in _sites(records)
    }
    trained = [site["dice"] for site in sites.values() if not site["held_out"]]
    return {"rounds": finished, "sites": sites, "mean_dice": [mean(column) for column in zip(*trained, strict=True)]}
