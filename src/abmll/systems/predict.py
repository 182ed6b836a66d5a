"""Adapting to an unseen task by the same inner steps; predicting, and answering, by draws of the posterior."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import entr
from torch import Tensor

from abmll.adapters.layer import Sampler
from abmll.deprecation import renamed_keywords
from abmll.errors import NonFiniteError
from abmll.kernels.noise import key_tensor
from abmll.likelihood import ChoiceLikelihood
from abmll.methods.base import Method, Schedule
from abmll.methods.noise import POSTERIOR, Coordinates, StepCoordinates, adaptation_coordinates, prediction_keys
from abmll.metrics.calibration import check_finite
from abmll.metrics.predictions import Prediction
from abmll.process.stopping import stop_if_asked
from abmll.prompts.batches import ChoiceBatch
from abmll.prompts.collate import sorted_batches
from abmll.prompts.encode import EncodedQuestion
from abmll.question import Question, Task
from abmll.systems.plans import AdaptationPlan, PredictionPlan
from abmll.tasks.episodes import adaptation_batches
from abmll.training.batcher import Batcher
from abmll.training.finite import check_adapted, no_answers, rows_not_finite
from abmll.training.graphs import Graphs
from abmll.training.inner import inner_steps
from abmll.training.optimizers import GroupOptimizer, schedule_factor

Draw = tuple[Float[np.ndarray, "B K"], Float[np.ndarray, "B K"] | None]
"""Probabilities of a batch under one draw, over its choices and (letter) over the vocabulary; float64."""
Drawn = Iterable[tuple[list[int], list[Draw]]]
"""Places of a batch's questions among all, and its draws."""
_LEAST = float(np.finfo(np.float64).tiny)  # of a probability whose logarithm is taken


def adapt(
    method: Method,
    batcher: Batcher,
    task: Task,
    plan: AdaptationPlan,
    draw: int,
    optimizer: GroupOptimizer | None = None,
    graphs: Graphs | None = None,
) -> tuple[Question, ...]:
    """Make phi from theta and adapt it to a task; returns the examples that were used.

    Args:
        method: holds theta and phi.
        batcher: encodes questions.
        task: its train rows are drawn from.
        plan: examples and steps.
        draw: number of the draw of examples.
        optimizer: over the method's task groups, to be used again and again with `graphs`; its moments are dropped.
        graphs: where steps are captured.

    Raises:
        AbmllError: the task has too few train rows.
        NonFiniteError: a loss or gradient was not finite, and nothing was updated by it; or phi is not, at the end.
        Stopped: between two steps, if the process was asked to stop.
    """
    examples, batches = adaptation_batches(
        task, examples=plan.examples, steps=plan.steps, batch_size=plan.batch_size, seed=plan.seed, draw=draw
    )
    optimizer = GroupOptimizer(method.task()) if optimizer is None else optimizer
    batches = leave_one_out(batcher, batches, examples) if method.demonstrations else batches
    coordinates = adaptation_coordinates(plan.seed, draw)
    steps_from_theta(method, optimizer, batcher, batches, coordinates, graphs, plan.schedule)
    check_adapted(task.name, method.adapters)
    return examples


def leave_one_out(
    batcher: Batcher, batches: Sequence[Sequence[Question]], examples: Sequence[Question]
) -> list[tuple[Question, ...]]:
    """Batches of adaptation steps, each question with the other examples in front, for methods with demonstrations."""
    return [tuple(batcher.after(question, examples) for question in batch) for batch in batches]


def steps_from_theta(
    method: Method,
    optimizer: GroupOptimizer,
    batcher: Batcher,
    batches: Sequence[Sequence[Question]],
    coordinates: StepCoordinates,
    graphs: Graphs | None = None,
    schedule: Schedule = "constant",
) -> None:
    """Make phi from theta, and take a step on each batch, by moments that begin at zero; errors as `inner_steps`."""
    method.begin_task(first=True)
    optimizer.restart()
    factors = [schedule_factor(schedule, step, len(batches)) for step in range(len(batches))]
    inner_steps(method, optimizer, batcher, batches, coordinates, factors, graphs)


