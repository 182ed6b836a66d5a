"""The first run on the unseen tasks."""

from tests.claims.numbers import (
    EVIDENCE,
    FIRST,
    FIRST_FORGETTING,
    SHIPPED,
    Claim,
    Number,
    against,
    of,
)


def first_run() -> list[Claim]:
    """The table and the verdict of the first run."""
    out = []
    for label, seeds, system in (
        ("fomaml", "1", "fomaml"),
        ("abmll, stds frozen at their start", "2", "abmll_frozen"),
        ("abmll, the library's default of then, not searched", "1", "abmll_displacement_init"),
        ("abmll, first-order reading, not searched", "1", "abmll_first_order"),
        ("structured, `fresh`", "5", "structured"),
        ("lora", "1", "lora"),
        ("pretrained", "2", "pretrained"),
        ("structured, `fresh`, rank 32", "2", "structured_rank32"),
        ("abmll, searched", "5", "abmll"),
        ("abmll, searched, mean weights", "5", "abmll_mean"),
        ("ensemble of four reptiles", "", "reptile_ensemble"),
        ("reptile, searched", "4", "reptile"),
    ):
        text = f"| {label} | {seeds} | {{}} | {{}} | {{}} | {{}} ({{}}) |".replace("|  |", "| |")
        metrics = ("nll_scaled", "nll", "ece_choices", "ece_noise_floor")
        out.append(
            Claim(EVIDENCE, text, (of(FIRST, system, "accuracy", "%"), *(of(FIRST, system, m) for m in metrics)))
        )
    presets = ("abmll_paper", "abmll_paper_variance")
    out += [
        Claim(
            EVIDENCE,
            "| abmll, presets `paper`; `paper-variance` | 1 | {}; {} | {} | {} | {} ({}) |",
            (
                *(of(FIRST, name, "accuracy", "%") for name in presets),
                of(FIRST, presets[0], "nll_scaled"),
                *(
                    of(FIRST, presets[0], m, f)
                    for m, f in (("nll", ".2f"), ("ece_choices", ".2f"), ("ece_noise_floor", ".3f"))
                ),
            ),
        ),
        Claim(
            EVIDENCE,
            "structured LoRA, its scaled NLL is {} nats higher (95 % [{}, {}]; p = {}, after Holm's correction {}) "
            "and its accuracy {} points lower ([{}, {}], p = {}, {}).",
            (
                against(FIRST, "structured", "nll_scaled", "difference", "size"),
                Number(FIRST, lambda s: -s["against_abmll"]["structured"]["nll_scaled"]["interval"][1], "+.3f"),
                Number(FIRST, lambda s: -s["against_abmll"]["structured"]["nll_scaled"]["interval"][0], "+.3f"),
                *(against(FIRST, "structured", "nll_scaled", w, f) for w, f in (("p_unadjusted", ".2f"), ("p", "1"))),
                against(FIRST, "structured", "accuracy", "difference", "+%"),
                *(against(FIRST, "structured", "accuracy", f"interval/{i}", "+%%") for i in (0, 1)),
                *(against(FIRST, "structured", "accuracy", w, f) for w, f in (("p_unadjusted", ".2f"), ("p", "1"))),
            ),
        ),
        Claim(
            EVIDENCE,
            "On text that is no question the two adapters that fell apart cost {} and {} nats a token",
            tuple(Number(FIRST_FORGETTING, f"adapters/{n}/more", ".1f") for n in ("abmll-0", "abmll_frozen-2")),
        ),
        Claim(
            SHIPPED,
            "had the same scores: {} on the unseen tasks, one seed each",
            (of(FIRST, "abmll_displacement_init", "nll_scaled"),),
        ),
        Claim(
            SHIPPED,
            "had the same scores: {} on the unseen tasks, one seed each",
            (of(FIRST, "abmll_displacement_copy", "nll_scaled"),),
        ),
    ]
    return out
