"""phi of every training task, for methods whose tasks go on from where their last visit ended."""

from collections.abc import Sequence

import torch
from torch import Tensor


class TaskWeights:
    """What the factors of phi were at the end of each task's last visit, by the task's name.

    >>> kept, phi = TaskWeights(), [torch.ones(2)]
    >>> kept.keep("one", phi)
    >>> _ = phi[0].zero_()
    >>> kept.put_into("one", phi), phi, kept.count, kept.total(phi)
    (None, [tensor([1., 1.])], 1, [tensor([1., 1.])])
    """

    def __init__(self) -> None:
        self._weights: dict[str, list[Tensor]] = {}

    @property
    def count(self) -> int:
        """Tasks that were visited."""
        return len(self._weights)

    @torch.no_grad()
    def put_into(self, task: str, phi: Sequence[Tensor]) -> None:
        """Make phi what it was; of a task that was never visited it stays as it is."""
        if task in self._weights:
            torch._foreach_copy_(tuple(phi), tuple(self._weights[task]))

    def keep(self, task: str, phi: Sequence[Tensor]) -> None:
        """Remember phi as a task's."""
        self._weights[task] = [factor.detach().clone() for factor in phi]

    def total(self, like: Sequence[Tensor]) -> list[Tensor]:
        """The sum over tasks, in the order of their names: the same whatever the order of the visits was."""
        sums = [torch.zeros_like(factor, requires_grad=False) for factor in like]
        for _, weights in sorted(self._weights.items()):
            torch._foreach_add_(sums, weights)
        return sums

    def state_dict(self) -> dict[str, Tensor]:
        """`task.index` -> factor; not copied."""
        return {f"{task}.{i}": factor for task, parts in self._weights.items() for i, factor in enumerate(parts)}

    def load_state_dict(self, state: dict[str, Tensor], like: Sequence[Tensor]) -> None:
        """The inverse; what is remembered otherwise is forgotten.

        Raises:
            KeyError, ValueError: a factor is missing, or of another shape.
        """
        tasks = sorted({name.rpartition(".")[0] for name in state})
        found = {task: [state[f"{task}.{i}"].to(p.device) for i, p in enumerate(like)] for task in tasks}
        if any(part.shape != p.shape for parts in found.values() for part, p in zip(parts, like, strict=True)):
            raise ValueError("the weights of a training task have other shapes")
        self._weights = {task: [part.clone() for part in parts] for task, parts in found.items()}
