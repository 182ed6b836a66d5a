"""One suite over every method, and over every way that ABMLL can be set: a new method is finished when it is green."""

import itertools
import json
from inspect import isfunction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from abmll.errors import AbmllError
from abmll.methods import METHODS, method_class, resolve_settings
from abmll.methods.base import Method
from abmll.running.build import System
from abmll.running.inner import inner_steps
from abmll.running.optimizers import GroupOptimizer
from tests.systems import gradients, key_of, questions, run_config, same, scramble, system_of, train, values
from tests.tiny import tiny_tasks

LEARNED = {"likelihood": {"learn_temperature": True}}
LOG_STD = {"std_form": "log_std", "training_sampler": "weight"}


def _variants() -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Name -> method, preset and settings."""
    out: dict[str, tuple[str, str, dict[str, Any]]] = {}
    for name, method in METHODS.items():
        out |= {f"{name}-{preset}": (name, preset, {}) for preset in method.presets}
        out[f"{name}-learned-temperature"] = (name, "default", LEARNED)
    for outer, start, form in itertools.product(
        ("identity", "detach", "displacement"), ("copy", "init"), ("square", "log_std")
    ):
        settings = {"outer_step": outer, "std_start": start, **(LOG_STD if form == "log_std" else {})}
        priors = {"mean_prior_weight": 1e-9, "precision_prior_weight": 1e-9}
        out[f"abmll-{outer}-{start}-{form}"] = ("abmll", "default", settings | priors)
    for outer in ("detach", "displacement"):
        out[f"abmll-{outer}-learned-temperature"] = ("abmll", "default", {"outer_step": outer, **LEARNED})
    out["abmll-persistent-phi"] = ("abmll", "default", {"phi": "persistent"})
    out["abmll-frozen-stds"] = ("abmll", "default", {"train_stds": False})
    out["structured-prior"] = ("structured", "default", {"mean_prior_weight": 1e-3})
    out["structured-fresh"] = ("structured", "default", {"inner_optimizer_state": "fresh"})
    out["reptile-dropout"] = ("reptile", "default", {"dropout": 0.2})
    out["reptile-adamw"] = ("reptile", "default", {"outer_optimizer": "adamw", "outer_lr": 3e-4})
    out["abmll-part-of-the-entries"] = ("abmll", "default", {"kl_entries": 0.5, "training_samples": 2})
    return out


VARIANTS = _variants()
every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_method = pytest.mark.parametrize("name", METHODS)


def build(variant: str) -> System:
    """The variant's system, two inner steps long."""
    name, preset, settings = VARIANTS[variant]
    return system_of(name, preset, **{"inner_steps": 2, **settings})


def run_inner(system: System) -> None:
    """Begin a task and take two inner steps on it."""
    system.method.begin_task(first=True)
    optimizer = GroupOptimizer(system.method.task())
    inner_steps(system.method, optimizer, system.batcher, [questions(2), questions(2, start=2)], (0, 0, 0))


def query_of(system: System) -> list[Any]:
    """A query batch for a method that uses one."""
    return system.batcher(questions(2, start=4)) if system.method.uses_query else []


@every_variant
def test_settings_round_trip(variant: str) -> None:
    settings = build(variant).method.settings
    assert type(settings)(**settings.model_dump()) == settings
    assert type(settings).model_validate_json(settings.model_dump_json()) == settings


@every_variant
def test_inner_loop_leaves_theta_alone(variant: str) -> None:
    system = build(variant)
    scramble(system, size=1e-3)
    theta = values(system, "shared")
    run_inner(system)
    assert same(values(system, "shared"), theta)
    assert all(gradient is None for gradient in gradients(system, "shared").values())
    assert not same(values(system, "task"), theta), "phi did not move"


@every_variant
def test_outer_gradient_moves_nothing_and_lands_on_theta(variant: str) -> None:
    system = build(variant)
    run_inner(system)
    method = system.method
    theta, phi = values(system, "shared"), values(system, "task")
    method.outer_gradient(query_of(system), key_of(0, 0, 0, 2))
    assert same(values(system, "shared"), theta)
    assert same(values(system, "task"), phi)
    assert all(gradient is None for gradient in gradients(system, "task").values())
    owed = {id(p) for group in method.shared() for p in group.parameters}
    everything = [*method.adapters.parameters("shared"), *method.temperature]
    assert {id(p) for p in everything if p.grad is not None} == owed
    assert all(bool(p.grad.isfinite().all()) for p in everything if p.grad is not None)
    assert all(p.grad is None for p in system.language_model.model.parameters() if not p.requires_grad)


@every_variant
def test_begin_task_makes_phi_from_theta(variant: str) -> None:
    system = build(variant)
    fresh = values(system, "shared")
    scramble(system)
    theta = values(system, "shared")
    system.method.begin_task(first=True)
    restarts = getattr(system.method.settings, "std_start", "copy") == "init"
    expected = {name: fresh[name] if restarts and ".std_" in name else theta[name] for name in theta}
    assert same(values(system, "task"), expected)
    assert same(values(system, "shared"), theta)


