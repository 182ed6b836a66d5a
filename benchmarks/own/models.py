"""Answers of a base model to every cell: as it is, with the labelled rows in its prompt, and after adapting to them.

    python -m benchmarks.own models --model FOLDER --data SETS --out ANSWERS/qwen-1.5b --until 540

Everything is as `abmll adapt BASE ROWS` and its check have it: the likelihood that the base reads the labelled rows
best by (cloze beyond 26 labels), a LoRA from zero, its rate and steps, long texts cut in the middle, prompts with
examples of up to 2,048 tokens on a GPU. Run it as often as there is room for on the card: a cell is one process's, a
cell that is there stays. What is not finite is a result.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from abmll.adapters.attach import detach
from abmll.adapters.folder import read_adapter
from abmll.config import ModelConfig, RunConfig, check, load_config, merge
from abmll.errors import NonFiniteError
from abmll.everyday.bases import LONGER, NEW_LORA
from abmll.everyday.session import OWN_DEFAULTS, PROMPT_TOKENS
from abmll.metrics.predictions import pad_probabilities
from abmll.models import LanguageModel
from abmll.prompts.branches import fed_tokens
from abmll.prompts.encode import LETTERS, LikelihoodKind
from abmll.question import Question, Task
from abmll.systems.adapters import use_adapter
from abmll.systems.build import build_batcher, build_system
from abmll.systems.likelihood_choice import choose_likelihood
from abmll.systems.plans import AdaptationPlan, PredictionPlan
from abmll.systems.system import System
from benchmarks.own.cells import Arrays, Asked, answer_entries, not_finite_entries, right_answers

AS_IT_IS, IN_PROMPT, ADAPTED = "as it is", "prompt", "adapted"
SYSTEMS = (AS_IT_IS, IN_PROMPT, ADAPTED)
BATCH_TOKENS = {"cuda": 16384, "cpu": 2048}
"""Padded tokens of a forward pass."""
LOGIT_BYTES = 10
"""Of a logit while answers are read: two by the model in bfloat16, four in float32, four of its log-softmax."""
MOST_LOGITS = {"cuda": 3 << 30, "cpu": 1 << 28}
"""Bytes of logits at a time: several processes share a card, and each captured pass keeps its own."""
LOOKED_AT = 16
"""Rows by which it is measured how many of their tokens answers are read from."""

Answering = Callable[[Sequence[Question]], np.ndarray]
"""Rows -> their probabilities."""
Answers = tuple[np.ndarray, np.ndarray, tuple[float, float]]
"""Probabilities of the labelled rows out of their fold and of the test rows; seconds, see `answer_entries`."""


def own_config(model: ModelConfig, settings: dict[str, object]) -> RunConfig:
    """A LoRA from zero on a base model as `abmll adapt BASE` has it, with other settings of its adaptation."""
    sections = {
        "model": model.model_dump(mode="json"),
        "likelihood": {"kind": "auto"},
        "method": NEW_LORA,
        "adaptation": LONGER,
    }
    for more in (OWN_DEFAULTS, settings):
        sections = merge(sections, more)
    return check(RunConfig, sections, "benchmarks.own")


def run_config(run: Path, model: ModelConfig, settings: Mapping[str, object]) -> RunConfig:
    """A run as `abmll adapt RUN` has it, on a base model of one's own, with other settings of its adaptation."""
    sections = load_config(RunConfig, run / "config.yaml").model_dump(mode="json")
    for more in ({"model": model.model_dump(mode="json")}, OWN_DEFAULTS, settings):
        sections = merge(sections, more)
    return check(RunConfig, sections, str(run))


@dataclass
class Bench:
    """A base model, and a system of each likelihood, of which at most one is on the model.

    Systems stay, so that steps which were captured for one cell serve the next.

    Attributes:
        base: the model.
        config: of a LoRA from zero on it, whose likelihood is `auto`; or of a run.
        prompt_tokens: of the longest prompt with examples.
        run: a run directory whose adapter is adapted; None: one that begins at zero.
        systems: by likelihood, as they were first asked for.
    """

    base: LanguageModel
    config: RunConfig
    prompt_tokens: int = PROMPT_TOKENS
    run: Path | None = None
    systems: dict[LikelihoodKind, System] = field(default_factory=dict)

    def close(self) -> None:
        """Take the adapters off the base model."""
        for system in self.systems.values():
            system.close()

    def system_for(self, rows: Sequence[Question]) -> System:
        """A system, which is on the model: with the likelihood that the base reads labelled rows best by, or the run's.

        A run that answers by letters reads by `cloze` where there are more labels than letters.
        """
        for system in self.systems.values():
            detach(self.base.model, system.method.adapters)
        kind = self._kind_for(rows)
        if kind in self.systems:
            for path, layer in self.systems[kind].method.adapters.layers.items():
                self.base.model.set_submodule(path, layer)
        else:
            likelihood = self.config.likelihood.model_copy(update={"kind": kind})
            system = build_system(self.config.model_copy(update={"likelihood": likelihood}), self.base)
            self.systems[kind] = system
            if self.run is not None:
                use_adapter(read_adapter(self.run / "adapter"), system, self.run)
        return self.systems[kind]

    def _kind_for(self, rows: Sequence[Question]) -> LikelihoodKind:
        kind = self.config.likelihood.kind
        if kind == "auto":
            return choose_likelihood(self.config, self.base, rows).kind
        return "cloze" if len(rows[0].choices) > len(LETTERS) else kind


