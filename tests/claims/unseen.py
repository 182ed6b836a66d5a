"""The second run on the unseen tasks: README.md and the evidence."""

from typing import Any

from tests.claims.numbers import (
    BEFORE,
    EVIDENCE,
    LETTERS,
    README,
    SECOND,
    SHOWN,
    Claim,
    Number,
    against,
    of,
    read,
    with_interval,
)


def unseen_rows() -> list[Claim]:
    """The table of README.md and the main one of the evidence."""
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
        two = (of(SECOND, system, "nll_scaled"), of(SECOND, system, "accuracy", "%"))
        out.append(Claim(README, f"| {label} | {{}} | {{}} | {SHOWN} |", (*two, *with_interval(SECOND, system))))
    out.append(
        Claim(
            README, "| ABMLL | {} | {} | |", (of(SECOND, "abmll", "nll_scaled"), of(SECOND, "abmll", "accuracy", "%"))
        )
    )
    for label, seeds, system, p in (
        ("in context, no training", "none", "in_context", ""),
        ("fomaml", "5", "fomaml", ""),
        ("reptile, rank 32", "5", "reptile_rank32", ""),
        ("pretrained, adapted at 1.6e-3", "5", "pretrained", ""),
        ("abmll, stds frozen at their start", "5", "abmll_frozen", ""),
        ("reptile", "5", "reptile", ""),
        ("lora (mixed batches)", "5", "lora", ".2f"),
        ("structured, `fresh` (one task a meta-iteration)", "5", "structured", ".2f"),
        ("structured, `fresh`, rank 32", "5", "structured_rank32", ".2f"),
        ("uniform", "", "uniform", ".3f"),
    ):
        first = "{} (the first choice)" if system == "uniform" else "{}"
        start = f"| {label} | {seeds} | {first} | {{}} | {SHOWN}".replace("|  |", "| |")
        numbers = (
            of(SECOND, system, "accuracy", "%"),
            of(SECOND, system, "nll_scaled"),
            *with_interval(SECOND, system),
        )
        numbers += (against(SECOND, system, "nll_scaled", "p", p),) if p else ()
        numbers += (of(SECOND, system, "nll"),)
        out.append(Claim(EVIDENCE, f"{start}{', p = {}' if p else ''} | {{}} |", numbers))
    for label, system in (
        ("reptile, Adam as its outer step", "reptile_adam"),
        ("reptile, MC dropout", "reptile_dropout"),
        ("structured, `fresh`, with the prior's L2", "structured_prior"),
    ):
        numbers = (of(SECOND, system, "accuracy", "%"), of(SECOND, system, "nll_scaled"))
        numbers += (against(SECOND, system, "nll_scaled", "difference"), of(SECOND, system, "nll"))
        out.append(Claim(EVIDENCE, f"| {label} | 1 | {{}} | {{}} | ({{}}, one seed) | {{}} |", numbers))
    return out