def examples_of(task: Task, plan: AdaptationPlan, draw: int) -> tuple[Question, ...]:
    """The examples that `adapt` uses."""
    return adaptation_batches(
        task, examples=plan.examples, steps=0, batch_size=plan.batch_size, seed=plan.seed, draw=draw
    )[0]


@renamed_keywords({"place": "coordinates"})
def predict(
    method: Method,
    likelihood: ChoiceLikelihood,
    batcher: Batcher,
    questions: Sequence[Question],
    plan: PredictionPlan,
    coordinates: Coordinates,
    graphs: Graphs | None = None,
) -> tuple[Prediction, ...]:
    """Choice probabilities under phi: the mean over posterior draws of the probabilities, never of logits.

    Args:
        method: holds the adapters; without stds (or with the sampler `mean`) there is one draw, the mean weights.
        likelihood: reads choices from the model.
        batcher: encodes questions.
        questions: any number; each score is independent of the others in its batch.
        plan: sampler and number of draws.
        coordinates: of the draws' noise; the same ones give the same weights for every question.
        graphs: where forward passes are captured.

    Raises:
        NonFiniteError: a probability is NaN or infinite; names the rows and the dtype.
        Stopped: between two forward passes, if the process was asked to stop.
    """
    drawn = draw_by_batch(method, likelihood, batcher, questions, plan, coordinates, graphs)
    return averaged(questions, drawn, is_drawing(method, plan))


def averaged(questions: Sequence[Question], drawn: Drawn, drawing: bool) -> tuple[Prediction, ...]:
    """What draws of probabilities say of questions; without `drawing` they have no spread."""
    out: list[Prediction | None] = [None] * len(questions)
    for indices, draws in drawn:
        probabilities = np.mean([p for p, _ in draws], axis=0)
        spread = np.std([p for p, _ in draws], axis=0) if drawing else None
        raw = [v for _, v in draws if v is not None]
        vocabulary = np.mean(raw, axis=0) if raw else None
        for row, i in enumerate(indices):
            out[i] = _prediction(questions[i], probabilities, vocabulary, spread, row)
    return tuple(prediction for prediction in out if prediction is not None)


@dataclass(frozen=True, slots=True)
class Answer:
    """What was said of one question.

    Attributes:
        probabilities: of the choices, averaged over the draws; they sum to 1.
        choice: the most probable one, from 0; of equal ones the first.
        confidence: its probability.
        spread: standard deviation, over the draws, of the probability of that choice; None without draws.
        information: mutual information of answer and weights, nats: the entropy of the averaged probabilities less the
            mean entropy of each draw's. 0 where all draws agree, log K at most; None without draws.

    Raises:
        NonFiniteError: a number is NaN or infinite: that is no answer.
    """

    probabilities: tuple[float, ...]
    choice: int
    confidence: float
    spread: float | None
    information: float | None

    def __post_init__(self) -> None:
        """Refuse numbers that are not finite."""
        numbers = (*self.probabilities, self.confidence, self.spread or 0.0, self.information or 0.0)
        if not all(map(math.isfinite, numbers)):
            raise NonFiniteError(f"{self}: a number is NaN or infinite, which is no answer")


def answer(
    method: Method,
    likelihood: ChoiceLikelihood,
    batcher: Batcher,
    questions: Sequence[Question],
    plan: PredictionPlan,
    graphs: Graphs | None = None,
) -> tuple[Answer, ...]:
    """Answers for a user: what `predict` averages, at the coordinates of the posterior, and how far the draws disagree.

    Args and errors as `predict`.
    """
    drawn = draw_by_batch(method, likelihood, batcher, questions, plan, POSTERIOR, graphs)
    return summarised(questions, drawn, is_drawing(method, plan))


def summarised(questions: Sequence[Question], drawn: Drawn, drawing: bool) -> tuple[Answer, ...]:
    """As `averaged`, for a user."""
    out: dict[int, Answer] = {}
    for indices, draws in drawn:
        for row, i in enumerate(indices):
            of_draws = [probabilities[row, : len(questions[i].choices)] for probabilities, _ in draws]
            out[i] = summarise(np.stack(of_draws), drawing)
    return tuple(out[i] for i in range(len(questions)))


