"""The second run on the unseen tasks: docs/overview.md and the pages on evidence."""

from typing import Any

from tests.claims.numbers import (
    BEFORE,
    LETTERS,
    OVERVIEW,
    SECOND,
    SHOWN,
    STDS,
    TRAINING_TASKS,
    UNSEEN_TASKS,
    Claim,
    Number,
    against,
    of,
    read,
    with_interval,
)

PRIMARY = "nll_posterior"
SIGNAL = "tasks/bb_movie_recommendation/{}/nll_scaled_over_uniform"


def unseen_rows() -> list[Claim]:
    """The table of docs/overview.md and the main one of the evidence."""
    out = []
    for label, system in (
        ("examples in the prompt", "in_context"),
        ("FOMAML", "fomaml"),
        ("pretrained, adapted", "pretrained"),
        ("ABMLL, stds frozen", "abmll_frozen"),
        ("Reptile", "reptile"),
        ("LoRA, mixed batches", "lora"),
        ("structured LoRA, `fresh`", "structured"),
        ("a uniform guess", "uniform"),
    ):
        three = (of(SECOND, system, PRIMARY), of(SECOND, system, "nll"), of(SECOND, system, "accuracy", "%"))
        numbers = (*three, *with_interval(SECOND, system, PRIMARY))
        out.append(Claim(OVERVIEW, f"| {label} | {{}} | {{}} | {{}} | {SHOWN} |", numbers))
    three = (of(SECOND, "abmll", PRIMARY), of(SECOND, "abmll", "nll"), of(SECOND, "abmll", "accuracy", "%"))
    out.append(Claim(OVERVIEW, "| ABMLL | {} | {} | {} | |", three))
    for label, seeds, system, p in (
        ("in context, no training", "none", "in_context", "1"),
        ("fomaml", "5", "fomaml", "1"),
        ("reptile, rank 32", "5", "reptile_rank32", "1"),
        ("pretrained, adapted at 1.6e-3", "5", "pretrained", "1"),
        ("abmll, stds frozen at their start", "5", "abmll_frozen", "1"),
        ("reptile", "5", "reptile", "1"),
        ("lora (mixed batches)", "5", "lora", "1"),
        ("structured, `fresh` (one task a meta-iteration)", "5", "structured", "1"),
        ("structured, `fresh`, rank 32", "5", "structured_rank32", "1"),
        ("uniform", "", "uniform", ".3f"),
    ):
        text = f"| {label} | {seeds} | {{}} | {{}} | {{}} | {{}} | {SHOWN} | {{}} |".replace("|  |", "| |")
        metrics = (PRIMARY, "nll", "nll_scaled")
        numbers = (of(SECOND, system, "accuracy", "%"), *(of(SECOND, system, metric) for metric in metrics))
        numbers += (*with_interval(SECOND, system), against(SECOND, system, "nll_scaled", "p", p))
        out.append(Claim(UNSEEN_TASKS, text, numbers))
    for label, system in (
        ("reptile, Adam as its outer step", "reptile_adam"),
        ("reptile, MC dropout", "reptile_dropout"),
        ("structured, `fresh`, with the prior's L2", "structured_prior"),
    ):
        metrics = (PRIMARY, "nll", "nll_scaled")
        numbers = (of(SECOND, system, "accuracy", "%"), *(of(SECOND, system, metric) for metric in metrics))
        numbers += (against(SECOND, system, "nll_scaled", "difference"),)
        out.append(Claim(UNSEEN_TASKS, f"| {label} | 1 | {{}} | {{}} | {{}} | {{}} | {{}} | one seed |", numbers))
    return out


def _less_other(system: str, metric: str, form: str) -> tuple[Number, ...]:
    """ABMLL less a system, from the difference the other way round: it, its interval, p after Holm's and before."""
    ways = ("difference", "interval/1", "interval/0")
    turned = [
        Number(SECOND, lambda s, way=way: -_at_way(s["against_abmll"][system][metric], way), form) for way in ways
    ]
    tests = (against(SECOND, system, metric, "p", "1"), against(SECOND, system, metric, "p_unadjusted", "1"))
    return (*turned, *tests)


def _at_way(test: Any, way: str) -> float:
    name, _, place = way.partition("/")
    return test[name][int(place)] if place else test[name]