def answers_of(bench: Bench, asked: Asked, systems: Sequence[str] = SYSTEMS) -> Arrays:
    """All answers to a cell, as `benchmarks.own.answers` reads them; of a system that is not finite, why."""
    out, system = right_answers(asked), bench.system_for(asked.labelled)
    in_prompt = partial(_in_prompt, tokens=bench.prompt_tokens)
    ways: dict[str, Callable[[System, Asked], Answers]]
    ways = {AS_IT_IS: _as_it_is, IN_PROMPT: in_prompt, ADAPTED: _adapted}
    for name in (name for name in ways if name in systems):
        try:
            own, test, seconds = ways[name](system, asked)
            out |= answer_entries(name, own, test, seconds)
        except NonFiniteError as error:
            out |= not_finite_entries(name, str(error))
    return out | {"likelihood": np.array(system.config.likelihood.kind)}


def _as_it_is(system: System, asked: Asked) -> Answers:
    system.adapt(Task("nothing", asked.labelled[:2]), AdaptationPlan(2, steps=0))
    return _timed(system, lambda: asked.labelled, lambda: asked.test)


def _in_prompt(system: System, asked: Asked, tokens: int) -> Answers:
    """Every row with as many labelled ones before it as fit: of a labelled one, those of the other folds."""
    text = system.config.likelihood
    longer = text.model_copy(update={"max_tokens": max(text.max_tokens, tokens)})
    config = system.config.model_copy(update={"likelihood": longer})
    prompting = replace(system, batcher=build_batcher(config, system.language_model))
    prompting.adapt(Task("nothing", asked.labelled[:2]), AdaptationPlan(2, steps=0))
    encoder = prompting.batcher.encoder

    def own() -> list[Question]:
        rows = list(asked.labelled)
        for fold in asked.folds:
            examples = [asked.labelled[i] for i in fold.fitted]
            for i in fold.answered:
                rows[i] = encoder.with_examples(asked.labelled[i], examples)
        return rows

    return _timed(prompting, own, lambda: [encoder.with_examples(row, asked.labelled) for row in asked.test])


def _timed(system: System, own: Callable[[], Sequence[Question]], test: Callable[[], Sequence[Question]]) -> Answers:
    """Answers without adapting; making the rows counts as answering them."""
    of_own, began = answering(system, asked := own())(asked), time.perf_counter()
    rows = test()
    of_test = answering(system, rows)(rows)
    return of_own, of_test, (0.0, (time.perf_counter() - began) / len(rows) * 1000)


def _adapted(system: System, asked: Asked) -> Answers:
    plan = plan_for_rows(system, asked.labelled)
    by_folds = system.answer_by_folds(asked.labelled, asked.folds, plan)
    began = time.perf_counter()
    system.adapt(Task("cell", asked.labelled))
    between = time.perf_counter()
    test = answering(system, asked.test)(asked.test)
    seconds = (between - began, (time.perf_counter() - between) / len(test) * 1000)
    return pad_probabilities([answer.probabilities for answer in by_folds]), test, seconds


def answering(system: System, rows: Sequence[Question]) -> Answering:
    """Rows -> their probabilities, in batches that suit such rows."""
    plan = plan_for_rows(system, rows)
    return lambda some: pad_probabilities([answer.probabilities for answer in system.answer(some, plan)])


def plan_for_rows(system: System, rows: Sequence[Question]) -> PredictionPlan:
    """Mean weights, and so many tokens at a time that neither they nor the logits of their answers fill the memory.

    Letters are read from one token of a row; of a cloze of 77 labels most of the row is labels, and each of their
    tokens is read from one whose logits are over the whole vocabulary.
    """
    encoded = system.batcher.encode(rows[:LOOKED_AT])
    fed = [fed_tokens(row.continuations, row.tree) for row in encoded]
    share = max((1 + labels) / (len(row.prefix) + labels) for row, labels in zip(encoded, fed, strict=True))
    kind = "cuda" if system.language_model.device.type == "cuda" else "cpu"
    vocabulary = int(system.language_model.model.config.vocab_size)
    return PredictionPlan("mean", 1, most_tokens(share, vocabulary, MOST_LOGITS[kind], BATCH_TOKENS[kind]))


def most_tokens(share: float, vocabulary: int, most_bytes: int, most: int) -> int:
    """Tokens of a pass: `most`, or as many as have `most_bytes` of logits where a `share` of them is read.

    >>> most_tokens(0.005, 152_000, 3 << 30, 16384), most_tokens(0.8, 152_000, 3 << 30, 16384)
    (16384, 2649)
    """
    return max(1, min(most, int(most_bytes / (LOGIT_BYTES * vocabulary * share))))
