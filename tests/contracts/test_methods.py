"""One suite over every method, and over every way that ABMLL can be set: a new method is finished when it is green."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from abmll.errors import AbmllError
from abmll.methods import METHODS, method_class, resolve_settings
from abmll.systems.system import System
from abmll.testing import check_begin_task, check_class, check_inner_steps, check_outer_gradient, check_training
from tests.systems import TASKS, run_config, same, scramble, system_of, train, values
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
    out["anil-second-order"] = ("anil", "default", {"second_order": True})
    out["meta-sgd-second-order"] = ("meta-sgd", "default", {"second_order": True, "inner_optimizer": "sgd"})
    out["abmll-second-order-init"] = ("abmll", "default", {"outer_step": "identity", "second_order": True})
    out["abmll-part-of-the-entries"] = ("abmll", "default", {"kl_entries": 0.5, "training_samples": 2})
    return out


VARIANTS = _variants()
every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_method = pytest.mark.parametrize("name", METHODS)


def build(variant: str) -> System:
    """The variant's system, two inner steps long."""
    name, preset, settings = VARIANTS[variant]
    return system_of(name, preset, **{"inner_steps": 2, **settings})


@every_variant
def test_settings_round_trip(variant: str) -> None:
    settings = build(variant).method.settings
    assert type(settings)(**settings.model_dump()) == settings
    assert type(settings).model_validate_json(settings.model_dump_json()) == settings


@every_variant
def test_inner_loop_leaves_theta_alone(variant: str) -> None:
    check_inner_steps(build(variant), TASKS[0])


@every_variant
def test_outer_gradient_moves_nothing_and_lands_on_theta(variant: str) -> None:
    check_outer_gradient(build(variant), TASKS[0])


@every_variant
def test_what_phi_was_before_a_task_does_not_count(variant: str) -> None:
    check_begin_task(build(variant))


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
def test_training_moves_exactly_what_is_trained_and_goes_on(variant: str) -> None:
    check_training(lambda: build(variant), TASKS)


@every_method
def test_a_class_is_final_and_its_settings_are_described(name: str) -> None:
    for preset in METHODS[name].presets:
        check_class(name, preset, {})


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
