"""Compute the numbers of a run's report from its records: plain dicts, for programs."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedfms.methods import POOL, required_updates, training_sites
from fedfms.reporting.records import Records
from fedfms.reporting.scores import mean, modes_of
from fedfms.study import Study
from fedfms.training.disclosure import MIN_CASES
from fedfms.training.metrics import METRICS

FORMAT = 1
NO_ANSWER, NO_RECORD = "did not answer", "no record of this round"

Row = Mapping[str, Any]


def make_results(records: Records, overlays: Sequence[Path] = ()) -> dict[str, Any]:
    """The content of `results.json`. Units: bytes, seconds; scores in 0..1 or null.

    Scores are means over images at a site, then plain means over structures and over the training sites. An
    interrupted run has no "final" model; its "last" model is the newest one that sites received and scored.
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
        "notes": [*records.notes, *_unreadable_images(records.rounds)],
    }


def objections(study: Study, done: int, *, complete: bool, participation: Mapping[str, Any]) -> list[str]:
    """Why a run is not valid, one line per reason; empty if it is valid.

    A valid run is complete: every planned round has enough accepted updates, and the final model has been scored. Each
    of the study's required sites is in the last round, from which the final model comes, and in at least half of all
    planned rounds. A site may miss rounds in a valid run; the report's first line lists them.

    Args:
        done: rounds with enough updates.
        participation: {site: {"rounds" (from 0, with an accepted update), ...}}.
    """
    planned, found = study.train.rounds, []
    if not complete:
        found.append("there are no final scores" if done >= planned else f"only {done} of {planned} rounds are done")
    for site in study.federation.required_sites:
        # Pooled data are complete, or the pool does not train.
        rounds = participation.get(POOL if training_sites(study) == (POOL,) else site, {}).get("rounds", [])
        if 2 * len(rounds) < planned:
            found.append(f"required {site} took part in {len(rounds)} of {planned} rounds")
        elif planned - 1 not in rounds:
            found.append(f"required {site} was not in the last round, {planned - 1}")
    return found


def summary(scores: Row | None) -> dict[str, Any] | None:
    """A site's scores with means over structures: {mode: {"dice", "iou"}, "by_structure", "images", "min_cases",
    "empty"}.
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
    """All sites that the study expects to train or to score, or that sent a row."""
    named = {*training_sites(records.study), *records.study.held_out}
    return sorted(
        named | {row["site"] for row in records.rounds} | (_scoring_sites(records) - set(records.study.sites))
    )


def _scoring_sites(records: Records) -> set[str]:
    """Sites that may report scores. With pooled data, these are not the training sites."""
    named = {*records.study.sites, *records.study.held_out}
    seen = {row["site"] for row in records.rounds} | {site for m in records.models.values() for site in m["sites"]}
    return (named | seen) - {POOL}


def _held_out(records: Records) -> set[str]:
    """According to the study and the server's rows; for a site without rows, according to the site itself."""
    rows = {row["site"]: row["held_out"] for row in records.rounds}
    reported = {
        site
        for model in records.models.values()
        for site, entry in model["sites"].items()
        if entry["held_out"] and site not in rows and site not in records.study.sites
    }
    return {*records.study.held_out, *(site for site, held_out in rows.items() if held_out), *reported}


def _rows_of(records: Records, round_: int) -> dict[str, dict[str, Any]]:
    return {row["site"]: row for row in records.rounds if row["round"] == round_}


def _last(records: Records) -> dict[str, Any] | None:
    """The newest scored global model: the one received in round r is the result of r rounds."""
    scored = [row["round"] for row in records.rounds if row["scores"] is not None]
    return {"round": max(scored), "sites": _rows_of(records, max(scored))} if scored else None


def _model(records: Records, round_: int, rows: Mapping[str, Row]) -> dict[str, Any]:
    """Scores of one global model: by site, means over the training and over the held-out sites, and for comparison the
    means of the same sites before training.
    """
    held_out, first = _held_out(records), _rows_of(records, 0)
    sites: dict[str, dict[str, Any]] = {
        site: {
            "held_out": site in held_out,
            "part": rows.get(site, {}).get("part"),
            "scores": summary(rows.get(site, {}).get("scores")),
        }
        for site in sorted(_scoring_sites(records))
    }
    means: dict[str, Any] = {}
    for key, kind in (("mean", False), ("mean_held_out", True)):
        scores = {site: entry["scores"] for site, entry in sites.items() if entry["held_out"] == kind}
        before = [summary(first.get(site, {}).get("scores")) for site in scores if _disclosed(scores[site])]
        means |= {key: _mean_of(records, list(scores.values())), f"{key}_before": _mean_of(records, before)}
    return {"round": round_, "sites": sites, **means}


def _mean_of(records: Records, scores: Sequence[Row | None]) -> dict[str, Any]:
    """Plain means over sites: {mode: {"dice", "iou"}, "by_structure", "scored" of "sites"}. The mean of a mode is over
    the sites that have the mode.
    """
    known = [score for score in scores if score and _disclosed(score)]
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


def _disclosed(score: Row | None) -> bool:
    """Whether a site reports any number; over too few images, all are suppressed."""
    return score is not None and score["fedfms"]["dice"] is not None


def _participation(records: Records, rounds: Sequence[int]) -> dict[str, Any]:
    """Per site: the rounds with its update in the global model, and the rejection reasons of the others. Held-out sites
    miss no rounds.
    """
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


def _unreadable_images(rows: Iterable[Row]) -> list[str]:
    """A note for each site that skipped unreadable images."""
    most: dict[str, int] = {}
    for row in rows:
        most[row["site"]] = max(most.get(row["site"], 0), int(row["unreadable_images"] or 0))
    return [f"{site}: {count} unreadable images were skipped" for site, count in sorted(most.items()) if count]


def _bytes(rows: Iterable[Row], rounds: Sequence[int]) -> dict[str, Any]:
    """Payload of shared tensors in both directions, as the sites count it (up: to the server), summed over sites."""
    by_round = [{"round": round_, "up": 0, "down": 0} for round_ in rounds]
    for row in rows:
        for way in ("up", "down"):
            by_round[row["round"]][way] += int(row[f"bytes_{way}"] or 0)
    up, down = (sum(row[way] for row in by_round) for way in ("up", "down"))
    return {"by_round": by_round, "up": up, "down": down, "total": up + down}


def _curves(records: Records, rounds: Sequence[int]) -> dict[str, Any]:
    """For each site arrays as long as "rounds", the numbers of finished rounds (0: before training): Dice of the global
    model after that many rounds, and the training loss of the last of them.
    """
    final, held_out = records.models.get("final"), _held_out(records)
    finished = [*rounds, len(rounds)] if rounds else []
    scores = {(row["round"], row["site"]): row["scores"] for row in records.rounds}
    losses = {(row["round"] + 1, row["site"]): row["train_loss"] for row in records.rounds}
    if final is not None:
        finished = sorted({*finished, final["round"]})
        scores |= {(final["round"], site): entry["scores"] for site, entry in final["sites"].items()}
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
