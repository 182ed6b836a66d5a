"""Numbers in documents are those of the result files: each claim is filled in from its files and looked for.

A claim is a document, a sentence with a field for every number, and where each number comes from: a file, the way to it
(keys and places, separated by slashes, or a function of the file), and how it is written. Spaces and line ends do not
count. The claims are in `tests/claims`; documents and files are named in `tests/claims/numbers.py` alone.
"""

import json
import re

import pytest

from tests.claims.larger_base import larger_base
from tests.claims.numbers import QUESTIONS, ROOT, Claim, filled, read, squeezed
from tests.claims.one_seed import one_seed
from tests.claims.own import own
from tests.claims.settings import defaults, forgetting, searched
from tests.claims.sizes import sizes
from tests.claims.speed import benchmarks, rivals
from tests.claims.unseen import unseen_rows, verdicts

CLAIMS = [
    *larger_base(),
    *unseen_rows(),
    *verdicts(),
    *one_seed(),
    *forgetting(),
    *defaults(),
    *searched(),
    *benchmarks(),
    *rivals(),
    *own(),
    *sizes(),
]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{claim.document}: {claim.text[:60]}")
def test_the_document_says_what_the_file_says(claim: Claim) -> None:
    assert filled(claim) in squeezed(claim.document)


def test_one_training_seed_has_no_p_in_any_result_file() -> None:
    """Nor has any comparison whose level was measured once."""
    wrong = []
    for path in sorted((ROOT / "experiments/unseen").rglob("summary.json*")):
        summary = read(path.relative_to(ROOT).as_posix())
        for key in ("against_abmll", "against_pretrained", "before_adaptation_against_pretrained"):
            for system, tests in summary.get(key, {}).items():
                once = [
                    m
                    for m, t in tests.items()
                    if t["p"] is not None and (t["seeds"] < 2 and "seeds" in t["measured_once"])
                ]
                known = [m for m, t in tests.items() if t.get("measured_once") and t["p"] is not None]
                wrong += [f"{path}: {key} {system} {metric}" for metric in (*once, *known)]
    assert not wrong
    questions = json.dumps(read(QUESTIONS))
    assert not re.search(r'"p": [0-9]', questions)
