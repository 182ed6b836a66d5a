"""What a report says in sentences: the verdict on top, and how the numbers are defined."""

from typing import Any

from abmll.metrics.baselines import LABEL_FREQUENCY, UNIFORM

Summary = dict[str, Any]

POSTERIOR, LETTER = "nll_posterior", "ece_vocabulary"
_LETTER = (
    "the same of the raw probability of the predicted letter among all tokens, which the paper's numbers look like "
    "(docs/method.md, section 5)."
)
_AT_POSTERIOR = "at the posterior temperature"
CLEAR = 0.05  # level, after Holm's correction, from which a difference is called one
ONE_SEED = "One seed, so no standard error: another seed may order the systems otherwise"


def lede(summary: Summary) -> list[str]:
    """The verdict, a few sentences; its claims of a difference come from the paired tests alone."""
    every = {name: entry for name, entry in summary["systems"].items() if entry["kind"] == "system"}
    systems = {name: entry for name, entry in every.items() if not entry["not_finite"]}
    broken = [name for name in every if name not in systems]
    broken_note = [f"Not finite, and so without scores: {', '.join(broken)}."] if broken else []
    if not systems:
        return [f"{scope(summary)}.", *broken_note]
    best = max(systems, key=lambda name: systems[name]["accuracy"])
    primary = summary["primary"]
    surest = min(systems, key=lambda name: systems[name][primary])
    guess = summary["systems"][UNIFORM]
    losers = [name for name, entry in systems.items() if entry[f"{primary}_over_uniform"] <= 0]
    said = "Lowest negative log-likelihood" + (f" {_AT_POSTERIOR}" if primary == POSTERIOR else "")
    out = [
        f"{scope(summary)}.",
        f"Highest accuracy: {best}, {100 * systems[best]['accuracy']:.1f} % "
        f"(uniform guess: {100 * guess['accuracy']:.1f} %).",
        f"{said}: {surest}, {systems[surest][primary]:.3f} nats (uniform guess: {guess['nll']:.3f}).",
    ]
    if losers:
        out.append(f"Negative log-likelihood not below that of a uniform guess: {', '.join(losers)}.")
    return out + broken_note + [_verdict(summary, metric) for metric in ("accuracy", primary)] + [advice(summary)]


def has_score(summary: Summary, name: str) -> bool:
    """Whether any system has a score that it need not have.

    `POSTERIOR`, which takes held-out examples; or `LETTER`, which takes letters.
    """
    systems = [entry for entry in summary["systems"].values() if entry["kind"] == "system"]
    return any(entry.get(name) is not None for entry in systems)


def advice(summary: Summary) -> str:
    """Which system to choose, in one line: one that a test shows to be better in NLL, or else the cheapest."""
    systems = {name: e for name, e in summary["systems"].items() if e["kind"] == "system" and not e["not_finite"]}
    reference, primary = summary["reference"], summary["primary"]
    tests = {name: test for name, test in _tests(summary, primary).items() if test["p_holm"] is not None}
    shown = {name: test["difference"] for name, test in tests.items() if test["p_holm"] < CLEAR}
    better = [name for name in systems if shown.get(name, 0.0) < 0]
    left = {name: systems[name] for name in better or systems if shown.get(name, 0.0) <= 0}
    if all(entry[f"{primary}_over_uniform"] <= 0 for entry in left.values()):
        return "Choose none of them: in NLL none is better than a uniform guess."
    if better:
        best = min(better, key=lambda name: systems[name][primary])
        return f"Choose {best}: of the systems that are better than {reference} in NLL it has the lowest."
    seconds = {name: spent for name, entry in left.items() if (spent := _seconds(entry["cost"])) is not None}
    if not seconds:
        return "These rows do not decide which system to choose, and what each costs was not recorded."
    cheapest = min(seconds, key=seconds.__getitem__)
    return f"These rows do not decide which system to choose; the cheapest is {cheapest} ({seconds[cheapest]:,.0f} s)."


def _seconds(cost: Summary | None) -> float | None:
    """Of training, adapting and predicting, as far as they were recorded."""
    parts = [(cost or {}).get(f"{part}_seconds") for part in ("train", "adapt", "predict")]
    numbers = [float(part) for part in parts if isinstance(part, int | float)]
    return sum(numbers) if numbers else None