@every_variant
def test_only_a_persistent_phi_goes_on_to_the_next_task(variant: str) -> None:
    system = build(variant)
    scramble(system)
    phi = values(system, "task")
    system.method.begin_task(first=False)
    assert same(values(system, "task"), phi) == system.method.keeps_phi


@every_variant
def test_three_iterations_move_exactly_what_is_trained(variant: str, tmp_path: Path) -> None:
    name, preset, settings = VARIANTS[variant]
    system = build(variant)
    theta = values(system, "shared")
    temperature = float(system.likelihood.log_temperature.detach())
    train(run_config(name, preset, **{"inner_steps": 2, **settings}), tmp_path, system=system)
    moved = {n for n, tensor in values(system, "shared").items() if not torch.equal(tensor, theta[n])}
    in_groups = {id(p) for group in system.method.shared() for p in group.parameters}
    parameters = zip(theta, system.method.adapters.parameters("shared"), strict=True)
    trained = {n for n, parameter in parameters if id(parameter) in in_groups}
    assert moved == trained
    assert bool(trained) == system.method.moves_weights
    learned = system.likelihood.log_temperature.requires_grad
    assert (float(system.likelihood.log_temperature.detach()) != temperature) == learned
    assert all(bool(t.isfinite().all()) for t in values(system, "shared").values())


@every_method
def test_every_setting_is_in_its_docstring(name: str) -> None:
    classes = [c for c in METHODS[name].settings_class.__mro__ if "abmll" in c.__module__]
    described = "\n".join(c.__doc__ or "" for c in classes)
    missing = [field for field in METHODS[name].settings_class.model_fields if f"\n        {field}: " not in described]
    missing = [field for field in missing if f"\n    {field}: " not in described]
    assert not missing


@every_method
def test_a_method_is_final_and_overrides_nothing_concrete(name: str) -> None:
    cls = method_class(name)
    assert issubclass(cls, Method)
    assert getattr(cls, "__final__", False)
    concrete = {n for n, v in vars(Method).items() if isfunction(v) and not getattr(v, "__isabstractmethod__", False)}
    assert concrete
    assert not concrete & {n for c in cls.__mro__ if c not in Method.__mro__ for n in vars(c)}


@every_method
@pytest.mark.parametrize(
    ("given", "nearest"), [({"inner_step": 3}, "inner_steps"), ({"outter_lr": 0.1}, "outer_lr"), ({"zzz": 1}, "Known")]
)
def test_unknown_setting_is_refused_with_the_nearest(name: str, given: dict[str, Any], nearest: str) -> None:
    with pytest.raises(AbmllError, match=rf"setting of method {name}.*{nearest}"):
        resolve_settings(name, given=given)


@every_method
@pytest.mark.parametrize(
    "given", [{"inner_lr": 0.0}, {"inner_lr": float("nan")}, {"inner_steps": -1}, {"episodes": "x"}]
)
def test_value_out_of_range_is_refused_with_its_place(name: str, given: dict[str, Any]) -> None:
    with pytest.raises(AbmllError, match=rf"method\.{next(iter(given))}: .*found"):
        resolve_settings(name, given=given)


def test_unknown_method_and_preset_are_refused_with_the_nearest() -> None:
    with pytest.raises(AbmllError, match="Did you mean 'reptile'"):
        method_class("reptil")
    with pytest.raises(AbmllError, match=r"preset of abmll 'papers'.*Did you mean 'paper'"):
        resolve_settings("abmll", "papers")


@pytest.mark.parametrize("variant", ["lora-default", "reptile-default", "abmll-paper", "abmll-persistent-phi"])
def test_memory_of_a_run_does_not_depend_on_the_number_of_tasks(variant: str, tmp_path: Path) -> None:
    name, preset, settings = VARIANTS[variant]
    sizes = []
    for count in (2, 50):
        folder = tmp_path / str(count)
        config = run_config(name, preset, **{"inner_steps": 1, **settings})
        system, final = train(config, folder, tasks=tiny_tasks(count, n_rows=6, n_test=2))
        files = [load_file(path) for path in sorted(folder.glob(f"checkpoints/step-{final:06d}/*.safetensors"))]
        assert len(files) == 2
        kept = [{n: tuple(t.shape) for n, t in file.items()} for file in files]
        held = sum(p.numel() for slot in ("shared", "task") for p in system.method.adapters.parameters(slot))
        sizes.append((kept, held))
    assert sizes[0] == sizes[1]


def test_a_run_configuration_with_impossible_settings_is_refused() -> None:
    with pytest.raises(AbmllError, match="training_sampler=weight"):
        system_of("abmll", std_form="log_std")
    with pytest.raises(AbmllError, match="training_sampler=weight"):
        system_of("abmll", likelihood={"share_prefix": False})


def test_presets_are_known_settings() -> None:
    for name, method in METHODS.items():
        assert "default" in method.presets
        for preset in method.presets:
            assert json.loads(resolve_settings(name, preset).model_dump_json())
