"""How often tests are wrong."""

from collections.abc import Callable
from typing import Any

from tests.claims.numbers import (
    EVERYDAY,
    EVIDENCE,
    SIZE,
    UNSEEN,
    Claim,
    Number,
)


def sizes() -> list[Claim]:
    """How often tests are wrong, where pages other than that of experiments/size say so."""

    def most(test: str, **design: int) -> Callable[[Any], int]:
        def count_(size: Any) -> int:
            rows = [r for r in size["comparisons"] if not r["design"]["fallen"]]
            rows = [r for r in rows if all(r["design"][key] == value for key, value in design.items())]
            return max(r["rejected"][test] or 0 for r in rows)

        return count_

    usual = {"draws": 5, "cluster": 1}
    bootstrap = tuple(Number(SIZE, most("crossed bootstrap", seeds=seeds, **usual), "d") for seeds in (3, 5))
    test = Number(SIZE, most("the test"), "d")
    everyday = [
        Number(SIZE, lambda s, k=key: max(r[k] for r in s["everyday"] if r["groups"]), "d")
        for key in ("helps", "hurts")
    ]

    def of_checks(pick: Callable[..., int], **of: Any) -> Number:
        """The most or the fewest times that the whole check says "helps", over its worlds like that."""
        return Number(
            SIZE,
            lambda s: pick(r["helps"] for r in s["checks"] if all(r[key] == value for key, value in of.items())),
            "d",
        )

    told = [of_checks(min, gain=True, shared=0.85, rows=rows) for rows in (60, 24)]
    shifted = Number(SIZE, lambda s: s["promises"][-1]["kept"], "d")
    watched = [
        Claim(
            EVERYDAY,
            f"| {risk} % | {{}} | {{}} | {{}} |",
            tuple(Number(SIZE, f"watches/{n}/{k}", ".0f!") for k in keys),
        )
        for n, risk in enumerate((5, 10, 20))
        for keys in [("false", "doubled", "bound")]
    ]
    return [
        *watched,
        Claim(EVIDENCE, "at most {} times in 2,000 at a level of .05", (test,)),
        Claim(EVIDENCE, "a bootstrap that rejects up to {} of 2,000 at three seeds and {} at five", bootstrap),
        Claim(
            UNSEEN,
            "the bootstrap rejects up to {} of 2,000 true nulls at three seeds and {} at five, the t-test up to {}, "
            "and the test that is used now at most {}",
            (*bootstrap, Number(SIZE, most("t-test over seeds", **usual), "d"), test),
        ),
        Claim(EVERYDAY, 'were told "helps" in at most {} cases, "hurts" in at most {}', tuple(everyday)),
        Claim(
            EVERYDAY,
            '"helps" came at most {} times where it was no better than the best rival; where it was better than all by '
            ".2 nats, and systems find the same rows hard, at least {} times by 60 rows and {} times by 24",
            (of_checks(max, gain=False), *told),
        ),
        Claim(EVERYDAY, "it held in {} of 400 simulated repeats", (shifted,)),
    ]
