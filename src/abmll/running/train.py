"""meta_train: the one outer loop of every system."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from abmll.methods.base import Method, Terms
from abmll.running.batcher import Batcher
from abmll.running.environment import peak_memory
from abmll.running.graphs import Graphs
from abmll.running.inner import check_finite, inner_steps
from abmll.running.optimizers import GroupOptimizer, schedule_factor
from abmll.running.outer import add_outer_gradient
from abmll.running.rundir import Checkpoint, RunDirectory
from abmll.running.world import World
from abmll.tasks.episodes import Episodes

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
    """

    iterations: int
    seed: int = 0
    meta_batch: int = 1
    checkpoint_every: int = 50
    snapshots: tuple[int, ...] = ()
    log_stds_every: int = 10
    validate_every: int | None = None
    patience: int = 3


@dataclass
class _Progress:
    """What is resumed besides tensors."""

    step: int = 0
    best_step: int = 0
    best_nll: float = float("inf")
    bad: int = 0
    distance: float = 0.0  # running mean of D^2, to be held against the mean of var_theta


@dataclass(frozen=True)
class _Work:
    """What every meta-iteration works with."""

    method: Method
    episodes: Episodes
    batcher: Batcher
    plan: TrainingPlan
    world: World
    graphs: Graphs
    inner: GroupOptimizer
    outer: GroupOptimizer
    totals: list[Tensor]


def meta_train(
    method: Method,
    episodes: Episodes,
    batcher: Batcher,
    plan: TrainingPlan,
    run: RunDirectory,
    world: World = World(),  # noqa: B008 - frozen
    validate: Callable[[], float] | None = None,
    listener: Listener = lambda event: None,
    graphs: Graphs | None = None,
) -> int:
    """Meta-train, going on from the run's latest checkpoint if it has one.

    Each meta-iteration: draw episodes, take inner steps on phi, leave the outer gradient on theta, average it over the
    meta-batch (and over ranks, each of which runs its own tasks), step theta, and write the journal.

    Returns:
        The step whose weights theta holds at the end: the last, or the best by `validate`.

    Raises:
        NonFiniteError: before the update.
    """
    graphs = Graphs(batcher.device, capture=False) if graphs is None else graphs
    inner, outer = GroupOptimizer(method.task()), GroupOptimizer(method.shared())
    totals = [torch.zeros_like(p) for p in outer.parameters]
    work = _Work(method, episodes, batcher, plan, world, graphs, inner, outer, totals)
    progress = _resume(method, inner, outer, run, world)
    first, start = progress.step, time.perf_counter()
    while progress.step < plan.iterations and not _out_of_patience(progress, plan):
        began = time.perf_counter()
        event: dict[str, Any] = {}
        for positions in _visits(method, plan.meta_batch):
            event = _meta_step(work, progress.step, positions)
        progress.step += 1
        _note(method, plan, progress, event, time.perf_counter() - began)
        event["examples_consumed"] = progress.step * plan.meta_batch * episodes.examples
        if validate is not None and plan.validate_every and progress.step % plan.validate_every == 0:
            event["validation_nll"] = _judge(_validated(method, validate), progress)
        if world.is_main:
            run.log({"event": "step", **event})
        listener(event)
        _maybe_save(method, inner, outer, run, plan, progress, world)
    final = progress.step
    if plan.validate_every and validate is not None and progress.best_step not in (0, progress.step):
        final = progress.best_step
        _load_theta(method, run.load(final).shared)
    if world.is_main:
        run.log(
            {"event": "end", "step": progress.step, "final_step": final, **_spent(work, progress.step - first, start)}
        )
    return final


def _spent(work: _Work, iterations: int, start: float) -> dict[str, Any]:
    """Speed, memory and captured graphs of the iterations that this call did."""
    seconds = time.perf_counter() - start
    return {
        "tasks_per_second": iterations * work.plan.meta_batch / seconds,
        "peak_memory_bytes": peak_memory(work.batcher.device),
        "graphs": work.graphs.report(),
    }


