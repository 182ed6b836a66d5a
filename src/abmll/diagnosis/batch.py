"""`abmll doctor --batch`: a batch that was not finite, computed again to find the first term, layer and factor."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from abmll.adapters.layer import AdapterSet
from abmll.config import RunConfig, load_config
from abmll.errors import AbmllError
from abmll.methods.base import Terms, backward_by_share
from abmll.methods.noise import step_key
from abmll.models import LanguageModel
from abmll.systems.build import build_system, load_base
from abmll.systems.system import System
from abmll.training.failed_batch import TEMPERATURE, StoredBatch, read_batch

Slot = Literal["shared", "task"]


@dataclass(frozen=True)
class Finding:
    """The first thing that is not finite, in the order of computation; empty texts where nothing is, or it is no layer.

    Attributes:
        task: the batch's task.
        questions: ids of its questions.
        step: `inner` or `outer`.
        terms: name of a loss term -> its value.
        term: the first term that is not finite: `weights`, `activations`, `nll`, `task_kl`, `prior` or
            `gradient`; "" if all is.
        layer: path of the layer where it begins.
        factor: of that layer: `shared.mean_b`, ...
    """

    task: str
    questions: tuple[str, ...]
    step: str
    terms: dict[str, float]
    term: str = ""
    layer: str = ""
    factor: str = ""

    def __str__(self) -> str:
        values = ", ".join(f"{name} {value:.6g}" for name, value in self.terms.items())
        lines = [f"{self.step} step on task {self.task}, questions {', '.join(self.questions) or 'none'}"]
        lines += [f"terms: {values}"] if values else []
        if not self.term:
            return "\n".join([*lines, "everything is finite here: another device or version computes it otherwise"])
        where = "".join(f", {what} {name}" for what, name in (("layer", self.layer), ("factor", self.factor)) if name)
        return "\n".join([*lines, f"first not finite: {self.term}{where}"])


def replay_batch(path: Path | str, load: Callable[[Any], LanguageModel] = load_base) -> Finding:
    """Compute a saved batch again, on the weights it met and with the same noise, and look where it breaks.

    Args:
        path: the `batch.json` that training names, or its folder.
        load: loads the base model of a model configuration.

    Raises:
        AbmllError: a file is damaged, or the base model is not to be had.
    """
    stored = read_batch(Path(path))
    config = _config(stored, Path(path))
    system = build_system(config, load(config.model))
    try:
        _put(stored, system, Path(path))
        return _find(stored, system)
    finally:
        system.close()


def _config(stored: StoredBatch, path: Path) -> RunConfig:
    if not stored.config:
        raise AbmllError(f"{path}: kept without a configuration, so its model is not known")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(stored.config, encoding="utf-8")
        return load_config(RunConfig, file)


@torch.no_grad()
def _put(stored: StoredBatch, system: System, path: Path) -> None:
    state = dict(stored.state)
    if TEMPERATURE in state:
        system.likelihood.log_temperature.copy_(state.pop(TEMPERATURE).reshape(()))
    try:
        for slot in ("shared", "task"):
            mine = {n.removeprefix(f"{slot}."): t for n, t in state.items() if n.startswith(f"{slot}.")}
            system.method.adapters.load_state_dict(slot, mine)
    except (KeyError, ValueError) as error:
        raise AbmllError(f"{path}: its weights do not fit the model of its configuration ({error})") from error


def _find(stored: StoredBatch, system: System) -> Finding:
    batch, method = stored.batch, system.method
    ids = tuple(question.id for question in batch.questions)
    step = "outer" if batch.outer else "inner"
    for slot in ("shared", "task"):
        if broken := _first_bad(_factors(method.adapters, slot)):
            return Finding(stored.task, ids, step, {}, "weights", *_split(broken))
    with _first_bad_output(system.language_model.model) as outputs:
        terms = _compute(stored, system)
    values = _values(terms, has_nll=bool(batch.questions))
    found = Finding(stored.task, ids, step, values)
    if outputs:  # even where the loss is finite: attention can swallow NaN
        return _at(found, "activations", outputs[0], "")
    if not _finite(values.get("nll", 0.0)):
        return _at(found, "nll", "", "")
    if not _finite(values.get("task_kl", 0.0)):
        return _at(found, "task_kl", *_first_layer(system, lambda layers: layers.kl()))
    prior = _bad_prior(system) if batch.outer else None
    if prior is not None:
        return _at(found, "prior", *prior)
    moved: Slot = "shared" if batch.outer else "task"
    gradients = {n: p.grad for n, p in _factors(method.adapters, moved).items() if p.grad is not None}
    if broken := _first_bad(gradients):
        return _at(found, "gradient", *_split(broken))
    return found


def _at(found: Finding, term: str, layer: str, factor: str) -> Finding:
    return Finding(found.task, found.questions, found.step, found.terms, term, layer, factor)


def _compute(stored: StoredBatch, system: System) -> Terms | None:
    """The step's terms, and its gradients left on the factors."""
    method, batch = system.method, stored.batch
    key = step_key(batch.coordinates)[0].to(system.batcher.device)
    batches = system.batcher(batch.questions) if batch.questions else []
    if batch.outer:
        return method.outer_gradient(batches, key)
    return backward_by_share(batches, lambda part: method.inner_loss(part, key))