def verdicts() -> list[Claim]:
    """What the evidence says of the second run besides its main table."""
    out = []
    for name, metric, label, system, form in (
        ("`pretrained`", PRIMARY, "NLL posterior", "pretrained", "+.3f"),
        ("`pretrained`", "nll_scaled", "scaled NLL", "pretrained", "+.3f"),
        ("`pretrained`", "accuracy", "accuracy, points", "pretrained", "+%%"),
        ("`pretrained`", "nll", "NLL, unscaled", "pretrained", "+.3f"),
        ("examples in the prompt", PRIMARY, "NLL posterior", "in_context", "+.3f"),
        ("examples in the prompt", "nll_scaled", "scaled NLL", "in_context", "+.3f"),
        ("frozen stds", "nll", "NLL, unscaled", "abmll_frozen", "+.3f"),
        ("structured LoRA, `fresh`", PRIMARY, "NLL posterior", "structured", "+.3f"),
        ("structured LoRA, `fresh`", "nll_scaled", "scaled NLL", "structured", "+.3f"),
        ("structured LoRA, `fresh`", "accuracy", "accuracy, points", "structured", "+%%"),
    ):
        numbers = _less_other(system, metric, form)
        out.append(Claim(UNSEEN_TASKS, f"| {name} | {label} | {SHOWN} | {{}} | {{}} |", numbers))
    for label, system in (
        ("in context", "in_context"),
        ("pretrained", "pretrained"),
        ("fomaml", "fomaml"),
        ("reptile", "reptile"),
        ("abmll, stds frozen", "abmll_frozen"),
        ("lora", "lora"),
        ("structured, `fresh`", "structured"),
    ):
        numbers = (Number(SECOND, SIGNAL.format(system)),)
        ways = (f"against_abmll/{system}/{metric}/with_signal/p" for metric in ("nll_scaled", "nll", "accuracy"))
        numbers += tuple(Number(SECOND, way, "1") for way in ways)
        out.append(Claim(UNSEEN_TASKS, f"| {label} | {{}} | {{}} | {{}} | {{}} |", numbers))
    for label, system in (
        ("abmll", "abmll"),
        ("lora", "lora"),
        ("reptile", "reptile"),
        ("structured, `fresh`", "structured"),
    ):
        ways = (("nll", "difference", "+.3f"), ("nll", "p", ".3f" if system == "abmll" else ".2f"))
        ways += (("nll", "tasks_resampled/p", ".2f"), ("accuracy", "difference", "+%%"), ("accuracy", "p", "1"))
        ways += (("nll_scaled", "difference", "+.3f"),)
        numbers = tuple(Number(SECOND, BEFORE.format(system, metric, what), form) for metric, what, form in ways)
        out.append(Claim(TRAINING_TASKS, f"| {label} | {{}} | {{}} | {{}} | {{}} | {{}} | {{}} |", numbers))
    return [*out, *_sentences()]


def _sentences() -> list[Claim]:
    """Numbers outside the tables, and rows of one number."""
    gain = Number(SECOND, SIGNAL.format("abmll"))
    prompt = "against_abmll/in_context/nll/with_signal/difference"
    return [
        Claim(UNSEEN_TASKS, "| abmll | {} | | | |", (gain,)),
        Claim(UNSEEN_TASKS, "| reptile, ensemble of four | {} |", (Number(SECOND, SIGNAL.format("reptile_ensemble")),)),
        Claim(
            UNSEEN_TASKS,
            "the prompt's plain NLL is {} lower. Its accuracy is {} against {} %.",
            (
                Number(SECOND, prompt, "size"),
                *(Number(SECOND, f"tasks/bb_movie_recommendation/{n}/accuracy", "%") for n in ("in_context", "abmll")),
            ),
        ),
        Claim(
            UNSEEN_TASKS,
            "Unscaled, draws are {} lower.",
            (Number(SECOND, lambda s: s["systems"]["abmll_mean"]["nll"] - s["systems"]["abmll"]["nll"]),),
        ),
        Claim(
            UNSEEN_TASKS,
            "The ensemble's NLL is then {} below `pretrained`'s",
            (against(SECOND, "reptile_ensemble", "nll", "difference", "size", "pretrained"),),
        ),
        Claim(STDS, "for wrong answers (.50 is chance) | {} |", (of(SECOND, "abmll", "auroc_of_spread"),)),
        Claim(STDS, "AUROC of confidence for wrong answers | {} |", (of(SECOND, "abmll", "auroc"),)),
        *(
            Claim(STDS, f"| {label} | {{}} |", (of(SECOND, system, "aurc"),))
            for label, system in (
                ("abmll", "abmll"),
                ("pretrained", "pretrained"),
                ("reptile", "reptile"),
                ("in context", "in_context"),
            )
        ),
        Claim(
            UNSEEN_TASKS,
            "every system is above a guess in NLL, scaled too ({} to {} against {})",
            tuple(
                Number(LETTERS, lambda s, pick=pick: pick(_nll_scaled_of_systems(s)))
                for pick in (min, max, lambda values: read(LETTERS)["systems"]["uniform"]["nll_scaled"])
            ),
        ),
    ]


def _nll_scaled_of_systems(summary: Any) -> list[float]:
    baselines = ("uniform", "label_frequency")
    return [entry["nll_scaled"] for name, entry in summary["systems"].items() if name not in baselines]