def _visits(method: Method, meta_batch: int) -> list[range]:
    """Positions that share one outer step: all of a meta-batch, unless something is carried from task to task."""
    if _sequential(method):
        return [range(p, p + 1) for p in range(meta_batch)]
    return [range(meta_batch)]


def _sequential(method: Method) -> bool:
    """Moments or a phi that go on from task to task: tasks follow each other, and every rank runs all of them."""
    return method.settings.inner_optimizer_state == "persistent" or method.keeps_phi


def _meta_step(work: _Work, step: int, positions: range) -> dict[str, Any]:
    """The tasks at `positions`, then one outer step; returns the journal's row of the last task run here."""
    s, totals = work.method.settings, work.totals
    if totals:
        torch._foreach_zero_(totals)
    loss = torch.zeros((), device=work.method.adapters.device)
    event: dict[str, Any] = {}
    alone = work.world if not _sequential(work.method) else World()
    for index in alone.share(len(positions)):
        event, terms = _run_task(work, step, positions[index], 1.0 / len(positions))
        if terms is not None:
            loss += terms.total.detach()
    alone.sum_([*totals, loss])  # the loss too: what is not finite on one rank stops them all
    check_finite(Terms((loss,), loss), totals, f"outer step {step}, task {event.get('task', '?')}", [])
    for parameter, gradient in zip(work.outer.parameters, totals, strict=True):
        parameter.grad = gradient
    work.outer.set_rates(schedule_factor(s.outer_schedule, step, work.plan.iterations, s.warmup))
    work.outer.step()
    work.outer.zero_grad()
    return event


def _run_task(work: _Work, step: int, position: int, share: float) -> tuple[dict[str, Any], Terms | None]:
    """Inner steps on one task, then the outer gradient on theta; the journal's row, and what that gradient is of."""
    method, inner, s = work.method, work.inner, work.method.settings
    episode = work.episodes.draw(step, position)
    support = episode.batches[:-1] if method.uses_query else episode.batches
    query = episode.batches[-1] if method.uses_query else ()
    method.begin_task(first=step == 0 and position == 0)
    if s.inner_optimizer_state == "fresh":
        inner.restart()
    else:
        inner.follow()
    place = (work.plan.seed, step, position)
    factor = schedule_factor(s.inner_schedule, step, work.plan.iterations, s.warmup)
    taken = inner_steps(method, inner, work.batcher, support, place, factor, work.graphs)
    sums = (work.outer, work.totals)
    terms = add_outer_gradient(method, work.batcher, query, (*place, len(support)), sums, share, work.graphs)
    row = {"task": episode.task, **_as_numbers(taken, terms)}
    if method.adapters.has_std:  # before theta moves towards phi
        (distance,) = work.graphs.run("distance", lambda b, k: (method.adapters.mean_squared_distance(),), [], _NO_KEY)
        row["mean_squared_distance"] = float(distance)
    return row, terms


_NO_KEY = torch.zeros(1, dtype=torch.int64)


def _as_numbers(taken: Sequence[Terms], query: Terms | None) -> dict[str, Any]:
    """The journal's losses, fetched from the device in one go."""
    named: dict[str, Tensor | None] = {}
    if taken:
        named |= {"nll_first": taken[0].nll, "nll": taken[-1].nll, "task_kl": taken[-1].task_kl}
    if query is not None:
        named |= {"query_nll": query.nll, "query_task_kl": query.task_kl}
    found = {name: value.detach().double().reshape(()) for name, value in named.items() if value is not None}
    if not found:
        return {}
    values = torch.stack(list(found.values())).tolist()
    return {name: value for name, value in zip(found, values, strict=True) if value == value}


def _note(method: Method, plan: TrainingPlan, progress: _Progress, event: dict[str, Any], seconds: float) -> None:
    """Step, time and, every so often, what the stds do."""
    event["step"], event["seconds"] = progress.step, round(seconds, 4)
    distance = event.pop("mean_squared_distance", None)
    if distance is None:
        return
    progress.distance += (distance - progress.distance) / min(progress.step, 20)
    if progress.step == 1 or progress.step % plan.log_stds_every == 0:
        event["stds"] = method.adapters.std_statistics()
        event["mean_squared_distance"] = progress.distance