def verdicts() -> list[Claim]:
    """What README.md and the evidence say of the second run in sentences."""
    structured = tuple(
        against(SECOND, "structured", "nll_scaled", w, f) for w, f in (("p", ".2f"), ("p_unadjusted", ".3f"))
    )
    signal = "tasks/bb_movie_recommendation/{}/nll_scaled_over_uniform"
    in_prompt = "against_abmll/in_context/{}/with_signal/{}"
    return [
        Claim(README, "or from structured LoRA (p = {} after Holm's correction", structured[:1]),
        Claim(
            EVIDENCE,
            "Its NLL after temperature scaling is {} over five seeds, where the same model adapted without any "
            "meta-training has {}, FOMAML {}, Reptile {}, and the examples in the prompt, with no training at all, "
            "{}. Structured LoRA whose moments begin anew with each task has {} at the rate that was found for it (the "
            "paper's nearest baseline, whose moments go on, was not measured); that ABMLL is better is not shown "
            "(p = {} after Holm's correction, {} before; with tasks resampled {}), "
            "`pretrained` is as far ahead of it, and ABMLL whose stds are never trained is just as good ({})",
            (
                *(
                    of(SECOND, n, "nll_scaled")
                    for n in ("abmll", "pretrained", "fomaml", "reptile", "in_context", "structured")
                ),
                *structured,
                against(SECOND, "structured", "nll_scaled", "tasks_resampled/p", "1"),
                of(SECOND, "abmll_frozen", "nll_scaled"),
            ),
        ),
        Claim(
            EVIDENCE,
            "ABMLL against `pretrained` is {} [{}, {}] in scaled NLL and {} points [{}, {}] in accuracy, against the "
            "examples in the prompt {} and {}.",
            (
                *with_interval(SECOND, "abmll", reference="pretrained"),
                *(
                    against(SECOND, "abmll", "accuracy", what, "+%%", "pretrained")
                    for what in ("difference", "interval/0", "interval/1")
                ),
                Number(SECOND, lambda s: -s["against_abmll"]["in_context"]["nll_scaled"]["difference"], "+.3f"),
                Number(SECOND, lambda s: -s["against_abmll"]["in_context"]["accuracy"]["difference"], "+%%"),
            ),
        ),
        Claim(
            EVIDENCE,
            "by the test whose size holds it is {}, {} before Holm's correction, and in accuracy, {} points, {}.",
            (
                *structured,
                *(against(SECOND, "structured", "accuracy", w, f) for w, f in (("difference", "+%"), ("p", ".2f"))),
            ),
        ),
        Claim(
            EVIDENCE,
            "unscaled, learned ones are {} lower (p = {} after Holm, {} before). Mean weights in place of five draws: "
            "all of it; unscaled, draws are {} lower.",
            (
                *(
                    against(SECOND, "abmll_frozen", "nll", w, f)
                    for w, f in (("difference", "size"), ("p", ".2f"), ("p_unadjusted", ".2f"))
                ),
                Number(SECOND, lambda s: s["systems"]["abmll_mean"]["nll"] - s["systems"]["abmll"]["nll"]),
            ),
        ),
        Claim(
            EVIDENCE,
            "ABMLL's NLL is then {} lower than `pretrained`'s (p = {} after Holm, {} before), the ensemble's {} (no "
            "test).",
            (
                *(
                    against(SECOND, "abmll", "nll", w, f, "pretrained")
                    for w, f in (("difference", "size"), ("p", ".2f"), ("p_unadjusted", ".2f"))
                ),
                against(SECOND, "reptile_ensemble", "nll", "difference", "size", "pretrained"),
            ),
        ),
        Claim(
            EVIDENCE,
            "There ABMLL gains {} nats over a guess, frozen stds {}, FOMAML {}, Reptile {}, its ensemble {}, "
            "`pretrained` {}, the prompt {} (its accuracy {} against {} %), LoRA {}, structured LoRA {}. Of these "
            "differences to ABMLL one is shown: the prompt's plain NLL is {} lower (p = {}; its scaled NLL p = {}, "
            "its accuracy {}, `pretrained`'s scaled NLL {}).",
            (
                *(
                    Number(SECOND, signal.format(n))
                    for n in (
                        "abmll",
                        "abmll_frozen",
                        "fomaml",
                        "reptile",
                        "reptile_ensemble",
                        "pretrained",
                        "in_context",
                    )
                ),
                Number(SECOND, "tasks/bb_movie_recommendation/in_context/accuracy", "%"),
                Number(SECOND, "tasks/bb_movie_recommendation/abmll/accuracy", "%"),
                *(Number(SECOND, signal.format(n)) for n in ("lora", "structured")),
                Number(SECOND, in_prompt.format("nll", "difference"), "size"),
                *(Number(SECOND, in_prompt.format(m, "p"), ".2f") for m in ("nll", "nll_scaled", "accuracy")),
                Number(SECOND, "against_abmll/pretrained/nll_scaled/with_signal/p", ".2f"),
            ),
        ),
        Claim(
            EVIDENCE,
            "ABMLL's plain NLL is {} below the base model's (p = {}; with tasks resampled {}), LoRA's {} ({}; {}), "
            "Reptile's {} ({}; {}), structured LoRA's {} ({}; {}), all of them still",
            tuple(
                Number(SECOND, BEFORE.format(system, "nll", what), form)
                for system, small in (("abmll", ".3f"), ("lora", ".2f"), ("reptile", ".2f"), ("structured", ".2f"))
                for what, form in (("difference", "size"), ("p", small), ("tasks_resampled/p", ".2f"))
            ),
        ),
        Claim(
            EVIDENCE,
            "ABMLL's is {} below, LoRA's {} and structured LoRA's {} above; accuracies are {}, {} and {} points higher "
            "(p = {}, {}, {}).",
            tuple(
                Number(SECOND, BEFORE.format(system, metric, what), form)
                for metric, what, form in (
                    ("nll_scaled", "difference", "size"),
                    ("accuracy", "difference", "+%"),
                    ("accuracy", "p", "1"),
                )
                for system in ("abmll", "lora", "structured")
            ),
        ),
        Claim(
            EVIDENCE,
            "ranks wrong answers with an AUROC of {}, confidence with {}",
            (of(SECOND, "abmll", "auroc_of_spread"), of(SECOND, "abmll", "auroc")),
        ),
        Claim(
            EVIDENCE,
            "(area under the risk-coverage curve: ABMLL {}, `pretrained` {}, Reptile {}, the prompt {};",
            tuple(of(SECOND, n, "aurc") for n in ("abmll", "pretrained", "reptile", "in_context")),
        ),
        Claim(
            EVIDENCE,
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