def summarise(draws: Float[np.ndarray, "S K"], drawing: bool = True) -> Answer:
    """The answer that S draws of K probabilities give; without `drawing` they say nothing of a spread.

    >>> found = summarise(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]))
    >>> found.probabilities, found.choice, found.spread, round(found.information, 4)  # log 2: the draws decide it
    ((0.5, 0.5), 0, 0.5, 0.6931)
    """
    check_finite("probability", draws)
    mean = draws.mean(axis=0)
    choice = int(mean.argmax())
    information = float(entr(mean).sum() - entr(draws).sum(axis=1).mean()) if drawing else None
    return Answer(
        probabilities=tuple(mean.tolist()),
        choice=choice,
        confidence=float(mean[choice]),
        spread=float(draws[:, choice].std()) if drawing else None,
        information=None if information is None else max(0.0, information),
    )


def is_drawing(method: Method, plan: PredictionPlan) -> bool:
    """Whether a plan draws weights, or what they see; else there is one draw, the mean weights."""
    return plan.sampler != "mean" and (method.adapters.has_std or method.dropout > 0)


def draw_by_batch(
    method: Method,
    likelihood: ChoiceLikelihood,
    batcher: Batcher,
    questions: Sequence[Question],
    plan: PredictionPlan,
    coordinates: Coordinates,
    graphs: Graphs | None = None,
) -> Iterator[tuple[list[int], list[Draw]]]:
    """What `predict` averages: the places of a batch's questions, and its probabilities under each draw.

    A question that is read in pieces comes alone, once all of its pieces are answered.

    Args and errors as `predict`: no probability that is not finite leaves the model.
    """
    if batcher.pieces < 2:
        yield from _draw_by_batch(method, likelihood, batcher, questions, plan, coordinates, graphs)
        return
    pieces = batcher.in_pieces(questions)
    flat = [piece for one in pieces for piece in one]
    of_question = [i for i, one in enumerate(pieces) for _ in one]
    waiting: dict[int, list[list[Draw]]] = {}
    for indices, draws in _draw_by_batch(method, likelihood, batcher, flat, plan, coordinates, graphs):
        whole = [row for row, i in enumerate(indices) if len(pieces[of_question[i]]) == 1]
        if whole:
            yield [of_question[indices[row]] for row in whole], _of(draws, whole)
        for row in sorted(set(range(len(indices))) - set(whole)):
            i = of_question[indices[row]]
            waiting.setdefault(i, []).append(_of(draws, [row]))
            if len(waiting[i]) == len(pieces[i]):
                yield [i], pooled(waiting.pop(i))


def _of(draws: Sequence[tuple[np.ndarray, np.ndarray | None]], rows: list[int]) -> list[Draw]:
    """Some questions of each draw."""
    return [(p[rows], None if vocabulary is None else vocabulary[rows]) for p, vocabulary in draws]


def pooled(pieces: Sequence[Sequence[Draw]]) -> list[Draw]:
    """Draws of a question from those of its pieces: log-probabilities averaged over them.

    p_k proportional to exp(mean over pieces of log p_k); of the letters in the vocabulary the mean is not normalised.

    >>> one, other = np.array([[0.9, 0.1]]), np.array([[0.5, 0.5]])
    >>> pooled([[(one, None)], [(other, None)]])[0][0].round(2)  # sqrt(.9 * .5) and sqrt(.1 * .5), to sum to 1
    array([[0.75, 0.25]])
    """
    out: list[Draw] = []
    for draws in zip(*pieces, strict=True):
        p, vocabulary = _geometric_mean([d[0] for d in draws]), [d[1] for d in draws if d[1] is not None]
        out.append((p / p.sum(axis=1, keepdims=True), _geometric_mean(vocabulary) if vocabulary else None))
    return out


def _geometric_mean(tables: Sequence[np.ndarray]) -> np.ndarray:
    widest = max(table.shape[1] for table in tables)
    padded = [np.pad(table, ((0, 0), (0, widest - table.shape[1]))) for table in tables]
    return np.exp(np.mean(np.log(np.maximum(padded, _LEAST)), axis=0)) * (np.max(padded, axis=0) > 0)


