"""H, the generalised Gauss-Newton matrix of the examples: with all its entries, or with Kronecker factors."""

import abc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from abmll.adapters.layer import AdaptedLinear


class Curvature(abc.ABC):
    """H, which is asked for its eigenvalues and for covariances of scores."""

    @abc.abstractmethod
    def spectrum(self) -> Float[np.ndarray, " N"]:
        """Its eigenvalues but for zeros."""

    @abc.abstractmethod
    def covariance(self, rows: Float[Tensor, "K P"], precision: float) -> Float[np.ndarray, "K K"]:
        """J (H + precision)^-1 J^T of a Jacobian's rows, float64."""

    @abc.abstractmethod
    def state(self) -> dict[str, Tensor]:
        """As named tensors."""


class FullCurvature(Curvature):
    r"""H = G^T G, all its entries, by the rows of G alone: those of n examples with K choices are n K.

    Args:
        rows: G, with $\sqrt{p_k} J_k$ for each choice of each example.
    """

    def __init__(self, rows: Float[Tensor, "N P"]) -> None:
        self.rows = rows

    def spectrum(self) -> Float[np.ndarray, " N"]:
        """Those of G G^T, which are the same."""
        found: Float[np.ndarray, " N"] = np.linalg.eigvalsh(_product(self.rows, self.rows)).clip(min=0)
        return found

    def covariance(self, rows: Float[Tensor, "K P"], precision: float) -> Float[np.ndarray, "K K"]:
        """By the matrix inversion lemma."""
        own, cross = _product(rows, rows), _product(rows, self.rows)
        inner = _product(self.rows, self.rows) + precision * np.eye(len(self.rows))
        found: Float[np.ndarray, "K K"] = (own - cross @ np.linalg.solve(inner, cross.T)) / precision
        return found

    def state(self) -> dict[str, Tensor]:
        """G."""
        return {"rows": self.rows}

    @classmethod
    def of_state(cls, state: dict[str, Tensor], parameters: Sequence[Tensor]) -> "FullCurvature":
        """The inverse of `state`.

        Raises:
            KeyError, ValueError: it is none, or one of other factors.
        """
        rows, size = state["rows"], sum(parameter.numel() for parameter in parameters)
        if rows.ndim != 2 or rows.shape[1] != size:
            raise ValueError(f"rows has the shape {tuple(rows.shape)}, here there are {size} numbers in phi")
        return cls(rows.to(parameters[0].device))


class Factors(NamedTuple):
    """The Kronecker factors of one parameter matrix W (O x I), of which h = W x.

    Attributes:
        inputs: mean of x x^T over the tokens.
        outputs: sum of g g^T over tokens, g being gradients by h.
    """

    inputs: Float[Tensor, "I I"]
    outputs: Float[Tensor, "O O"]


class Seen(NamedTuple):
    """What a parameter matrix W (O x I) took in, and the gradients by what it gave out, in one pass.

    Attributes:
        inputs: x of each of M tokens.
        gradients: of each of K scores by h = W x of each token.
    """

    inputs: Float[Tensor, "M I"]
    gradients: Float[Tensor, "K M O"]


class KroneckerCurvature(Curvature):
    r"""H approximated block by block, a block for each factor B or A of a layer (K-FAC; Martens & Grosse 2015).

    With x the inputs of such a matrix W and $g_k$ the gradients of score k by its outputs, a block is

    $$ H_W = \Bigl( \frac1M \sum_{n, t} x_{nt} x_{nt}^\top \Bigr) \otimes
             \Bigl( \sum_{n, t} \sum_k p_{nk} g_{ntk} g_{ntk}^\top \Bigr) $$

    over examples n and their tokens t, M in all. It is exact for one example of one token, and for copies of it.

    Args:
        factors: of each parameter matrix, float32, as they are stored.
    """

    def __init__(self, factors: Sequence[Factors]) -> None:
        self.factors = list(factors)
        eigen = [[torch.linalg.eigh(matrix.double()) for matrix in pair] for pair in self.factors]
        self._vectors = [(inputs.eigenvectors, outputs.eigenvectors) for inputs, outputs in eigen]
        values = [(inputs.eigenvalues.clamp(min=0), outputs.eigenvalues.clamp(min=0)) for inputs, outputs in eigen]
        self._values = [torch.outer(outputs, inputs) for inputs, outputs in values]

    def spectrum(self) -> Float[np.ndarray, " N"]:
        """Products of the factors' eigenvalues."""
        values = torch.cat([block.flatten() for block in self._values])
        found: Float[np.ndarray, " N"] = values[values > 0].cpu().numpy()
        return found

    def covariance(self, rows: Float[Tensor, "K P"], precision: float) -> Float[np.ndarray, "K K"]:
        """In the factors' eigenvectors, where each block is diagonal."""
        total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
        blocks = rows.split([values.numel() for values in self._values], dim=1)
        for block, (inputs, outputs), values in zip(blocks, self._vectors, self._values, strict=True):
            turned = outputs.T @ block.double().view(-1, *values.shape) @ inputs
            total += ((turned / (values + precision)).flatten(1)) @ turned.flatten(1).T
        found: Float[np.ndarray, "K K"] = total.cpu().numpy()
        return found

    def state(self) -> dict[str, Tensor]:
        """All factors."""
        pairs = enumerate(self.factors)
        return {f"{name}.{i}": matrix for i, pair in pairs for name, matrix in pair._asdict().items()}

    @classmethod
    def of_state(cls, state: dict[str, Tensor], parameters: Sequence[Tensor]) -> "KroneckerCurvature":
        """The inverse of `state`.

        Raises:
            KeyError, ValueError: it is none, or one of other factors.
        """
        factors = []
        for i, parameter in enumerate(parameters):
            pair = Factors(*(state[f"{name}.{i}"].to(parameter.device) for name in Factors._fields))
            expected = [(size, size) for size in reversed(parameter.shape)]
            if [tuple(matrix.shape) for matrix in pair] != expected:
                raise ValueError(f"factor {i} has the shape {tuple(parameter.shape)}, not that of {pair._fields}.{i}")
            factors.append(pair)
        return cls(factors)


