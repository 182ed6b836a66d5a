"""Gradients of outputs by the cores, question by question: one forward pass, and a backward pass for each direction."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from abmll.adapters.layer import AdaptedLinear
from abmll.prompts.batches import ChoiceBatch


class CoreGradients:
    r"""What s B R A of every layer takes in and gives out in the last pass inside `listening`.

    With x the input of a layer and g the gradient of any number by its output, that by the core R is
    $s \sum_t (B^\top g_t) (A x_t)^\top$ over the tokens t. Rows of a batch belong to a question each, so one backward
    pass has the gradients of all its questions.

    Args:
        layers: whose shared factors are B and A.
    """

    def __init__(self, layers: Sequence[AdaptedLinear]) -> None:
        self._layers = list(layers)
        self._ends: dict[int, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inputs and outputs of every layer are kept inside."""
        hooks = [layer.register_forward_hook(self._hear) for layer in self._layers]
        try:
            yield
        finally:
            self._ends.clear()
            for hook in hooks:
                hook.remove()

    def _hear(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, AdaptedLinear)
        self._ends[layer.index] = (inputs[0].detach(), output)

    def rows(
        self, outputs: Float[Tensor, "B K"], directions: Float[Tensor, "B K D"], batch: ChoiceBatch
    ) -> Float[Tensor, "B D P"]:
        """The gradients by all cores of D combinations of each question's outputs; the graph goes.

        Args:
            outputs: of the pass.
            directions: weights of the combinations.
            batch: whose rows belong to one question each: of several questions none may have a premise.
        """
        ends = [self._ends[layer.index] for layer in self._layers]
        factors = [(layer.shared.mean_b.detach(), layer.shared.mean_a.detach()) for layer in self._layers]
        seen = [x.to(a.dtype) @ a.T for (x, _), (_, a) in zip(ends, factors, strict=True)]
        of_rows = question_of_row(batch).to(seen[0])
        count, found = directions.shape[-1], []
        for number in range(count):
            weights = directions[..., number].to(outputs.dtype)
            by_layer = torch.autograd.grad(outputs, [y for _, y in ends], weights, retain_graph=number < count - 1)
            parts = [
                layer.task.variance.scale * ((g.to(b.dtype) @ b).mT @ h).flatten(1)
                for layer, g, (b, _), h in zip(self._layers, by_layer, factors, seen, strict=True)
            ]
            found.append(of_rows @ torch.cat(parts, dim=1))
        return torch.stack(found, dim=1)


def question_of_row(batch: ChoiceBatch) -> Float[Tensor, "B N"]:
    """1 where a row holds choices of a question, else 0. Sums by it are the same each time, on CUDA too."""
    questions, choices = batch.lengths.shape
    if questions == 1:
        return torch.ones(1, batch.input_ids.shape[0], device=batch.input_ids.device)
    question: Int[Tensor, " M"] = (batch.target_choice // choices).clamp_max(questions)
    row = batch.read_row[batch.target_read]
    nobody = torch.full((batch.input_ids.shape[0],), questions, device=row.device)
    of_row = nobody.scatter_reduce(0, row, question, "amin")  # padded targets name no question
    return (torch.arange(questions, device=row.device)[:, None] == of_row).float()
