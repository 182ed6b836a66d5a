"""The state of training as a checkpoint, and back."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from abmll.errors import AbmllError
from abmll.methods.base import Method
from abmll.process.agreement import agree_on_failure
from abmll.process.world import World
from abmll.training.checkpoints import Checkpoint, RunDirectory
from abmll.training.optimizers import GroupOptimizer


@dataclass
class Progress:
    """What is resumed besides tensors."""

    step: int = 0
    best_step: int = 0
    best_nll: float = float("inf")
    bad: int = 0
    distance: float = 0.0  # running mean of D^2, to compare with the mean of var_theta
    skipped: int = 0


@dataclass(frozen=True)
class TrainingState:
    """All that training moves."""

    method: Method
    inner: GroupOptimizer
    outer: GroupOptimizer
    progress: Progress

    def checkpoint(self, *, copy: bool = False) -> Checkpoint:
        """The state as it is: theta, moments, and what is carried from task to task.

        Args:
            copy: keep it as it is now, whatever training does next; else the tensors are those of training.
        """
        method = self.method
        optimizer = {f"outer.{name}": tensor for name, tensor in self.outer.state_dict().items()}
        if method.settings.inner_optimizer_state == "persistent":
            optimizer |= {f"inner.{name}": tensor for name, tensor in self.inner.state_dict().items()}
        if method.keeps_phi:
            optimizer |= {f"phi.{name}": tensor for name, tensor in method.adapters.state_dict("task").items()}
        optimizer |= {f"tasks.{name}": tensor for name, tensor in method.task_weights.state_dict().items()}
        state = {k: v for k, v in vars(self.progress).items() if k != "step" and v != float("inf")}
        checkpoint = Checkpoint(self.progress.step, theta(method), optimizer, state)
        if not copy:
            return checkpoint
        return replace(checkpoint, shared=_copied(checkpoint.shared), optimizer=_copied(checkpoint.optimizer))

    def put_back(self, checkpoint: Checkpoint) -> None:
        """Become what a checkpoint says, in place.

        Raises:
            KeyError, ValueError: it is of other adapters.
        """
        load_theta(self.method, checkpoint.shared)
        parts: dict[str, dict[str, Tensor]] = {"outer": {}, "inner": {}, "phi": {}, "tasks": {}}
        for name, tensor in checkpoint.optimizer.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        self.outer.load_state_dict(parts["outer"])  # float64 masters too: they know more digits than theta does
        self.inner.load_state_dict(parts["inner"])
        if parts["phi"]:
            self.method.adapters.load_state_dict("task", parts["phi"])
        self.method.task_weights.load_state_dict(parts["tasks"], self.method.adapters.parameters("task"))
        vars(self.progress).update({**vars(Progress()), **checkpoint.state, "step": checkpoint.step})


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def resume(state: TrainingState, run: RunDirectory, world: World) -> None:
    """Go on from the latest checkpoint that verifies; a run without any gets one of step 0.

    Raises:
        AbmllError: there are checkpoints, but none can be used; says of the newest why.
    """
    with agree_on_failure(world):
        checkpoint = run.latest()
        if checkpoint is None and (there := run.steps(incomplete=True)):
            raise AbmllError(
                f"{run.path}: of its checkpoints (steps {', '.join(map(str, there))}) none is whole, so nothing can go "
                "on here. Put one back from a copy, or remove the folder to begin again"
            )
    _check_agreement(0 if checkpoint is None else checkpoint.step, run, world)
    with agree_on_failure(world):
        if checkpoint is not None:
            _put_back(state, checkpoint, run)
        if world.is_main:
            run.cut_journal(-1 if checkpoint is None else checkpoint.step)
            if checkpoint is None:
                run.save(state.checkpoint())


def _put_back(state: TrainingState, checkpoint: Checkpoint, run: RunDirectory) -> None:
    _check_moments(state.method, checkpoint, run)
    with _of_this_run(run, checkpoint.step):
        state.put_back(checkpoint)


def _check_moments(method: Method, checkpoint: Checkpoint, run: RunDirectory) -> None:
    """Refuse to go on without the moments that should have been kept: it would not be what an unstopped run does."""
    settings = method.settings
    steps = settings.inner_steps + (not method.uses_query)
    keeps = settings.inner_optimizer_state == "persistent" and settings.inner_optimizer == "adamw" and steps > 0
    trained = checkpoint.step > checkpoint.state.get("skipped", 0)
    if keeps and trained and not any(name.startswith("inner.") for name in checkpoint.optimizer):
        raise AbmllError(
            f"{run.checkpoint_path(checkpoint.step)}: holds no moments of the inner steps, so it was begun with "
            "method.inner_optimizer_state=fresh. Go on with that, or begin again in another folder"
        )


@contextmanager
def _of_this_run(run: RunDirectory, step: int) -> Iterator[None]:
    try:
        yield
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        if isinstance(error, AbmllError):
            raise
        raise AbmllError(f"{run.checkpoint_path(step)}: of other adapters or settings ({str(error)[:200]})") from error


def _check_agreement(step: int, run: RunDirectory, world: World) -> None:
    of_ranks = world.tell(step)
    if of_ranks and (len(of_ranks) < world.size or len({news.code for news in of_ranks}) > 1):
        raise AbmllError(f"{run.path}: ranks see different checkpoints there; it must be one folder for all of them")


def theta(method: Method) -> dict[str, Tensor]:
    """The shared weights, what the method learns besides, and the log-temperature where it is learned, by name."""
    state = method.adapters.state_dict("shared")
    state |= {f"method.{name}": parameter.detach() for name, parameter in method.learned.items()}
    for temperature in method.temperature:
        state["likelihood.log_temperature"] = temperature.detach().reshape(1)
    return state


def refuse_different(method: Method, step: int, world: World) -> None:
    """Ranks that took the same outer steps on the same theta hold the same one, bit for bit.

    Raises:
        AbmllError: they do not: a device or the connection computes wrongly.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(theta(method).items()) if world.size > 1 else ():
        digest.update(name.encode() + tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    of_ranks = world.each(int.from_bytes(digest.digest()[:7], "big"))
    if different := [rank for rank, of_rank in enumerate(of_ranks) if of_rank != of_ranks[0]]:
        raise AbmllError(
            f"the weights of step {step} differ between ranks 0 and {different[0]}, which no rounding explains: a "
            "device or the connection computes wrongly. The checkpoints are rank 0's; the same command goes on there"
        )


def load_theta(method: Method, state: dict[str, Tensor]) -> None:
    """The inverse of `theta`, in place."""
    state = dict(state)
    with torch.no_grad():
        for name, parameter in method.learned.items():
            parameter.copy_(state.pop(f"method.{name}"))
        for temperature in method.temperature:
            temperature.copy_(state.pop("likelihood.log_temperature").reshape(()))
    method.adapters.load_state_dict("shared", state)


def restore_theta(method: Method, run: RunDirectory, step: int) -> None:
    """Put the shared weights of a checkpoint into the method's adapters.

    Raises:
        AbmllError: the checkpoint is missing or damaged.
    """
    checkpoint = run.load(step)
    with _of_this_run(run, step):
        load_theta(method, checkpoint.shared)