def scope(summary: Summary) -> str:
    """What was measured: systems, questions, tasks, seeds, draws."""
    systems = [entry for entry in summary["systems"].values() if entry["kind"] == "system"]
    count = max(entry["n"] for entry in systems)
    return (
        f"{_count(len(systems), 'system')} on {_count(count, 'question')}{_in_groups(summary, count)} of "
        f"{_count(len(summary['tasks']), 'unseen task')}, {_count(len(summary['seeds']), 'training seed')}, "
        f"{_count(summary['draws'], 'adaptation draw')}"
    )


def _in_groups(summary: Summary, questions: int) -> str:
    groups = summary["n_groups"]
    return f" in {_count(groups, 'group')}" if groups < questions else ""


def footnotes(summary: Summary) -> list[str]:
    """What a reader of the main table must know, one line each, the comparison's own note first."""
    entries = summary["systems"]
    seeds = max(entry["n_seeds"] for entry in entries.values())
    spread = "± is the standard error over seeds" if seeds > 1 else ONE_SEED
    lines = [summary["note"]] if summary["note"] else []
    lines += [
        f"{scope(summary)}. Scores are unweighted means over tasks, seeds and draws.",
        f"{spread}; [\N{NO-BREAK SPACE}] is a 95 % bootstrap interval over {_asked(summary)} (tasks, seeds, draws held "
        "fixed).",
        "Gain: nats over a uniform guess; below 0 is worse than guessing.",
        f"ECE: {summary['bins']} equal-width bins of the probability of the predicted choice, renormalised over "
        f"the choices (confidence kind: {summary['confidence']}).",
        *([f"ECE letter: {_LETTER}"] if has_score(summary, LETTER) else ()),
        "Floor: the ECE that a perfectly calibrated system would show on so few questions; "
        "an ECE near its floor is no sign of miscalibration.",
        _which_nll(summary),
        f"{UNIFORM}: every choice equally probable; its accuracy is what a guess is expected to score.",
        *(f"{name}: {definition}" for name, definition in summary.get("metrics", {}).items()),
    ]
    if broken := [name for name, entry in entries.items() if entry["not_finite"]]:
        lines.append(
            f"Not finite: {', '.join(broken)} gave NaN or infinity in a seed, draw or task, which is no answer; a mean "
            "over the others would hide it. Where and why is listed below."
        )
    if LABEL_FREQUENCY in entries:
        tasks = entries[LABEL_FREQUENCY]["n_tasks"]
        over = "task" if tasks == 1 else f"{tasks} tasks"
        part = "" if tasks == len(summary["tasks"]) else f"; * over the {over} with fixed labels only"
        lines.append(f"{LABEL_FREQUENCY}: label shares among the adaptation examples (plus one each){part}.")
    return lines


def _which_nll(summary: Summary) -> str:
    """Which number is which, and how to get the one that is missing."""
    if not has_score(summary, POSTERIOR):
        return (
            "NLL: of the probabilities as they are stated. At the temperature that suits a task, which is the primary "
            "score, it needs examples that were held out: adaptation.folds=5."
        )
    systems = {name: entry for name, entry in summary["systems"].items() if entry["kind"] == "system"}
    without = [name for name, entry in systems.items() if not entry["not_finite"] and entry[POSTERIOR] is None]
    missing = f" No held-out examples (adaptation.folds=5), and so none of it: {', '.join(without)}." if without else ""
    return (
        "NLL posterior (and its gain, and ECE posterior): answers averaged over the posterior of their task's "
        "temperature, given the examples when held out; the primary score. NLL, ECE and Brier: of the probabilities as "
        f"they are stated.{missing}"
    )


def difference_note(summary: Summary) -> str:
    """How the paired tests were made."""
    tests = _tests(summary, "accuracy") or _tests(summary, summary["primary"])
    levels = next(iter(tests.values()))["levels"] if tests else ["questions"]
    named = ", ".join(_asked(summary) if level == "questions" else level for level in levels)
    once = [once for test in tests.values() for once in test["measured_once"]]
    without = f" No p where there is {_or(once)}: nobody knows what another would show." if once else ""
    return (
        f"Difference to {summary['reference']}, paired on the same questions, with a 95 % interval that allows for "
        f"{named} (tasks fixed), each by Student's t; p after Holm's correction over the systems.{without}"
    )


