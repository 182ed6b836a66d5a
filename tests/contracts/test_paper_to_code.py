"""docs/method.md against the code: symbols, defaults, names, and the tests that hold its facts."""

import ast
import importlib
import importlib.util
import re
from functools import cache, reduce
from pathlib import Path
from typing import Any

import pytest

from abmll.config import AdaptationConfig, AdapterConfig
from abmll.methods import METHODS, resolve_settings
from abmll.methods.base import Settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
SYMBOL = r"^\| \$[^|]+\$ \| `(\w+)` \| [^|]+ \| `method\.(\w+)` \| (\S+) \| `(abmll[\w.]+)` \|$"
SYMBOLS = re.findall(SYMBOL, PAGE, re.M)
LETTERS = [letter for letter, *_ in SYMBOLS]
COMPUTED = re.findall(r"^\| (.+) \| `(abmll\.[\w.]+)` \|$", PAGE.partition("computed in one place")[2], re.M)
NAMES = sorted({name for _, name in COMPUTED} | {name for *_, name in SYMBOLS})
FACTS = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", PAGE)


def test_the_tables_were_read() -> None:
    assert LETTERS == ["beta", "gamma_m", "gamma_p", "c", "a0", "b0", "f", "eps", "e"]
    assert len(COMPUTED) >= 20
    assert len(FACTS) >= 25


def test_nothing_is_in_two_places() -> None:
    for column in (list(dict(COMPUTED)), [name for _, name in COMPUTED], [name for *_, name in SYMBOLS]):
        assert len(set(column)) == len(column)
    assert len(dict(COMPUTED)) == len(COMPUTED)


# -------------------- symbols


@cache
def docstrings() -> tuple[tuple[str, str], ...]:
    """(module or module.Class or module.function, docstring) of everything in the package that has one."""
    found = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                found.append((module if isinstance(node, ast.Module) else f"{module}.{node.name}", text))
    return tuple(found)


def claims(letter: str, text: str) -> list[str]:
    """Where a docstring says what a letter stands for: names of entries that begin with it, or "" for a sentence."""
    entries = re.findall(rf"^\s*([\w, ]+): {letter}(?=[,.:;]|\s+is\b|$)", text, re.M)
    said = re.search(rf"(?<![\w`.]){letter}, (?:the|an?) \w+|\bwith {letter} (?:the|an?|standard) \w+", text)
    return entries or [""] * bool(said)


@pytest.mark.parametrize("letter", LETTERS)
def test_a_symbol_stands_in_one_docstring_that_of_its_attribute(letter: str) -> None:
    (attribute,) = [name for found, *_, name in SYMBOLS if found == letter]
    owner, _, field = attribute.rpartition(".")
    found = [(where, entry) for where, text in docstrings() for entry in claims(letter, text)]
    assert found == [(owner, field)]


@pytest.mark.parametrize(
    ("text", "letter", "expected"),
    [
        ("Attributes:\n    task_kl_weight: beta, weight of the KL.", "beta", ["task_kl_weight"]),
        ("Attributes:\n    mean_prior_variance: c.\n    rest: of c.", "c", ["mean_prior_variance"]),
        ("One layer: O, I, and f, the std that u = 0 gives.", "f", [""]),
        ("sqrt(V) * e with e standard normal per token.", "e", [""]),
        ("r = s B' A' + f and eps^2, with no claim of beta.", "f", []),
    ],
)
def test_claims_are_seen(text: str, letter: str, expected: list[str]) -> None:
    assert claims(letter, text) == expected


@pytest.mark.parametrize(("setting", "default"), [(setting, default) for _, setting, default, _ in SYMBOLS])
def test_the_default_of_a_symbol_is_that_of_the_code(setting: str, default: str) -> None:
    assert getattr(resolve_settings("abmll"), setting) == float(default)


# -------------------- defaults in the text


def short(value: float) -> str:
    """A number as the page writes it.

    >>> short(3e-3), short(0.34), short(2.06e-9), short(1.0)
    ('3e-3', '.34', '2.06e-9', '1')
    """
    if 0.01 <= value < 1e4:
        return f"{value:g}".removeprefix("0")
    digits, exponent = f"{value:.2e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def defaults_in_words() -> list[str]:
    s: Any = resolve_settings("abmll")
    rules = {"sgd": "SGD", "adamw": "AdamW"}
    adapter, adaptation = AdapterConfig(), AdaptationConfig()
    assert (s.inner_optimizer, s.inner_optimizer_state, s.inner_steps) == ("adamw", "fresh", 5)
    assert (s.phi, s.std_start, s.std_form, s.reduction) == ("reset", "init", "square", "mean")
    assert s.inner_lr == s.std_lr
    return [
        f"| neither: $f$ = {short(s.std_init)} |",
        f"| $\\varepsilon$ = {short(s.std_floor)} |",
        f"| {short(s.task_kl_weight)}, {s.mean_prior_weight:g}, {s.precision_prior_weight:g} |",
        f"| `{s.outer_step}` | `outer_step`:",
        f"no weight decay, rate {short(s.inner_lr)} for means and stds; new moments for each task |",
        f"| means: {rules[s.outer_optimizer]} at rate {short(s.outer_lr)} on",
        f"stds: AdamW at {short(s.outer_std_lr)} |",
        f"| {s.training_samples}, by the `{s.training_sampler}` sampler |",
        f"| {adaptation.samples}, by the `{adaptation.sampler}` sampler;",
        f"| {adapter.rank}, {adapter.alpha:g}, {' and '.join(adapter.targets)} |",
        f"| six batches of {s.batch_size} from one task;",
        f"| {adaptation.steps} inner steps on {adaptation.steps} batches of {adaptation.batch_size} from its "
        f"{adaptation.examples} examples |",
    ]