def _values(terms: Terms | None, *, has_nll: bool) -> dict[str, float]:
    if terms is None:
        return {}
    found = {"total": terms.total, "nll": terms.nll if has_nll else None, "task_kl": terms.task_kl}
    return {name: float(value.detach()) for name, value in found.items() if value is not None}


def _finite(value: float) -> bool:
    return abs(value) < float("inf")


def _factors(adapters: AdapterSet, slot: Slot) -> dict[str, nn.Parameter]:
    """`layer.slot.factor` -> parameter, in layer order."""
    return {
        f"{path}.{slot}.{name}": parameter
        for path, layer in adapters.layers.items()
        for name, parameter in getattr(layer, slot).named_parameters()
    }


def _first_bad(tensors: dict[str, Any]) -> str:
    return next((name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())), "")


def _split(name: str) -> tuple[str, str]:
    """A factor's layer, and slot and name in it."""
    layer, slot, factor = name.rsplit(".", 2)
    return layer, f"{slot}.{factor}"


@contextmanager
def _first_bad_output(model: nn.Module) -> Iterator[list[str]]:
    """Paths of modules whose output is not finite, in the order of computation: innermost first."""
    found: list[str] = []

    def look(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                found.append(path)

        return hook

    hooks = [module.register_forward_hook(look(path)) for path, module in model.named_modules()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _first_layer(system: System, term: Callable[[AdapterSet], Tensor]) -> tuple[str, str]:
    """The first layer whose own share of a term is not finite, or gives a gradient that is not."""
    adapters = system.method.adapters
    for path, layer in adapters.layers.items():
        alone = AdapterSet({path: layer}, adapters.noise, adapters.seed)
        factors = {**_factors(alone, "shared"), **_factors(alone, "task")}
        value = term(alone)
        gradients = torch.autograd.grad(value, list(factors.values()), allow_unused=True)
        bad = _first_bad({n: g for n, g in zip(factors, gradients, strict=True) if g is not None})
        if bad or not bool(value.isfinite()):
            return (path, _split(bad)[1]) if bad else (path, "")
    return "", ""


def _bad_prior(system: System) -> tuple[str, str] | None:
    """Layer and factor where -log p(theta) breaks, if it has a weight and does."""
    s: Any = system.method.settings
    mean, precision = (getattr(s, f"{name}_prior_weight", 0.0) for name in ("mean", "precision"))
    terms: list[Callable[[AdapterSet], Tensor]] = []
    if mean:
        terms.append(lambda layers: layers.mean_penalty(s.mean_prior_variance))
    if precision and s.train_stds:
        terms.append(lambda layers: layers.precision_penalty(s.precision_prior_shape, s.precision_prior_rate))
    for term in terms:
        layer, factor = _first_layer(system, term)
        if layer:
            return layer, factor
    return None
