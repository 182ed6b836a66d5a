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
    shifted = Number(SIZE, lambda s: s["promises"][-1]["kept"], "d")
    return [
        Claim(EVIDENCE, "at most {} times in 2,000 at a level of .05", (test,)),
        Claim(EVIDENCE, "a bootstrap that rejects up to {} of 2,000 at three seeds and {} at five", bootstrap),
        Claim(
            UNSEEN,
            "the bootstrap rejects up to {} of 2,000 true nulls at three seeds and {} at five, the t-test up to {}, "
            "and the test that is used now at most {}",
            (*bootstrap, Number(SIZE, most("t-test over seeds", **usual), "d"), test),
        ),
        Claim(EVERYDAY, 'were told "helps" in at most {} cases, "hurts" in at most {}', tuple(everyday)),
        Claim(EVERYDAY, "it held in {} of 400 simulated repeats", (shifted,)),
    ]
