"""meta_train: the one outer loop of every system."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from abmll.errors import AbmllError, NonFiniteError
from abmll.methods.base import Method
from abmll.methods.noise import training_coordinates
from abmll.process.agreement import agree_on_failure
from abmll.process.environment import memory_of_ranks, peak_memory
from abmll.process.stopping import Stopped, gently, stop_if_asked
from abmll.process.world import World
from abmll.tasks.episodes import Episodes
from abmll.training.batcher import Batcher
from abmll.training.checkpoints import Checkpoint, RunDirectory
from abmll.training.failed_batch import FailedBatch, save_batch
from abmll.training.finite import without_folders
from abmll.training.graphs import Graphs
from abmll.training.inner import check_finite
from abmll.training.optimizers import GroupOptimizer, Optimizers, schedule_factor
from abmll.training.outer import add_outer_gradient
from abmll.training.resume import Progress, TrainingState, load_theta, refuse_different, resume
from abmll.training.step_info import StepInfo, TaskInfo, Validation, losses_of
from abmll.training.through_steps import TakenSteps, going_back

log = logging.getLogger(__name__)

Listener = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class TrainingPlan:
    """How long and how often.

    Attributes:
        iterations: meta-iterations in all.
        seed: names the noise; the data order has its own in `Episodes`.
        meta_batch: tasks per meta-iteration.
        checkpoint_every: meta-iterations between checkpoints that a stopped run goes on from.
        snapshots: steps whose checkpoint is kept for evaluation.
        log_stds_every: meta-iterations between std statistics in the journal.
        validate_every: meta-iterations between validations; None: never, and no early stopping.
        patience: validations without a new best before training stops.
        on_non_finite: `stop` before the update, or `skip` the meta-iteration on all ranks, as if it had no gradient.
        most_skipped: of a run; one more stops it.
    """

    iterations: int
    seed: int = 0
    meta_batch: int = 1
    checkpoint_every: int = 50
    snapshots: tuple[int, ...] = ()
    log_stds_every: int = 10
    validate_every: int | None = None
    patience: int = 3
    on_non_finite: Literal["stop", "skip"] = "stop"
    most_skipped: int = 10


@dataclass(frozen=True)
class Learner:
    """What is trained, and what its steps are computed with.

    Attributes:
        method: theta and phi.
        batcher: makes batches of questions.
        graphs: where steps are captured.
        optimizers: those of an earlier training of the same method and adapters, whose captured steps go by their
            memory, or new ones; what they remember is dropped.
    """

    method: Method
    batcher: Batcher
    graphs: Graphs
    optimizers: Optimizers

    @classmethod
    def of(cls, method: Method, batcher: Batcher) -> "Learner":
        """With new optimizers, and nothing captured."""
        return cls(method, batcher, Graphs(batcher.device, capture=False), Optimizers.of(method))


@dataclass(frozen=True)
class _Work:
    """What every meta-iteration works with."""

    learner: Learner
    episodes: Episodes
    plan: TrainingPlan
    run: RunDirectory
    world: World
    validate: Callable[[], float] | None
    progress: Progress

    @property
    def method(self) -> Method:
        """Theta and phi."""
        return self.learner.method

    @property
    def batcher(self) -> Batcher:
        """Makes batches of questions."""
        return self.learner.batcher

    @property
    def graphs(self) -> Graphs:
        """Where steps are captured."""
        return self.learner.graphs

    @property
    def inner(self) -> GroupOptimizer:
        """Steps phi."""
        return self.learner.optimizers.inner

    @property
    def outer(self) -> GroupOptimizer:
        """Steps theta."""
        return self.learner.optimizers.outer

    @property
    def totals(self) -> list[Tensor]:
        """Sums of the outer gradient, one for each parameter of theta."""
        return self.learner.optimizers.totals

    @property
    def state(self) -> TrainingState:
        """All that training moves."""
        return TrainingState(self.method, self.inner, self.outer, self.progress)


_OPTIONS = ("world", "validate", "listener", "graphs", "optimizers")


def meta_train_parts(
    method: Method,
    episodes: Episodes,
    batcher: Batcher,
    plan: TrainingPlan,
    run: RunDirectory,
    *more: Any,
    **named: Any,
) -> int:
    """`meta_train` by the arguments that `abmll.meta_train` had until 0.1.

    Args:
        method, batcher, episodes, plan, run: as there.
        more: by position: world, validate and listener as there; graphs and optimizers as in `Learner`.
        named: the same by name.

    Raises:
        TypeError: there are too many, or one is given both ways.
    """
    given = dict(zip(_OPTIONS, more, strict=False))
    if len(more) > len(_OPTIONS) or given.keys() & named.keys():
        raise TypeError(f"meta_train() takes {', '.join(_OPTIONS)} once each, after five arguments")
    learner, options = Learner.of(method, batcher), {**given, **named}
    parts = {name: options.pop(name, None) or getattr(learner, name) for name in ("graphs", "optimizers")}
    return meta_train(replace(learner, **parts), episodes, plan, run, **options)


def meta_train(
    learner: Learner,
    episodes: Episodes,
    plan: TrainingPlan,
    run: RunDirectory,
    world: World = World(),  # noqa: B008 - frozen
    validate: Callable[[], float] | None = None,
    listener: Listener = lambda event: None,
) -> int:
    """Meta-train, going on from the run's latest checkpoint if it has one.

    Each meta-iteration: draw episodes, take inner steps on phi, leave the outer gradient on theta, average it over the
    meta-batch (and over ranks, each of which runs its own tasks), step theta, and write the journal.

    No other process may be in the run directory. A stop (`abmll.process.stopping`) in the middle of a meta-iteration
    saves the state at its start, so that going on does it again, with the same questions and the same noise.

    Args:
        learner: theta, phi, and what steps are computed with.
        episodes: which questions come when.
        plan: how long and how often.
        run: the run directory.
        world: the ranks that train together.
        validate: the validation NLL of theta as it is; it may use phi.
        listener: hears of every step, as the line of the journal.

    Returns:
        The step whose weights theta holds at the end: the last, or the best by `validate`.

    Raises:
        NonFiniteError: before the update; the batch is in the run directory, for `abmll doctor --batch`.
        Stopped: the process was asked to stop, and the state is saved.
        AbmllError: another process is in the run directory, or no checkpoint there can be gone on from; another rank
            failed.
        OSError: the disk is full, ...; earlier checkpoints are as they were.
    """
    learner.optimizers.restart()
    learner.method.task_weights.load_state_dict({}, ())
    progress = Progress()
    work = _Work(learner, episodes, plan, run, world, validate, progress)
    with run.locked_by_caller_or(world), gently():
        resume(work.state, run, world)
        first, start = progress.step, time.perf_counter()
        while progress.step < plan.iterations and not _out_of_patience(progress, plan):
            event = _iteration(work).event()
            with agree_on_failure(world, long=True):
                if world.is_main:
                    run.log(event)
                listener(event)
                if world.is_main and _is_to_be_saved(progress, plan):
                    _save(work.state.checkpoint(), run, plan, progress.best_step)
        with agree_on_failure(world, long=True):
            final = _final(work)
        if not _sequential(work.method):  # else every rank ran all tasks by itself, and devices round as they like
            refuse_different(work.method, final, world)
        ranks = memory_of_ranks(world, work.batcher.device)
        with agree_on_failure(world, long=True):
            if world.is_main:
                spent = _spent(work, progress.step - first, start, ranks)
                run.log({"event": "end", "step": progress.step, "final_step": final, **spent})
    return final


def _iteration(work: _Work) -> StepInfo:
    """One meta-iteration, or a stop that leaves the state at its start on disk."""
    plan, progress, method = work.plan, work.progress, work.method
    began, step = time.perf_counter(), progress.step
    validates = work.validate is not None and plan.validate_every is not None and (step + 1) % plan.validate_every == 0
    before = work.state.checkpoint(copy=True) if validates or _sequential(method) else None
    try:
        task, skipped = _meta_steps(work, before)
        progress.step += 1
        seconds = round(time.perf_counter() - began, 4)
        examples = progress.step * plan.meta_batch * work.episodes.examples
        stds = _std_facts(method, plan, progress, task.squared_distance)
        info = StepInfo(progress.step, seconds, examples, task, skipped, **stds)
        if validates and work.validate is not None:
            with agree_on_failure(work.world):
                validation = _validated(method, work.validate)
                _judge(validation, progress)
            info = replace(info, validation=validation)
    except Stopped as stopped:
        state = before or work.state.checkpoint()  # without a copy nothing has moved yet
        with agree_on_failure(work.world, long=True):
            if work.world.is_main and state.step not in work.run.known_good:
                _save(state, work.run, plan, int(state.state["best_step"]))
        raise Stopped(stopped.signal, f"step {state.step} of {plan.iterations} is saved") from None
    return info


def _meta_steps(work: _Work, before: Checkpoint | None) -> tuple[TaskInfo, str]:
    """The outer steps of a meta-iteration (most systems have one); or none, and why, if `on_non_finite` says so."""
    info = TaskInfo()
    try:
        for positions in _visits(work.method, work.plan.meta_batch):
            info = info.followed_by(_meta_step(work, work.progress.step, positions))
    except NonFiniteError as error:
        if work.plan.on_non_finite == "stop":
            raise
        work.progress.skipped += 1
        if work.progress.skipped > work.plan.most_skipped:
            raise AbmllError(
                f"{error}\nMore than training.most_skipped={work.plan.most_skipped} meta-iterations were not finite"
            ) from error
        skipped = work.progress.skipped
        if before is not None:
            work.state.put_back(before)
        work.progress.skipped = skipped
        rows = (row for task in work.episodes.tasks for row in task.train)
        return TaskInfo(), without_folders(str(error), rows, work.run.path)
    return info, ""


def _final(work: _Work) -> int:
    """The step whose weights are the result; theta takes them."""
    best = work.progress.best_step
    if work.validate is None or not work.plan.validate_every or best in (0, work.progress.step):
        if work.progress.bad and not best:
            log.warning("no validation was finite, so the weights are those of the last step, chosen by nothing")
        return work.progress.step
    load_theta(work.method, work.run.load(best).shared)
    return best


def _spent(work: _Work, iterations: int, start: float, ranks: list[dict[str, int]]) -> dict[str, Any]:
    """Speed, memory and captured graphs of the iterations that this call did."""
    seconds = time.perf_counter() - start
    return {
        "tasks_per_second": iterations * work.plan.meta_batch / seconds,
        "peak_memory_bytes": peak_memory(work.batcher.device),
        **({"ranks": ranks} if ranks else {}),
        "graphs": work.graphs.report(),
    }


def _visits(method: Method, meta_batch: int) -> list[range]:
    """Positions that share one outer step: all of a meta-batch, unless something is carried from task to task."""
    if _sequential(method):
        return [range(p, p + 1) for p in range(meta_batch)]
    return [range(meta_batch)]


def _sequential(method: Method) -> bool:
    """Moments or a phi that go on: tasks follow each other, and every rank runs all of them."""
    return method.settings.inner_optimizer_state == "persistent" or method.keeps_phi or method.keeps_tasks


def _meta_step(work: _Work, step: int, positions: range) -> TaskInfo:
    """The tasks at `positions`, then one outer step; returns what the last task that ran here gave."""
    s, totals = work.method.settings, work.totals
    if totals:
        torch._foreach_zero_(totals)
    info = TaskInfo()
    alone = work.world if not _sequential(work.method) else World()
    with agree_on_failure(work.world):  # a stop, or what is not finite, on one rank is for all of them
        for index in alone.share(len(positions)):
            info = _run_task(work, step, positions[index], 1.0 / len(positions))
    alone.sum_(totals)
    what = f"outer step {step}, task {info.task or '?'}"
    summed = FailedBatch((), (), outer=True)
    check_finite(None, totals, f"{what}, summed over tasks", summed, work.method.adapters)
    for parameter, gradient in zip(work.outer.parameters, totals, strict=True):
        parameter.grad = gradient
    work.outer.set_rates(schedule_factor(s.outer_schedule, step, work.plan.iterations, s.warmup))
    work.learner.optimizers.step_outer(shared=work.method.shares_moments)
    work.outer.zero_grad()
    return info


def _run_task(work: _Work, step: int, position: int, share: float) -> TaskInfo:
    """Inner steps on one task, then the outer gradient on theta, added to the totals."""
    stop_if_asked()
    method, inner, s = work.method, work.inner, work.method.settings
    episode = work.episodes.draw(step, position)
    batches = work.batcher.asked(episode)
    support = batches[:-1] if method.uses_query else batches
    query = batches[-1] if method.uses_query else ()
    method.begin_task(first=step == 0 and position == 0)
    phi = method.adapters.parameters("task")
    if method.keeps_tasks:
        method.task_weights.put_into(episode.task, phi)
    if s.inner_optimizer_state == "fresh":
        inner.restart()
    else:
        inner.follow()
    coordinates = training_coordinates(work.plan.seed, step, position)
    factor = schedule_factor(s.inner_schedule, step, work.plan.iterations, s.warmup)
    try:
        steps = TakenSteps(method, inner, work.batcher, support, coordinates, [factor] * len(support))
        taken = steps.take(work.graphs)
        if method.keeps_tasks:
            method.task_weights.keep(episode.task, phi)
        batch = FailedBatch(tuple(query), (*coordinates, len(support)), outer=True)
        sums = (work.outer, work.totals)
        with going_back(method, steps):
            terms = add_outer_gradient(method, work.batcher, query, batch.coordinates, sums, share, work.graphs)
        check_finite(terms, work.totals, f"outer step {step}, task {episode.task}", batch, method.adapters)
    except NonFiniteError as error:
        raise save_batch(error, work.run.path, method, work.batcher, episode.task) from error
    losses = losses_of(taken, terms)
    if not method.adapters.has_std:
        return TaskInfo(episode.task, losses)
    (distance,) = work.graphs.run("distance", lambda b, k: (method.adapters.mean_squared_distance(),), [], _NO_KEY)
    return TaskInfo(episode.task, losses, float(distance))  # before theta moves towards phi


_NO_KEY = torch.zeros(1, dtype=torch.int64)


def _std_facts(method: Method, plan: TrainingPlan, progress: Progress, distance: float | None) -> dict[str, Any]:
    """What the stds do, every so often, and how far theta and phi are apart, as fields of `StepInfo`."""
    if distance is None:
        return {}
    progress.distance += (distance - progress.distance) / min(progress.step, 20)
    if progress.step != 1 and progress.step % plan.log_stds_every:
        return {}
    return {"stds": method.adapters.std_statistics(), "squared_distance": progress.distance}


def _validated(method: Method, validate: Callable[[], float]) -> Validation:
    """Validate theta as it is.

    Validating adapts phi; one that training goes on with is put back afterwards.
    """
    phi = {n: t.clone() for n, t in method.adapters.state_dict("task").items()} if method.keeps_phi else None
    try:
        nll = validate()
    except NonFiniteError as error:
        return Validation(math.inf, str(error))
    finally:
        if phi is not None:
            method.adapters.load_state_dict("task", phi)
    return Validation(nll) if math.isfinite(nll) else Validation(math.inf, f"the NLL is {nll}")


def _judge(validation: Validation, progress: Progress) -> None:
    """Take a validation into account. One that is not finite counts as worse than any other."""
    if validation.nll < progress.best_nll:
        progress.best_nll, progress.best_step, progress.bad = validation.nll, progress.step, 0
    else:
        progress.bad += 1
    if why := validation.not_finite:
        log.warning(
            "step %d: the validation is not finite, so it counts as worse than any other: %s", progress.step, why
        )


def _out_of_patience(progress: Progress, plan: TrainingPlan) -> bool:
    return plan.validate_every is not None and progress.bad >= plan.patience


def _is_to_be_saved(progress: Progress, plan: TrainingPlan) -> bool:
    step = progress.step
    last = step >= plan.iterations or _out_of_patience(progress, plan)
    is_best = step == progress.best_step and progress.best_nll < float("inf")
    return last or is_best or step % plan.checkpoint_every == 0 or step in plan.snapshots


def _save(state: Checkpoint, run: RunDirectory, plan: TrainingPlan, best_step: int) -> None:
    """Write a checkpoint, and remove those that are not needed any more.

    Raises:
        NonFiniteError: a weight is not finite: a finite gradient at too high a rate. It is not written.
    """
    weights = {n: t for n, t in state.optimizer.items() if n.startswith(("phi.", "tasks.")) or n.endswith(".master")}
    bad = [n for n, t in {**state.shared, **weights}.items() if not bool(t.isfinite().all())]
    if bad:  # moments apart: a second moment that overflows stops a parameter, and is no number of a weight
        raise NonFiniteError(
            f"after outer step {state.step - 1} {bad[0]} is not finite; nothing was saved. Lower the learning rates, "
            "and go on from the last checkpoint"
        )
    run.save(state)
    # checkpoints of later steps are damaged ones that this run went back behind: they must not push this one out
    done = [earlier for earlier in run.steps() if earlier <= state.step]
    run.prune({*done[-2:], best_step, *plan.snapshots})