def presets_in_words() -> list[str]:
    paper: Any = resolve_settings("abmll", "paper")
    variance: Any = resolve_settings("abmll", "paper-variance")
    assert {paper.inner_lr, paper.outer_lr, paper.std_lr, paper.outer_std_lr} == {1e-5}
    assert paper.mean_prior_weight == paper.precision_prior_weight
    changed = {name for name, value in variance if value != getattr(paper, name)}
    assert changed == {"std_init", "std_floor"}
    assert (paper.reduction, paper.outer_step, paper.std_start, paper.std_state) == (
        *("sum", "identity", "copy", "float64"),
    )
    return [
        f"$f$ = {short(paper.std_init)}, sums, $\\beta$ = {short(paper.task_kl_weight)}, $\\gamma_m = \\gamma_p$ = "
        f"{short(paper.mean_prior_weight)}, `identity`, `copy`, all rates 1e-5.",
        f"differs in $f$ = {short(variance.std_init)} and $\\varepsilon$ = {short(variance.std_floor)} alone.",
    ]


def rates_in_words() -> list[str]:
    of: dict[str, Any] = {name: resolve_settings(name) for name in METHODS}
    assert (of["lora"].inner_lr, of["lora"].outer_lr) == (of["structured"].inner_lr, of["structured"].outer_lr)
    assert of["reptile"].outer_schedule == "linear"
    adamw = ["fomaml", "core", "meta-sgd", "anil", "maml", "maml-en-llm", "imaml"]
    assert [name for name, s in of.items() if s.outer_optimizer == "adamw"] == adamw
    assert {(of[name].inner_lr, of[name].outer_lr) for name in ("fomaml", "meta-sgd", "anil")} == {(1.2e-3, 3.7e-5)}
    difference = "SGD on $\\theta - \\phi$"
    return [
        f"| `pretrained` | {short(of['pretrained'].inner_lr)}, in adaptation | |",
        f"| `lora`, `structured` | {short(of['lora'].inner_lr)} | {difference}, {short(of['lora'].outer_lr)} |",
        f"| `reptile` | {short(of['reptile'].inner_lr)} | {difference}, {short(of['reptile'].outer_lr)}, linear to 0 |",
        f"| `fomaml` | {short(of['fomaml'].inner_lr)} | AdamW, {short(of['fomaml'].outer_lr)} |",
        f"| `abmll` | {short(of['abmll'].inner_lr)}, stds {short(of['abmll'].std_lr)} | {difference}, "
        f"{short(of['abmll'].outer_lr)}; stds AdamW, {short(of['abmll'].outer_std_lr)} |",
    ]


@pytest.mark.parametrize("words", [*defaults_in_words(), *presets_in_words(), *rates_in_words()])
def test_a_default_in_the_text_is_that_of_the_code(words: str) -> None:
    assert words in " ".join(PAGE.split())


def test_settings_that_the_text_names_are_there() -> None:
    known = {f"method.{name}" for method in METHODS.values() for name in method.settings_class.model_fields}
    named = set(re.findall(r"`(method\.[a-z_]+)\b", PAGE)) - {"method.name"}
    assert len(named) >= 10
    assert named <= known


# -------------------- names and tests


@pytest.mark.parametrize("name", NAMES)
def test_name_exists(name: str) -> None:
    parts = name.split(".")
    depth = max(i for i in range(1, len(parts) + 1) if _is_module(parts[:i]))
    module = importlib.import_module(".".join(parts[:depth]))

    def member(owner: object, attribute: str) -> object:
        if isinstance(owner, type) and issubclass(owner, Settings) and attribute in owner.model_fields:
            return owner.model_fields[attribute]
        return getattr(owner, attribute)

    assert reduce(member, parts[depth:], module) is not None


def _is_module(parts: list[str]) -> bool:
    try:
        return importlib.util.find_spec(".".join(parts)) is not None
    except ModuleNotFoundError:  # a name below something that is no package
        return False


@pytest.mark.parametrize(("file", "name"), FACTS)
def test_a_fact_is_held_by_a_test_that_exists(file: str, name: str) -> None:
    assert re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.M)