class KroneckerSums:
    """The factors of `KroneckerCurvature`, example by example.

    Args:
        per_example: divide the inputs' factor by the number of examples, not of tokens.
    """

    def __init__(self, *, per_example: bool = False) -> None:
        self._per_example, self._count = per_example, 0
        self._sums: list[list[Tensor]] = []

    def add(self, seen: Sequence[Seen], probabilities: Float[Tensor, " K"]) -> None:
        """One example: what each parameter matrix saw of it, and the probabilities of its choices."""
        added = [[x.T @ x, _weighted(gradients, probabilities)] for x, gradients in seen]
        self._sums = [[old + new.double() for old, new in zip(*pair, strict=True)] for pair in self._paired(added)]
        self._count += 1 if self._per_example else len(seen[0].inputs)

    def _paired(self, added: list[list[Tensor]]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        sums = self._sums or [[torch.zeros_like(m, dtype=torch.float64) for m in pair] for pair in added]
        return zip(sums, added, strict=True)

    def curvature(self) -> KroneckerCurvature:
        """Of the examples so far."""
        dtype = torch.get_default_dtype()
        return KroneckerCurvature(
            [Factors((inputs / self._count).to(dtype), outputs.to(dtype)) for inputs, outputs in self._sums]
        )


def _weighted(gradients: Float[Tensor, "K M O"], probabilities: Float[Tensor, " K"]) -> Float[Tensor, "O O"]:
    """Sum over scores and tokens of p g g^T."""
    flat = (gradients * probabilities.sqrt()[:, None, None]).flatten(0, 1)
    return flat.T @ flat


class Passes:
    """What adapted layers take in and give out in the last pass inside `listening`.

    Args:
        layers: of the model.
        parameters: factors of theirs that adaptation moves.
    """

    def __init__(self, layers: Sequence[AdaptedLinear], parameters: Sequence[nn.Parameter]) -> None:
        named = {id(p): (layer, name) for layer in layers for name, p in layer.task.named_parameters()}
        self._parts = [named[id(parameter)] for parameter in parameters]
        self._layers = list({layer.index: layer for layer, _ in self._parts}.values())
        self._ends: dict[int, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inputs and outputs of every layer are kept inside."""
        hooks = [layer.register_forward_hook(self._hear) for layer in self._layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hear(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, AdaptedLinear)
        self._ends[layer.index] = (inputs[0].detach(), output)

    def seen(self, scores: Float[Tensor, " K"], real: Bool[Tensor, "N T"]) -> list[Seen]:
        """What each parameter matrix saw; the scores' graph stays.

        Args:
            scores: of the pass.
            real: which tokens are no padding.
        """
        outputs = [self._ends[layer.index][1] for layer in self._layers]
        by_score = [torch.autograd.grad(score, outputs, retain_graph=True) for score in scores]
        gradients = dict(zip((layer.index for layer in self._layers), zip(*by_score, strict=True), strict=True))
        return [
            _of_factor(layer, name, self._ends[layer.index][0][real], torch.stack(gradients[layer.index])[:, real])
            for layer, name in self._parts
        ]


def _of_factor(layer: AdaptedLinear, name: str, x: Float[Tensor, "M I"], g: Float[Tensor, "K M O"]) -> Seen:
    """Of s B A x: A takes x in, and B what A gives."""
    task, scale = layer.task, layer.task.variance.scale
    b, a = task.mean_b.detach(), task.mean_a.detach()
    x, g = x.to(a.dtype), g.to(a.dtype)
    return Seen(scale * x @ a.T, g) if name == "mean_b" else Seen(x, scale * g @ b)


def _product(one: Float[Tensor, "N P"], other: Float[Tensor, "M P"]) -> Float[np.ndarray, "N M"]:
    found: Float[np.ndarray, "N M"] = (one @ other.T).double().cpu().numpy()
    return found