def _draw_by_batch(
    method: Method,
    likelihood: ChoiceLikelihood,
    batcher: Batcher,
    questions: Sequence[Question],
    plan: PredictionPlan,
    coordinates: Coordinates,
    graphs: Graphs | None,
) -> Iterator[tuple[list[int], list[Draw]]]:
    """`draw_by_batch` of questions that are read as they are."""
    graphs = Graphs(batcher.device, capture=False) if graphs is None else graphs
    keys = prediction_keys(coordinates, plan.samples if is_drawing(method, plan) else 1)
    encoded = batcher.encode(questions)
    limits = {"share_prefix": batcher.share_prefix, "buckets": batcher.buckets}
    for indices in sorted_batches(encoded, plan.batch_tokens, **limits):
        draws = _draws(method, likelihood, batcher, [encoded[i] for i in indices], plan, keys, graphs)
        if bad := rows_not_finite([table for draw in draws for table in draw if table is not None]):
            raise no_answers([questions[i] for i in sorted(indices[row] for row in bad)], method.adapters)
        yield indices, draws


@torch.no_grad()
def _draws(
    method: Method,
    likelihood: ChoiceLikelihood,
    batcher: Batcher,
    encoded: Sequence[EncodedQuestion],
    plan: PredictionPlan,
    keys: Sequence[int],
    graphs: Graphs,
) -> list[Draw]:
    """Probabilities of each draw.

    A batch is small enough for several draws in one pass where questions are few.
    """
    batch = batcher.padded(encoded)
    together = _together(batch.input_ids.numel(), plan.batch_tokens, len(keys)) if batcher.buckets else 1
    repeated = batch if together == 1 else batch.repeat(together)
    sampler = plan.sampler if method.adapters.has_std else "mean"
    dropout = method.dropout if is_drawing(method, plan) else 0.0
    step = partial(_score, method, likelihood, sampler, dropout)
    draws = []
    for start in range(0, len(keys), together):
        stop_if_asked()
        outputs = graphs.run(
            f"predict {sampler} {dropout}", step, [repeated], key_tensor(*keys[start : start + together])
        )
        tables = [table.cpu().numpy().reshape(together, len(encoded), -1) for table in outputs]
        draws += [(tables[0][i], tables[1][i] if len(tables) > 1 else None) for i in range(together)]
    return draws


def _together(tokens: int, most_tokens: int, samples: int) -> int:
    """The largest divisor of `samples` for which so many copies of a batch stay within `most_tokens`.

    >>> _together(100, 450, 10), _together(100, 50, 10)
    (2, 1)
    """
    return max(d for d in range(1, samples + 1) if samples % d == 0 and (d == 1 or d * tokens <= most_tokens))


def _score(
    method: Method,
    likelihood: ChoiceLikelihood,
    sampler: Sampler,
    dropout: float,
    batches: Sequence[ChoiceBatch],
    keys: Tensor,
) -> tuple[Tensor, ...]:
    """Probabilities over choices, and over the vocabulary where there are such; float64."""
    (batch,) = batches
    adapters = method.adapters
    with adapters.drawing(sampler, keys, batch.row_keys, batch.token_index), adapters.dropping(dropout, keys):
        scores = likelihood.scores(batch)
    probabilities = scores.log_probabilities.double().exp()
    probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return (probabilities,) if scores.vocabulary is None else (probabilities, scores.vocabulary.double().exp())


def _prediction(
    question: Question,
    probabilities: Float[np.ndarray, "B K"],
    vocabulary: Float[np.ndarray, "B K"] | None,
    spread: Float[np.ndarray, "B K"] | None,
    row: int,
) -> Prediction:
    count = len(question.choices)
    best = int(probabilities[row, :count].argmax())
    return Prediction(
        id=question.id,
        answer=-1 if question.answer is None else question.answer,
        probabilities=tuple(float(p) for p in probabilities[row, :count]),
        vocabulary_confidence=None if vocabulary is None else float(vocabulary[row, best]),
        spread=None if spread is None else tuple(float(s) for s in spread[row, :count]),
        group=question.group,
    )
