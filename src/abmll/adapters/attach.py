"""Put adapters on a model and take them off again."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from abmll.adapters.gaussian import LowRankGaussian
from abmll.adapters.layer import AdaptedLinear, AdapterSet, Noise, layer_seed
from abmll.deprecation import earlier_arguments
from abmll.errors import AbmllError
from abmll.kernels import StdForm, Variance


@dataclass(frozen=True, slots=True)
class StdOptions:
    """The std factors that adapters hold in Bayesian methods (docs/method.md, section 2).

    Attributes:
        form: "square" or "log_std".
        init: the std that training starts from.
        relative: if given, it is this times the standard deviation of each layer's own weight instead.
        floor: the std that none goes below.
    """

    form: StdForm = "square"
    init: float = 2.06e-9**0.5
    relative: float | None = None
    floor: float = 1e-6


@dataclass(frozen=True, slots=True)
class SpreadWeight:
    """What is kept of a linear layer's weights that no process has whole, as its attribute `spread_weight`.

    Attributes:
        sample: the entries that `sample_base` takes, float32.
        std: standard deviation of all of them.
    """

    sample: Float[Tensor, " W"]
    std: float


def _std_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Std options under the names that `attach` had them by."""
    options = {name.removeprefix("std_"): value for name, value in given.items() if name != "with_std"}
    return {"std": StdOptions(**options) if given.get("with_std", True) else None}


@earlier_arguments(
    ("with_std", "std_form", "std_init", "std_relative", "std_floor"),
    "attach(std=StdOptions(form=, init=, relative=, floor=)), or attach(std=None)",
    _std_of,
)
def attach(
    model: nn.Module,
    targets: Sequence[str] | str = ("q_proj", "v_proj"),
    *,
    rank: int = 8,
    alpha: float = 16.0,
    std: StdOptions | None = StdOptions(),
    seed: int = 0,
) -> AdapterSet:
    """Replace each matching linear layer by an `AdaptedLinear`, in place.

    Args:
        model: the base model; its own parameters should not require gradients.
        targets: module names (matched as PEFT does: the whole path or its end), a regular expression for the whole
            path, or "all-linear" (every linear layer except the output embedding).
        rank: R of every factor.
        alpha: scale s = alpha / rank.
        std: of the std factors; None: means alone, as in LoRA.
        seed: seed of the initial A factors; B factors start at 0.

    Raises:
        AbmllError: nothing matched (lists the linear layers that are there), a bad expression, or a bad number.
    """
    stds = StdOptions() if std is None else std
    _check(rank, alpha, stds)
    matched = find_targets(model, targets)
    noise, layers = Noise(), {}
    for index, (path, base) in enumerate(matched.items()):
        offset = stds.init if stds.relative is None else stds.relative * _weight_std(path, base)
        variance = Variance(stds.form, offset, stds.floor, alpha / rank)
        out_features, in_features = features(base)
        pair = [
            LowRankGaussian(
                out_features, in_features, rank, variance, with_std=std is not None, seed=layer_seed(seed, index)
            ).to(next(base.parameters()).device)
            for _ in range(2)
        ]
        layers[path] = AdaptedLinear(base, pair[0], pair[1], noise, index)
        _replace(model, path, layers[path])
    return AdapterSet(layers, noise, seed)


def detach(model: nn.Module, adapters: AdapterSet) -> None:
    """Undo `attach`: the base layers are put back, the model is as it was."""
    for path, layer in adapters.layers.items():
        _replace(model, path, layer.base)


def find_targets(model: nn.Module, targets: Sequence[str] | str) -> dict[str, nn.Module]:
    """Paths and layers that `targets` names, in the model's own order."""
    linear = {path: module for path, module in model.named_modules() if _is_linear(module)}
    output = getattr(model, "get_output_embeddings", lambda: None)()
    if targets == "all-linear":
        matched = {path: module for path, module in linear.items() if module is not output}
    elif isinstance(targets, str):
        try:
            pattern = re.compile(targets)
        except re.error as error:
            raise AbmllError(f"adapter.targets: {targets!r} is not a regular expression ({error})") from error
        matched = {path: module for path, module in linear.items() if pattern.fullmatch(path)}
    else:
        matched = {p: m for p, m in linear.items() if any(p == t or p.endswith("." + t) for t in targets)}
        _check_every_target_matched(targets, matched, linear)
    if not matched:
        raise AbmllError(f"adapter.targets: {targets!r} matches no linear layer. {_what_is_there(linear)}")
    _check_untied(model, matched, output)
    return matched


def _check_untied(model: nn.Module, matched: dict[str, nn.Module], output: nn.Module | None) -> None:
    """An adapter on tied weights would be merged into the embeddings too, and PEFT warns of it at each load."""
    inputs = getattr(model, "get_input_embeddings", lambda: None)()
    tied = output is not None and inputs is not None and getattr(output, "weight", 0) is getattr(inputs, "weight", 1)
    for path, module in matched.items():
        if tied and module is output:
            raise AbmllError(f"adapter.targets: {path} shares its weights with the embeddings; leave it out")


def _check_every_target_matched(
    targets: Sequence[str], matched: dict[str, nn.Module], linear: dict[str, nn.Module]
) -> None:
    for target in targets:
        if not any(path == target or path.endswith("." + target) for path in matched):
            raise AbmllError(f"adapter.targets: {target!r} matches no linear layer. {_what_is_there(linear)}")


def _what_is_there(linear: dict[str, nn.Module]) -> str:
    if any(path.endswith(".base") for path in linear):
        return "There are adapters on this model already: close the system that they belong to, or `detach` them"
    names = sorted({path.rpartition(".")[2] for path in linear})
    example = next(iter(linear), "none")
    return f"Linear layers of this model are called: {', '.join(names) or 'none'} (for example {example})"


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # GPT-2's transposed linear layer


def features(base: nn.Module) -> tuple[int, int]:
    """Output and input features of a linear layer."""
    if isinstance(base, nn.Linear):
        return base.out_features, base.in_features
    rows, columns = base.weight.shape  # type: ignore[misc]
    return int(columns), int(rows)


def _weight_std(path: str, base: nn.Module) -> float:
    if (spread := getattr(base, "spread_weight", None)) is not None:
        return float(spread.std)
    weight = base.weight
    if not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
        raise AbmllError(f"method.std_relative needs floating-point weights, {path} is quantised; give method.std_init")
    return float(weight.float().std())


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _check(rank: int, alpha: float, stds: StdOptions) -> None:
    relative = 1.0 if stds.relative is None else stds.relative
    numbers = {"rank": rank, "alpha": alpha, "std_init": stds.init, "std_floor": stds.floor, "std_relative": relative}
    for name, value in numbers.items():
        if not isinstance(value, int | float) or not 0 < value < float("inf"):
            section = "method" if name.startswith("std_") else "adapter"
            raise AbmllError(f"{section}.{name} is {value!r}; it must be a positive number")
