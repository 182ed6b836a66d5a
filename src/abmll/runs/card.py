"""The model card: README.md beside an adapter, in the Hugging Face hub's form.

It says only what files say: the adapter's facts, the run's record, the scores of its predictions. Whatever comes from
data and names is text in it, in Markdown as in YAML.
"""

import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import EvalResult, ModelCardData

from abmll.adapters.facts import AdapterFacts
from abmll.adapters.folder import EXTRAS_FILE, read_facts
from abmll.config import RunConfig, load_config
from abmll.errors import AbmllError
from abmll.files import seal, write_text
from abmll.metrics.usefulness import RUN, RUN_SCALED
from abmll.runs.record import ScoreRow, TaskFacts, TrainingRecord, broken_tasks, read_training_record, score_run

CARD_FILE = "README.md"
Form = Literal["adapter", "merged"]
MOST_ROWS = 200  # of a table
MOST_TEXT = 300  # characters of a name or a value
_END = "\n<!-- abmll wrote what is above; its SHA-256: "
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_PACKAGED = {"smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""Models that come as a package -> what they were made of."""
_WORD = re.compile(r"[a-z0-9_-]{1,40}")
_METRICS = (("accuracy", "accuracy"), ("nll", "negative log-likelihood, nats"), ("ece", "ECE, 15 bins"))
_OWN_ROWS = (RUN_SCALED, RUN)
"""Rows of a check's table that are the task's own answers, as they are given first."""
_STATED = "not stated: look at the source"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class About:
    """What a card speaks of besides the adapter's facts; all of it may be missing.

    Attributes:
        name: of the run or saved task.
        facts: of the adapter.
        note: the run's own.
        record: tasks that the shared weights were trained on.
        scores: of the run on unseen tasks.
        not_finite: unseen tasks on which its numbers are not finite, so that it has no scores there.
        adapting: settings that these were made with.
        details: of a saved task.
        licence: of the adapter itself, as the hub calls it.
        repository: on the hub, where its run is pushed to.
    """

    name: str
    facts: AdapterFacts
    note: str = ""
    record: TrainingRecord | None = None
    scores: tuple[ScoreRow, ...] = ()
    not_finite: tuple[str, ...] = ()
    adapting: Mapping[str, Any] | None = None
    details: Mapping[str, Any] | None = None
    licence: str | None = None
    repository: str | None = None


def about_run(run: Path, facts: AdapterFacts, details: Mapping[str, Any] | None = None, name: str = "") -> About:
    """What a run directory tells of its adapter or, with `details` and a name, of a saved task's.

    What is missing or damaged there is left out, with a warning.
    """
    about = About(name or run.resolve().name, facts, details=details)
    try:
        config = load_config(RunConfig, run / "config.yaml")
        about = replace(about, name=name or config.name, note=config.note, adapting=config.adaptation.model_dump())
        about = replace(about, record=read_training_record(run))
        if about.record is not None and facts.slot == "shared":
            examples = about.record.examples
            about = replace(about, scores=score_run(run, examples), not_finite=broken_tasks(run, examples))
    except AbmllError as error:
        log.warning("the model card of %s is less than it could be: %s", about.name, error)
    return about


def write_card(folder: Path, about: About, form: Form = "adapter") -> None:
    """Write README.md into a folder, unless somebody has edited the one that is there. No `Exception` comes of it."""
    try:
        file = folder / CARD_FILE
        if file.exists() and not is_ours(file.read_text(encoding="utf-8")):
            log.info("%s is not as abmll wrote it, and is left as it is", file)
            return
        text = card_text(about, form)
        write_text(file, f"{text}{_END}{seal(text)} -->\n")
    except Exception as error:
        log.warning("%s: no model card was written (%s)", folder, error)


def rewrite_run_card(run: Path) -> None:
    """Write the card of a run's adapter again, with the scores that are there now. No `Exception` comes of it."""
    try:
        facts = read_facts(run / "adapter" / EXTRAS_FILE)
    except AbmllError as error:
        log.warning("%s: no model card was written (%s)", run, error)
        return
    write_card(run / "adapter", about_run(run, facts))


def is_ours(text: str) -> bool:
    """Whether a card is as it was written."""
    body, _, end = text.rpartition(_END)
    return end == f"{seal(body)} -->\n"


def card_text(about: About, form: Form = "adapter") -> str:
    """The card, ready for `huggingface_hub.ModelCard`."""
    facts = about.facts
    sections = [
        f"# {plain(about.name)}",
        *_what(about, form),
        "## Method",
        _table(("", ""), _settings(facts)),
        "## Data",
        *_data(about),
        "## Scores",
        *_scores(about),
        "## What it is not",
        *_limits(facts, form),
        "## Use",
        *_use(facts, form),
        *_from_hub(about),
    ]
    return f"---\n{_metadata(about, form).to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"


def plain(value: object) -> str:
    r"""A value as Markdown that shows it as it is, anywhere but at the start of a line: no markup, no HTML, no link, no
    line break, of bounded length.

    >>> print(plain("<b>*x*|\n[y](http://z)"))
    \<b\>\*x\*\| \[y\](http\://z)
    """
    text = " ".join(str(value).split())
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    text = text if len(text) <= MOST_TEXT else f"{text[: MOST_TEXT - 1]}…"
    return re.sub(r"([\\`*_\[\]<>!|~&$@:^]|(?<=www)\.)", r"\\\1", text)


def _metadata(about: About, form: Form) -> ModelCardData:
    base, facts = _hub_base(about.facts), about.facts
    sets = {task.dataset for task in (about.record.train if about.record else ()) if task.dataset}
    words = ["abmll", "lora", "meta-learning", *(["bayesian"] if facts.has_std else [])]
    return ModelCardData(
        base_model=base,
        datasets=sorted(sets) or None,
        library_name="peft" if form == "adapter" else "transformers",
        license=about.licence,
        tags=[*words, *([facts.method] if _WORD.fullmatch(facts.method) else [])],
        **_model_index(about),
    )


def _model_index(about: About) -> dict[str, Any]:
    """The scores in the hub's form (`model-index`); nothing without scores."""
    results = [
        EvalResult("multiple-choice", "abmll-task", name[:MOST_TEXT], metric, round(value, 4), metric_name=title)
        for name, values in _measured(about)
        for (metric, title), value in zip(_METRICS, values, strict=True)
        if value is not None
    ]
    return {"model_name": about.name, "eval_results": results} if results else {}


def _measured(about: About) -> list[tuple[str, tuple[float | None, ...]]]:
    """What was asked, and its accuracy, NLL and ECE."""
    if about.facts.slot == "shared":
        return [(row.task, (row.accuracy, row.nll, row.ece)) for row in about.scores[:MOST_ROWS]]
    check = (about.details or {}).get("check")
    table = check.get("table") if isinstance(check, Mapping) else None
    row = next((table[name] for name in _OWN_ROWS if name in table), None) if isinstance(table, Mapping) else None
    if not isinstance(check, Mapping) or not isinstance(row, Mapping) or row.get("not_finite"):
        return []
    values = [row.get(key) for key in ("accuracy", "nll")]
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        return []
    return [(f"{check.get('folds')} parts of its labelled rows", (*values, None))]


def _hub_base(facts: AdapterFacts) -> str | None:
    """The base model's id on the hub, if it has one: a folder has not, though it may look alike."""
    name = _PACKAGED.get(facts.base.name, facts.base.name)
    return name if _HUB_ID.fullmatch(name) and not Path(name).exists() else None


def _what(about: About, form: Form) -> list[str]:
    facts, base = about.facts, plain(about.facts.base.name)
    made = f"by abmll ({plain(facts.method or 'no method named')})"
    thing = "A LoRA" if form == "adapter" else "A whole model, into which a LoRA was merged,"
    if facts.slot == "shared":
        said = f"{thing} for {base}, meta-trained {made}. It was adapted to no task yet: it is the start from which "
        said += "a new task is adapted to with a few labelled examples and gradient steps."
    else:
        said = f"{thing} for {base}, adapted to one task, from weights that were meta-trained {made}."
    return [said, *([f"Its maker says: {plain(about.note)}"] if about.note else [])]


def _settings(facts: AdapterFacts) -> list[tuple[object, object]]:
    base, text = facts.base, facts.likelihood
    about_base = [base.name, base.revision and f"revision {base.revision}", base.dtype]
    given = {
        "base model": ", ".join(filter(None, about_base)),
        "written by": facts.written_by or "unknown",
        "method": facts.method or "unknown",
        "rank, alpha": f"{facts.rank}, {facts.alpha:g}",
        "adapted layers": _layers(facts),
        "standard deviations": "in abmll.safetensors; other programs use the means alone" if facts.has_std else "none",
        "answers": f"{text.kind} (normalisation {text.normalisation}, template {text.template}, temperature "
        f"{text.temperature:.4g}{'' if text.premise is None else f', premise {text.premise!r}'})",
    }
    return [*given.items(), *facts.settings.items()]


def _layers(facts: AdapterFacts) -> str:
    kinds = sorted({path.rpartition(".")[2] for path in facts.layers})
    return f"{len(facts.layers)} ({', '.join(kinds)})"


def _data(about: About) -> list[str]:
    record, details = about.record, about.details
    lines = []
    if details is not None:
        source = plain(details.get("source") or "rows of the user's")
        lines.append(
            f"Adapted to {plain(details.get('examples', 'some'))} labelled rows of {source} in "
            f"{plain(details.get('steps', 'some'))} steps. Licence of these rows: {_STATED}."
        )
    if record is None:
        return [*lines, "What the shared weights were trained on is not recorded here."]
    names = [t.name for t in record.validation]
    chosen = f" The step was chosen by {plain(', '.join(names))}." if names else ""
    return [
        *lines,
        f"Meta-trained for {record.step:,} meta-iterations on {record.examples:,} questions, drawn from the rows of:",
        _table(("task", "rows", "source", "licence of the rows"), map(_task_row, record.train)),
        f"Licences are those that the data's authors state, as abmll knows them; nobody checked them.{chosen}",
    ]


def _task_row(task: TaskFacts) -> tuple[object, ...]:
    return task.name, f"{task.rows:,}", task.source or "unknown", task.licence or _STATED


def _scores(about: About) -> list[str]:
    check = (about.details or {}).get("check")
    if isinstance(check, Mapping) and isinstance(check.get("table"), Mapping):
        return _check(check)
    if about.facts.slot == "task":
        return ["Not scored. `abmll adapt RUN ROWS --save NAME` ends with a check, whose table then stands here."]
    names = plain(", ".join(about.not_finite))
    broken = [f"On {names} its numbers are not finite (NaN or infinity): no scores."] if names else []
    if not about.scores:
        return broken or [
            "Not scored yet. `abmll adapt RUN TASKS` adapts to unseen tasks, predicts their test rows and writes their "
            "scores here."
        ]
    a = about.adapting or {}
    how = "answers are averaged over posterior draws" if about.facts.has_std else "answers are by the mean weights"
    return [
        f"On unseen tasks, each after adapting to {a.get('examples', 'some')} examples in {a.get('steps', 'some')} "
        f"steps; {how}. \\[ \\] is a 95 % bootstrap interval over questions, means over tasks are unweighted, and the "
        "training seed is one. These weights are the start of it: they have not been adapted yet.",
        *broken,
        *_score_table(about.scores),
    ]


def _score_table(scores: Sequence[ScoreRow]) -> list[str]:
    """The table, with the primary score, and what that is, where the files have it."""
    has_posterior = any(row.nll_posterior is not None for row in scores)
    titles = ("NLL posterior, nats", "NLL, nats") if has_posterior else ("NLL, nats",)
    table = _table(
        ("task", "questions", "draws", "accuracy %", *titles, "ECE"), (_score_row(row, has_posterior) for row in scores)
    )
    note = "NLL posterior: at the posterior of the task's temperature, given held-out examples; NLL, ECE: as stated."
    return [table, note] if has_posterior else [table]


def _score_row(row: ScoreRow, has_posterior: bool) -> tuple[object, ...]:
    low, high = row.accuracy_interval
    posterior = _estimate(row.nll_posterior, row.nll_posterior_interval)
    return (
        row.task,
        f"{row.questions:,}",
        row.draws,
        f"{100 * row.accuracy:.1f} [{100 * low:.1f}, {100 * high:.1f}]",
        *((posterior,) if has_posterior else ()),
        _estimate(row.nll, row.nll_interval),
        _estimate(row.ece, row.ece_interval),
    )


def _estimate(value: float | None, ends: tuple[float, float] | None) -> str:
    return "-" if value is None or ends is None else f"{value:.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"


def _check(check: Mapping[str, Any]) -> list[str]:
    """The table that `abmll adapt --save` ends with."""
    rows = [
        (name, *(_checked(row, key) for key in ("accuracy", "nll")))
        for name, row in check["table"].items()
        if isinstance(row, Mapping)
    ]
    return [
        f"By {plain(check.get('folds', 'some'))} parts of the {plain(check.get('n', 'same'))} labelled rows, each "
        "answered by what was fitted to the others; 95 % intervals.",
        _table(("", "accuracy", "NLL, nats"), rows),
        f"Verdict: {plain(check.get('verdict', 'none'))}.",
    ]


def _checked(row: Mapping[str, Any], key: str) -> str:
    return "not finite" if row.get("not_finite") else _between(row.get(key), row.get(f"{key}_interval"))


def _between(value: Any, ends: Any) -> str:
    numbers = [value, *(ends if isinstance(ends, list) else [])]
    if len(numbers) != 3 or not all(isinstance(number, int | float) for number in numbers):
        return "unknown"
    return f"{value:.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"


def _limits(facts: AdapterFacts, form: Form) -> list[str]:
    alone = (
        "It is no model by itself: it needs its base model, whose licence and limits remain."
        if form == "adapter"
        else "It holds the weights of its base model, whose licence and limits remain."
    )
    lines = [
        alone,
        f"It answers multiple-choice questions, read as above ({facts.likelihood.kind}); it was not made to chat or to "
        "write, and was not tested for it.",
        "Confidence that was measured on some tasks says nothing certain about others: measure on your own.",
        "Nobody looked for bias, or for harm that answers may do.",
    ]
    return ["\n".join(f"- {line}" for line in lines)]


def _use(facts: AdapterFacts, form: Form) -> list[str]:
    auto = "from transformers import AutoModelForCausalLM"
    if form == "merged":
        return [_code((auto,), 'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")')]
    base = _hub_base(facts) or facts.base.name
    by_peft = (
        f"base = AutoModelForCausalLM.from_pretrained({_literal(base)})",
        'model = PeftModel.from_pretrained(base, "THIS_FOLDER")',
    )
    by_us = (
        f"base = abmll.load_model({_literal(facts.base.name)})",
        'adapters = abmll.load_adapter("THIS_FOLDER", base)',
    )
    stds = ", its standard deviations too" if facts.has_std else ""
    return [
        "The means, by PEFT:",
        _code(("from peft import PeftModel", auto), *by_peft),
        f"All of it{stds}, by abmll:",
        _code(("import abmll",), *by_us),
    ]


def _from_hub(about: About) -> list[str]:
    """How the whole run is used from where it was pushed to."""
    if about.repository is None:
        return []
    run = f"hf://{about.repository}@COMMIT"
    task = f" --task {about.name}" if about.facts.slot == "task" else ""
    what = "The whole run is here, for `abmll`, with the commit of this repository in the place of COMMIT"
    command = f"abmll predict {run}{task} rows.csv -o out.csv"
    return [f"{what} (THIS_FOLDER is the folder of an adapter in it):", f"```\n{command}\n```"]


def _literal(text: str) -> str:
    """A text in Python, in ASCII; in double quotes where it holds none."""
    literal = ascii(text[:MOST_TEXT])
    return literal if '"' in text or "'" in text else f'"{literal[1:-1]}"'


def _code(imports: Sequence[str], *lines: str) -> str:
    return "\n".join(["```python", *imports, "", *lines, "```"])


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    every = list(rows)
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(map(plain, row))} |" for row in every[:MOST_ROWS]]
    left = len(every) - MOST_ROWS
    return "\n".join(lines) + (f"\n\nand {left:,} more" if left > 0 else "")
