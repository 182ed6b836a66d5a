"""A part of a configuration that cannot work is refused by name.

Of a comparison: what a system may have of its own, and tasks that do not fit a model. Of a run that is trained: what
may still be set.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from abmll.config import RunConfig, TrainingConfig
from abmll.errors import AbmllError
from abmll.prompts.encode import Encoder
from abmll.question import Task

SHARED: Mapping[str, str] = {
    "model": "all systems answer by one base model, loaded once; compare another one in a comparison of its own",
    "tasks.train": "all systems train on the tasks of the comparison",
    "tasks.validation": "all systems are chosen by the tasks of the comparison",
    "tasks.unseen": "all systems are compared on the tasks of the comparison",
    "tasks.leak_check": "it is about the tasks of the comparison",
    "adaptation.draws": "a mean over fewer draws, or others, is no comparison",
    "adaptation.seed": "all systems adapt to the same examples of each draw",
    "adaptation.test_questions": "scores on other questions are no comparison",
    "adaptation.meta_rows": "scores at temperatures learned from more or fewer rows are no comparison",
}
"""Fields, and whole sections, of which a system of a comparison can have no value of its own, and why."""

PAST = "the run is trained: train another one"
NO_TRAINING = "it is for training, and the run is trained"
TRAINED: Mapping[str, str] = {
    "adapter": f"its adapter has it; {PAST}",
    "method.name": PAST,
    "method.preset": "each of its settings is in the run's config.yaml by name; set those",
    **{f"method.std_{part}": f"its adapter has it; {PAST}" for part in ("form", "init", "relative", "floor")},
    **dict.fromkeys(("method.episodes", "method.inner_steps", "method.batch_size", "method.warmup"), NO_TRAINING),
    **dict.fromkeys(("method.inner_schedule", "method.temperature_lr", "method.outer_"), NO_TRAINING),
    "likelihood.temperature": "its adapter has it, as it was learned or set; train another run",
    "likelihood.learn_temperature": NO_TRAINING,
    "training": f"{NO_TRAINING} (training.micro_batch alone can be set)",
    "adaptation.meta_rows": "the training tasks are answered at the end of `abmll train`; call that again with it",
    "tracking": NO_TRAINING,
}
"""Fields, sections and beginnings of names that cannot be set of a run that is trained, and why."""
STILL = ("training.micro_batch",)

OWN_ROWS: Mapping[str, str] = {
    "adaptation.examples": "all rows are adapted to; --hold-back keeps some of them out",
    "adaptation.draws": "there is one adaptation, to all rows",
    "adaptation.test_questions": "all rows that are given are answered",
    "adaptation.folds": "the check of `adapt --save` has folds of its own",
    "adaptation.in_context": "it is for unseen tasks that are scored",
    "adaptation.content_free": "it is for unseen tasks that are scored",
    "adaptation.lengths": "it is for unseen tasks that are scored",
    "tasks": "the rows are those of the file that is given",
}
"""What more cannot be set where a user's own rows are adapted to or answered."""


def fields_of(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a configuration, with the path to it.

    >>> list(fields_of({"adapter": {"rank": 8}, "name": "mine"}))
    [('adapter.rank', 8), ('name', 'mine')]
    """
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from fields_of(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def is_shared(field: str) -> bool:
    """Whether no system of a comparison can have a value of its own, see `SHARED`.

    >>> is_shared("adaptation.seed"), is_shared("adaptation.steps")
    (True, False)
    """
    return bool(_why(field, SHARED))


@contextmanager
def of_system(name: str) -> Iterator[None]:
    """An error inside says of which system of a comparison it is."""
    try:
        yield
    except AbmllError as error:
        raise AbmllError(f"systems.{name}: {error}") from error


def check_systems(comparison: Mapping[str, Any], systems: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse what a system of a comparison cannot have of its own.

    Args:
        comparison: values of its configuration, as JSON.
        systems: of each system, the values of its configuration with one of the seeds.

    Raises:
        AbmllError: names system, field, value and the comparison's own; says why and what to do.
    """
    seed, seeds = comparison["training"]["seed"], comparison["seeds"]
    if seed not in (TrainingConfig().seed, *seeds):
        raise AbmllError(
            f"training.seed={seed}: a comparison trains by its `seeds`, {_shown(seeds)}; give seeds=[{seed}]"
        )
    base = dict(fields_of(comparison))
    for name, own in comparison["systems"].items():
        given = dict(fields_of(own))
        with of_system(name):
            if given.get("name", name) != name:
                raise AbmllError(f"name is {given['name']!r}, but a system is called as its key says; leave it out")
            if "training.seed" in given:
                raise AbmllError(
                    f"training.seed is {given['training.seed']!r}, but all systems are trained with the seeds of the "
                    f"comparison, {_shown(seeds)}: leave it out, and give `seeds`"
                )
            _check_shared(base, dict(fields_of(systems[name])))


def _check_shared(base: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    for field in dict.fromkeys((*base, *mine)):
        why = _why(field, SHARED)
        if why and base.get(field) != mine.get(field):
            raise AbmllError(
                f"{field} is {_shown(mine.get(field))}, but the comparison has {_shown(base.get(field))}: {why}. Leave "
                "it out here, or set it for all"
            )


def check_encoded(tasks: tuple[Task, ...], encoder: Encoder, *, in_context: bool) -> None:
    """Refuse tasks that do not fit a model: its template, its letters. Asks one question of each.

    Raises:
        AbmllError: a question cannot be encoded.
    """
    for question in (question for task in tasks for question in (*task.train, *task.test)[:1]):
        encoder(question)
        if in_context:
            encoder.with_examples(question, ())


def check_trained(before: RunConfig, now: RunConfig, where: object, also: Mapping[str, str] | None = None) -> None:
    """Refuse a change that a trained run cannot take any more, or that would have no effect.

    Args:
        before: the run's own configuration.
        now: with what the user set.
        where: what the message calls the run.
        also: more fields that cannot be set in this command, and why.

    Raises:
        AbmllError: names the field, its value and that of the run; says why.
    """
    check_fixed(before, now, where, {**TRAINED, **(also or {})})


def check_fixed(before: RunConfig, now: RunConfig, where: object, rules: Mapping[str, str]) -> None:
    """Refuse another value of a field that cannot be set.

    Args:
        before: the run's own configuration.
        now: with what the user set.
        where: what the message calls the run.
        rules: fields, sections and beginnings of names that cannot be set, and why.

    Raises:
        AbmllError: names the field, its value and that of the run; says why.
    """
    one, other = (dict(fields_of(config.model_dump(mode="json"))) for config in (before, now))
    for field in dict.fromkeys((*one, *other)):
        why = "" if field in STILL else _why(field, rules)
        if why and one.get(field) != other.get(field):
            is_, was = _shown(other.get(field)), _shown(one.get(field))
            raise AbmllError(f"{where}: {field}={is_} cannot be set (it is {was}): {why}")


def _why(field: str, rules: Mapping[str, str]) -> str:
    """The reason of the rule for a field, its section or the beginning of its name; empty if there is none."""
    return next((why for name, why in rules.items() if _covers(name, field)), "")


def _covers(name: str, field: str) -> bool:
    return field == name or field.startswith(f"{name}.") or (name.endswith("_") and field.startswith(name))


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