def _validated(method: Method, validate: Callable[[], float]) -> float:
    """The validation NLL. Validating adapts phi; one that training goes on with is put back afterwards."""
    phi = {n: t.clone() for n, t in method.adapters.state_dict("task").items()} if method.keeps_phi else None
    nll = validate()
    if phi is not None:
        method.adapters.load_state_dict("task", phi)
    return nll


def _judge(nll: float, progress: _Progress) -> float:
    if nll < progress.best_nll:
        progress.best_nll, progress.best_step, progress.bad = nll, progress.step, 0
    else:
        progress.bad += 1
    return nll


def _out_of_patience(progress: _Progress, plan: TrainingPlan) -> bool:
    return plan.validate_every is not None and progress.bad >= plan.patience


def _maybe_save(
    method: Method,
    inner: GroupOptimizer,
    outer: GroupOptimizer,
    run: RunDirectory,
    plan: TrainingPlan,
    progress: _Progress,
    world: World,
) -> None:
    step = progress.step
    last = step >= plan.iterations or _out_of_patience(progress, plan)
    is_best = step == progress.best_step and progress.best_nll < float("inf")
    if not (last or is_best or step % plan.checkpoint_every == 0 or step in plan.snapshots):
        return
    if world.is_main:
        run.save(_checkpoint(method, inner, outer, progress))
        # checkpoints of later steps are damaged ones that this run went back behind: they must not push this one out
        done = [earlier for earlier in run.steps() if earlier <= step]
        run.prune({*done[-2:], progress.best_step, *plan.snapshots})
    world.barrier()


def _checkpoint(method: Method, inner: GroupOptimizer, outer: GroupOptimizer, progress: _Progress) -> Checkpoint:
    optimizer = {f"outer.{name}": tensor for name, tensor in outer.state_dict().items()}
    if method.settings.inner_optimizer_state == "persistent":
        optimizer |= {f"inner.{name}": tensor for name, tensor in inner.state_dict().items()}
    if method.keeps_phi:
        optimizer |= {f"phi.{name}": tensor for name, tensor in method.adapters.state_dict("task").items()}
    state = {k: v for k, v in vars(progress).items() if k != "step" and v != float("inf")}
    return Checkpoint(progress.step, theta(method), optimizer, state)


def theta(method: Method) -> dict[str, Tensor]:
    """The shared weights, and the log-temperature where it is learned, as named tensors."""
    state = method.adapters.state_dict("shared")
    for temperature in method.temperature:
        state["likelihood.log_temperature"] = temperature.detach().reshape(1)
    return state


def _load_theta(method: Method, state: dict[str, Tensor]) -> None:
    state = dict(state)
    for temperature in method.temperature:
        with torch.no_grad():
            temperature.copy_(state.pop("likelihood.log_temperature").reshape(()))
    method.adapters.load_state_dict("shared", state)


def restore_theta(method: Method, run: RunDirectory, step: int) -> None:
    """Put the shared weights of a checkpoint into the method's adapters.

    Raises:
        AbmllError: the checkpoint is missing or damaged.
    """
    _load_theta(method, run.load(step).shared)


def _resume(method: Method, inner: GroupOptimizer, outer: GroupOptimizer, run: RunDirectory, world: World) -> _Progress:
    found = run.latest()
    if found is None:
        if world.is_main:
            run.cut_journal(-1)
            run.save(_checkpoint(method, inner, outer, _Progress()))
        world.barrier()
        return _Progress()
    _load_theta(method, found.shared)
    parts: dict[str, dict[str, Tensor]] = {"outer": {}, "inner": {}, "phi": {}}
    for name, tensor in found.optimizer.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    outer.load_state_dict(parts["outer"])  # float64 masters too: they know more digits than theta does
    inner.load_state_dict(parts["inner"])
    if parts["phi"]:
        method.adapters.load_state_dict("task", parts["phi"])
    if world.is_main:
        run.cut_journal(found.step)
    world.barrier()
    return _Progress(step=found.step, **found.state)
