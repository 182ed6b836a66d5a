"""A part of a configuration that cannot work is refused by name, before a model is loaded.

Of a comparison: what a system may have of its own. Of a run that is trained: what may still be set. Of any run:
settings that contradict each other.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from abmll.adapters.peft import read_peft
from abmll.config import CompareConfig, RunConfig, TrainingConfig
from abmll.errors import AbmllError
from abmll.kernels import check_usable
from abmll.methods import method_class
from abmll.models.load import choose_device
from abmll.prompts.encode import Encoder
from abmll.prompts.in_context import with_examples
from abmll.question import Task
from abmll.runs.resolved import ResolvedRun
from abmll.runs.tracking import check_trackers

log = logging.getLogger(__name__)

SHARED: Mapping[str, str] = {
    "model": "all systems answer by one base model, loaded once; compare another one in a comparison of its own",
    "tasks.train": "all systems train on the tasks of the comparison",
    "tasks.validation": "all systems are chosen by the tasks of the comparison",
    "tasks.unseen": "all systems are compared on the tasks of the comparison",
    "tasks.leak_check": "it is about the tasks of the comparison",
    "adaptation.draws": "a mean over fewer draws, or others, is no comparison",
    "adaptation.seed": "all systems adapt to the same examples of each draw",
    "adaptation.test_questions": "scores on other questions are no comparison",
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


@contextmanager
def of_system(name: str) -> Iterator[None]:
    """An error inside says of which system of a comparison it is."""
    try:
        yield
    except AbmllError as error:
        raise AbmllError(f"systems.{name}: {error}") from error


def check_systems(config: CompareConfig, runs: Mapping[str, RunConfig]) -> None:
    """Refuse what a system of a comparison cannot have of its own.

    Args:
        config: of the comparison.
        runs: system -> its configuration with one of the seeds.

    Raises:
        AbmllError: names system, field, value and the comparison's own; says why and what to do.
    """
    if config.training.seed not in (TrainingConfig().seed, *config.seeds):
        raise AbmllError(
            f"training.seed={config.training.seed}: a comparison trains by its `seeds`, {_shown(list(config.seeds))}; "
            f"give seeds=[{config.training.seed}]"
        )
    base = dict(fields_of(config.model_dump(mode="json")))
    for name, own in config.systems.items():
        given = dict(fields_of(own))
        with of_system(name):
            if given.get("name", name) != name:
                raise AbmllError(f"name is {given['name']!r}, but a system is called as its key says; leave it out")
            if "training.seed" in given:
                raise AbmllError(
                    f"training.seed is {given['training.seed']!r}, but all systems are trained with the seeds of the "
                    f"comparison, {_shown(list(config.seeds))}: leave it out, and give `seeds`"
                )
            _check_shared(base, dict(fields_of(runs[name].model_dump(mode="json"))))


def _check_shared(base: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    for field in dict.fromkeys((*base, *mine)):
        why = _why(field, SHARED)
        if why and base.get(field) != mine.get(field):
            raise AbmllError(
                f"{field} is {_shown(mine.get(field))}, but the comparison has {_shown(base.get(field))}: {why}. Leave "
                "it out here, or set it for all"
            )


def check_run(run: ResolvedRun, *folders: Path) -> None:
    """Refuse settings of a run that is to be trained that cannot work, together or here.

    Args:
        run: its configuration.
        folders: where it is to be trained; what one that has begun needs no more is not looked at.

    Raises:
        AbmllError: names the field and its value; says what to do.
    """
    config = run.config
    check_settings(run)
    check_trackers(config.tracking.tracker)
    if not folders or not all((folder / "checkpoints").is_dir() for folder in folders):
        _check_start(config)
    every, iterations = run.training.validate_every, run.training.iterations
    if every is not None and iterations and every > iterations:
        log.warning("%s: training.validate_every=%d never comes in %d iterations", config.name, every, iterations)


def check_settings(run: ResolvedRun) -> None:
    """Refuse settings that cannot adapt or answer, together or on this machine.

    Raises:
        AbmllError: names the field and its value; says what to do.
    """
    config, settings = run.config, run.settings
    check_usable(config.engine.kernels, choose_device(config.model.device))
    a, text = config.adaptation, config.likelihood
    if a.sampler == "activation" and method_class(config.method.name).has_std:
        if getattr(settings, "std_form", "square") == "log_std":
            raise AbmllError(
                "adaptation.sampler=activation cannot draw from method.std_form=log_std (it has no low-rank variance); "
                "use adaptation.sampler=weight"
            )
        if not text.share_prefix:
            raise AbmllError(
                "adaptation.sampler=activation with likelihood.share_prefix=false would draw a prompt's noise once per "
                "choice; use adaptation.sampler=weight"
            )
    if a.in_context and text.template == "chat":
        raise AbmllError(
            "adaptation.in_context puts examples before the prompt, which likelihood.template=chat has no place for; "
            "use likelihood.template=plain, or a template of your own"
        )


def _check_start(config: RunConfig) -> None:
    """The LoRA to start from is there and has the rank of the run."""
    if config.adapter.start is None:
        return
    lora = read_peft(Path(config.adapter.start).expanduser())
    if lora.rank != config.adapter.rank:
        raise AbmllError(
            f"adapter.rank is {config.adapter.rank}, but the LoRA of adapter.start ({config.adapter.start}) has rank "
            f"{lora.rank}: set adapter.rank={lora.rank}"
        )


def check_encoded(tasks: tuple[Task, ...], encoder: Encoder, *, in_context: bool) -> None:
    """Refuse tasks that do not fit a model: its template, its letters. Asks one question of each.

    Raises:
        AbmllError: a question cannot be encoded.
    """
    for question in (question for task in tasks for question in (*task.train, *task.test)[:1]):
        encoder(question)
        if in_context:
            with_examples(question, (), encoder)


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
    one, other = (dict(fields_of(config.model_dump(mode="json"))) for config in (before, now))
    rules = {**TRAINED, **(also or {})}
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