def one_of(level: str) -> str:
    """What is said of a level that was measured once.

    >>> one_of("seeds")
    'one seed'
    """
    return {"seeds": "one seed", "draws": "one draw", "questions": "one group", "tasks": "one task"}[level]


def _or(levels: list[str]) -> str:
    return " or ".join(dict.fromkeys(map(one_of, levels)))


def _asked(summary: Summary) -> str:
    """What is resampled: questions, or groups of them."""
    count = max(entry["n"] for entry in summary["systems"].values())
    return "groups of questions" if summary["n_groups"] < count else "questions"


def definitions(summary: Summary) -> list[tuple[str, str]]:
    """Name and definition of every number, for the page."""
    return [
        ("Accuracy", "share of questions whose most probable choice is right; equally probable ones share the answer."),
        (
            "NLL posterior",
            "mean negative log-likelihood of the right choice, in nats, after the answers were averaged over the "
            "posterior of the task's temperature: given the examples, each answered when it was held out, with the "
            "prior learned on the training tasks where these were predicted, else a weak one. The primary score.",
        ),
        ("NLL", "the same of the probabilities as they are stated."),
        ("Gain", "mean log(number of choices) - NLL (NLL posterior, where there is one): nats over a uniform guess."),
        ("Brier", "squared distance of the probabilities to the right answer, summed over choices, 0 to 2."),
        (
            "Confidence",
            "probability of the predicted choice, renormalised over the choices. Papers that take the raw "
            "probability of the answer's letter instead report other, usually larger, calibration errors.",
        ),
        (
            "ECE",
            f"expected calibration error: mean |accuracy - confidence| over {summary['bins']} equal-width bins, "
            "each weighted by its questions; computed per task, then averaged.",
        ),
        *([("ECE letter", _LETTER)] if has_score(summary, LETTER) else ()),
        ("Floor", "mean ECE of simulated answers that are right exactly as often as stated, same questions."),
        *summary.get("metrics", {}).items(),
        ("±", "standard error over training seeds (sd / sqrt(seeds))."),
        ("[ ]", f"95 % bootstrap interval: {_asked(summary)} resampled within each task, seeds and draws held fixed."),
        ("p", difference_note(summary)),
    ]


def _verdict(summary: Summary, metric: str) -> str:
    label, form, sign = {
        "accuracy": ("Accuracy", _points, 1),
        "nll": ("NLL", _nats, -1),
        POSTERIOR: ("NLL posterior", _nats, -1),
    }[metric]
    tests, reference = _tests(summary, metric), summary["reference"]
    if not tests:
        why = ", which is not finite" if summary["systems"].get(reference, {}).get("not_finite") else ""
        return f"{label}: nothing could be tested against {reference}{why}."
    tested = {name: test for name, test in tests.items() if test["p_holm"] is not None}
    if not tested:
        once = _or([once for test in tests.values() for once in test["measured_once"]])
        return f"{label}: {once or 'nothing scatters'}, so nothing is said of which system is better."
    clear = {name: test["difference"] for name, test in tested.items() if test["p_holm"] < CLEAR}
    better = [f"{name} ({form(value)})" for name, value in clear.items() if sign * value > 0]
    worse = [f"{name} ({form(value)})" for name, value in clear.items() if sign * value <= 0]
    parts = [f"{word}: {', '.join(names)}" for word, names in (("better", better), ("worse", worse)) if names]
    if not parts:
        verdict = f"{label}: no system can be told apart from {reference} (paired test, no p below {CLEAR})."
    else:
        verdict = (
            f"{label}, against {reference} (paired test, p < {CLEAR} after Holm's correction): {'; '.join(parts)}."
        )
    left = ", ".join(name for name in tests if name not in tested)
    return verdict + (f" Not tested: {left}." if left else "")


def _points(value: float) -> str:
    return f"{100 * value:+.1f} points"


def _nats(value: float) -> str:
    return f"{value:+.3f} nats"


def _tests(summary: Summary, metric: str) -> dict[str, Any]:
    found = {name: (entry["against_reference"] or {}).get(metric) for name, entry in summary["systems"].items()}
    return {name: test for name, test in found.items() if test}


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
