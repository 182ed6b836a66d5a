"""Claims of documents, and the numbers in them: where each comes from, and how it is written."""

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from experiments.short_json import read_gzipped

ROOT = Path(__file__).parents[2]
README, OVERVIEW = "README.md", "docs/overview.md"
EVIDENCE, EVERYDAY = "docs/evidence.md", "docs/everyday.md"
UNSEEN_TASKS, TRAINING_TASKS = "docs/evidence/unseen-tasks.md", "docs/evidence/training-tasks.md"
SETTINGS, STDS, COST = "docs/evidence/settings.md", "docs/evidence/stds.md", "docs/evidence/cost.md"
DEFAULT, FIRST_RUN = "docs/evidence/default.md", "docs/evidence/first-run.md"
BENCHMARKS, UNSEEN, RIVALS = "benchmarks/README.md", "experiments/unseen/README.md", "docs/rivals.md"
SEARCHED, SHIPPED = "src/abmll/recipes/searched.yaml", "src/abmll/recipes/shipped.yaml"
SEARCHED_LARGER = "src/abmll/recipes/searched-1.5b.yaml"
"""Documents; where one is split, point its claims to the page that they went to."""

LARGER_BASE = "docs/evidence/larger-base.md"
LARGER = "experiments/unseen/results/summary.json"
LARGER_VALIDATION = "experiments/unseen/results/validation/summary.json.gz"
LARGER_ONCE = "experiments/unseen/results/first_draw.json"
LARGER_SEARCH = "experiments/unseen/results/search.json"
SECOND = "experiments/unseen/results/smollm2/summary.json.gz"
IN_DOMAIN = "experiments/unseen/results/smollm2/in_domain/summary.json.gz"
LETTERS = "experiments/unseen/results/smollm2/letter/summary.json.gz"
QUESTIONS = "experiments/unseen/results/smollm2/questions.json.gz"
SEARCH = "experiments/unseen/results/smollm2/search.json"
FORGETTING = "experiments/unseen/results/smollm2/forgetting.json"
FIRST_FORGETTING = "experiments/unseen/results/smollm2/forgetting_first_run.json"
DEFAULTS = "experiments/unseen/defaults/{}/summary.json.gz"
DEFAULT_FORGETTING = "experiments/unseen/defaults/forgetting.json"
SIZE = "experiments/size/results.json.gz"
BENCH = "benchmarks/results/{}.json"
OWN, OWN_RESULTS = "benchmarks/own/README.md", "benchmarks/own/results.json"

Way = str | Callable[[Any], Any]


class Number(NamedTuple):
    """Where a number comes from, and how it is written."""

    file: str
    way: Way
    form: str = ".3f"


class Claim(NamedTuple):
    """A sentence of a document with its numbers."""

    document: str
    text: str
    numbers: tuple[Number, ...]


FORMS: dict[str, Callable[[float], str]] = {
    "%": lambda value: f"{100 * value:.1f}",
    "+%": lambda value: f"{100 * abs(value):.1f}",
    "+%%": lambda value: f"{100 * value:+.1f}",
    "size": lambda value: f"{abs(value):.3f}",
    "1": lambda value: "1" if value > 0.995 else f"{value:.2f}",
}


def written(value: float, form: str) -> str:
    """As the documents write it: no zero in front of a decimal point, unless the form ends in an exclamation mark."""
    if form.endswith("!"):
        return format(value, form[:-1])
    text = FORMS[form](value) if form in FORMS else format(value, form)
    return re.sub(r"^([+-]?)0\.", r"\1.", text)


@cache
def read(file: str) -> Any:
    path = ROOT / file
    return read_gzipped(path) if path.suffix == ".gz" else json.loads(path.read_text(encoding="utf-8"))


def text_of(number: Number) -> str:
    value = read(number.file)
    if callable(number.way):
        return written(number.way(value), number.form)
    for key in number.way.split("/"):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return written(value, number.form)


def filled(claim: Claim) -> str:
    """The sentence with the numbers of its files."""
    return " ".join(claim.text.format(*map(text_of, claim.numbers)).split())


@cache
def squeezed(document: str) -> str:
    text = (ROOT / document).read_text(encoding="utf-8")
    return " ".join(re.sub(r"\n\s*(?:# )?", " ", text).replace("**", "").split())


def of(file: str, system: str, metric: str, form: str = ".3f") -> Number:
    return Number(file, f"systems/{system}/{metric}", form)


def against(file: str, system: str, metric: str, what: str, form: str = "+.3f", reference: str = "abmll") -> Number:
    return Number(file, f"against_{reference}/{system}/{metric}/{what}", form)


def with_interval(file: str, system: str, metric: str = "nll_scaled", reference: str = "abmll") -> tuple[Number, ...]:
    return tuple(
        against(file, system, metric, what, reference=reference) for what in ("difference", "interval/0", "interval/1")
    )


BEFORE = "before_adaptation_against_pretrained/{}/{}/{}"
SHOWN = "{} [{}, {}]"
