"""By which rule each group of a method's parameters moves, and what its steps report, against the oracle in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from abmll.errors import AbmllError
from abmll.kernels.noise import noise_key
from abmll.methods import METHODS, resolve_settings
from abmll.methods.base import Group, Terms, add_gradients, backward_by_share
from tests.oracle import draw_key, leaves, slow_kl, slow_nll
from tests.systems import gradients, key_of, questions, scramble, system_of, values

PLACE = (5, 3, 1, 2)
KEY = key_of(*PLACE)
RATES = {"inner_lr": 0.011, "outer_lr": 0.012, "temperature_lr": 0.013}
STD_RATES = {"std_lr": 0.014, "outer_std_lr": 0.015}
LEARNED = {"likelihood": {"learn_temperature": True}}
LAYERS = 4
"""q and v of two layers: of each, two factors of the mean and two of the std."""


def rules(groups: list[Group]) -> list[tuple[Any, ...]]:
    """What moves each group."""
    return [(g.name, len(g.parameters), g.optimizer, g.lr, g.float64_state) for g in groups]


TEMPERATURE = ("temperature", 1, "adamw", 0.013, False)


@pytest.mark.parametrize(
    ("name", "settings", "outer", "inner"),
    [
        ("lora", {}, ["sgd"], ["adamw"]),
        ("structured", {}, ["sgd"], ["adamw"]),
        ("reptile", {}, ["sgd"], ["adamw"]),
        ("reptile", {"outer_optimizer": "adamw", "inner_optimizer": "sgd"}, ["adamw"], ["sgd"]),
        ("fomaml", {}, ["adamw"], ["adamw"]),
        ("pretrained", {}, [], ["adamw"]),
        ("abmll", {}, ["sgd", "adamw"], ["adamw", "adamw"]),
        ("abmll", {"outer_step": "identity"}, ["adamw", "adamw"], ["adamw", "adamw"]),
        ("abmll", {"outer_step": "identity", "outer_optimizer": "sgd"}, ["sgd", "adamw"], ["adamw", "adamw"]),
        ("abmll", {"inner_optimizer": "sgd", "std_state": "float64"}, ["sgd", "adamw"], ["sgd", "sgd"]),
        ("abmll", {"train_stds": False}, ["sgd"], ["adamw"]),
    ],
)
def test_every_group_has_its_own_rule_and_rate(
    name: str, settings: dict[str, Any], outer: list[str], inner: list[str]
) -> None:
    """docs/method.md, section 2: means by `outer_lr` and `inner_lr`, stds by rates of their own, outside by AdamW."""
    own = STD_RATES if name == "abmll" else {}
    method = system_of(name, **RATES, **own, **settings, **LEARNED).method
    wide = settings.get("std_state") == "float64"
    rates = {"mean": (0.012, 0.011, False), "std": (0.015, 0.014, wide)}
    sides: list[list[tuple[Any, ...]]] = [[], []]
    for side, rules_of_side in enumerate((outer, inner)):
        for part, rule in zip(("mean", "std"), rules_of_side, strict=False):
            sides[side].append((part, 2 * LAYERS, rule, rates[part][side], rates[part][2]))
    assert rules(method.shared()) == [*sides[0], TEMPERATURE]
    assert rules(method.task()) == sides[1]
    for slot, groups in (("shared", method.shared()), ("task", method.task())):
        for group in groups:
            if group.name != "temperature":
                ours = method.adapters.parameters(slot, group.name)  # type: ignore[arg-type]
                assert [id(p) for p in group.parameters] == [id(p) for p in ours]


def test_a_temperature_that_is_not_learned_is_in_no_group() -> None:
    for name in METHODS:
        assert "temperature" not in [group.name for group in system_of(name).method.shared()]


def friendly(**settings: Any) -> Any:
    """An ABMLL system with random theta and phi, and stds that a draw shows in."""
    wide = {"training_sampler": "weight", "task_kl_weight": 0.7, "std_init": 0.05, "std_floor": 1e-3}
    system = system_of("abmll", **{**wide, **settings})
    scramble(system, size=0.1)
    return system


def test_several_draws_of_training_are_averaged() -> None:
    system = friendly(training_samples=3)
    phi = leaves(system, "task")
    each = [float(slow_nll(system, phi, questions(2), draw_key(PLACE, sample)).detach()) for sample in range(3)]
    terms = system.method.inner_loss(system.batcher(questions(2))[0], KEY)
    assert float(terms.nll.detach()) == pytest.approx(sum(each) / 3, rel=1e-5)
    assert max(each) - min(each) > 1e-4


@pytest.mark.parametrize("step", ["identity", "detach", "displacement"])
def test_an_outer_step_reports_what_its_gradient_is_of(step: str) -> None:
    system = friendly(outer_step=step, std_start="copy")
    phi, theta = leaves(system, "task"), leaves(system, "shared")
    kl = float(slow_kl(system, phi, theta).detach()) / system.method.adapters.entries
    asked = system.batcher(questions(2)) if step == "identity" else []
    terms = system.method.outer_gradient(asked, KEY)
    nll = float(slow_nll(system, phi, questions(2), draw_key(PLACE)).detach()) if step == "identity" else 0.0
    assert float(terms.task_kl) == pytest.approx(kl, rel=1e-5)
    assert float(terms.total) == pytest.approx(nll + 0.7 * kl, rel=1e-5)
    assert float(terms.nll) == pytest.approx(nll, rel=1e-5) if asked else bool(terms.nll.isnan())
    assert all(gradient is None for gradient in gradients(system, "task").values()), "it is theta that moves"
    assert not any(part.requires_grad for part in (*terms.losses, terms.nll, terms.task_kl))


@pytest.mark.parametrize("step", ["identity", "detach"])
def test_frozen_stds_have_no_prior_of_their_precisions(step: str) -> None:
    system = friendly(outer_step=step, train_stds=False, mean_prior_weight=0.5, precision_prior_weight=0.5)
    system.method.begin_task()
    system.method.outer_gradient(system.batcher(questions(2)) if step == "identity" else [], KEY)
    assert all(g is None for n, g in gradients(system, "shared").items() if ".std_" in n)
    assert all(g is not None for n, g in gradients(system, "shared").items() if ".mean_" in n)


@pytest.mark.parametrize("one_draw", [True, False])
def test_sequence_noise_is_one_position_for_all_tokens(one_draw: bool) -> None:
    system = friendly(training_sampler="activation", sequence_noise=one_draw)
    drawing, positions = system.method.adapters.drawing, []

    def watch(sampler: str, keys: Tensor, rows: Tensor, tokens: Tensor) -> Any:
        positions.append((sampler, rows, tokens))
        return drawing(sampler, keys, rows, tokens)

    system.method.adapters.drawing = watch
    (batch,) = system.batcher(questions(2))
    system.method.inner_loss(batch, KEY)
    ((sampler, rows, tokens),) = positions
    assert sampler == "activation"
    assert torch.equal(rows, batch.row_keys)
    assert torch.equal(tokens, torch.zeros_like(batch.token_index) if one_draw else batch.token_index)


@pytest.mark.parametrize(("share", "stride"), [(1.0, 1), (0.5, 2), (0.26, 4)])
def test_the_rows_that_a_kl_visits_are_named_by_the_steps_key(share: float, stride: int) -> None:
    """As every noise: by the key of the place, apart from the draws' own; a run goes on by the same rows."""
    system = friendly(kl_entries=share)
    kl, asked = system.method.adapters.kl, []

    def watch(**options: Any) -> Tensor:
        asked.append(options)
        return kl(**options)

    system.method.adapters.kl = watch
    system.method.inner_loss(system.batcher(questions(2))[0], KEY)
    system.method._kl_gradient(KEY)
    expected = noise_key(*PLACE) ^ noise_key("rows")
    for options, detached in zip(asked, ("shared", "task"), strict=True):
        assert (options["detach"], options["stride"]) == (detached, stride)
        assert int(options["key"]) % 2**64 == expected


@pytest.mark.parametrize("name", METHODS)
def test_a_task_begins_from_theta_unless_it_is_said_to_be_a_later_one(name: str) -> None:
    """`begin_task()` is that of a first task: a phi that never is reset, too, has to come from somewhere."""
    system = system_of(name, **({"phi": "persistent", "std_start": "copy"} if name == "abmll" else {}))
    scramble(system)
    system.method.begin_task()
    theta, phi = values(system, "shared"), values(system, "task")
    assert all(torch.equal(theta[n], phi[n]) for n in theta)


# -------------------- terms and gradients


def test_gradients_are_added_where_there_are_some_and_set_where_there_are_none() -> None:
    some, none, left = (nn.Parameter(torch.ones(2)) for _ in range(3))
    some.grad = torch.tensor([1.0, 2.0])
    add_gradients([some, none, left], [torch.tensor([10.0, 10.0]), torch.tensor([3.0, 4.0]), None])
    assert some.grad.tolist() == [11.0, 12.0]
    assert none.grad is not None
    assert none.grad.tolist() == [3.0, 4.0]
    assert left.grad is None
    add_gradients([some, left], [None, None])
    assert some.grad.tolist() == [11.0, 12.0]


@pytest.mark.parametrize("listed", [False, True])
def test_terms_give_the_gradient_of_a_share_of_their_sum(listed: bool) -> None:
    """d/dx of 0.25 (x^2 + 3 x y) and d/dy, added to what is there; a loss that leaves out a parameter adds nothing."""
    x, y, z = (nn.Parameter(torch.tensor(v)) for v in (2.0, 5.0, 1.0))
    x.grad = torch.tensor(100.0)
    terms = Terms((x * x, 3 * x * y), (x * x).detach())
    assert float(terms.total) == 4 + 30
    terms.backward(0.25, [x, y, z] if listed else ())
    assert float(x.grad) == 100 + 0.25 * (2 * 2 + 3 * 5)
    assert y.grad is not None
    assert float(y.grad) == 0.25 * 3 * 2
    assert z.grad is None


def test_one_loss_alone_takes_its_gradient_whatever_is_listed() -> None:
    x, y = (nn.Parameter(torch.tensor(v)) for v in (2.0, 5.0))
    Terms((3 * x * x,), x.detach()).backward(0.5, [x, y])
    assert x.grad is not None
    assert float(x.grad) == 0.5 * 6 * 2
    assert y.grad is None


def test_terms_descend_the_whole_sum_unless_a_share_is_given() -> None:
    x = nn.Parameter(torch.tensor(2.0))
    Terms((x * x, 3 * x), x.detach()).backward()
    assert x.grad is not None
    assert float(x.grad) == 4 + 3


@pytest.mark.parametrize("name", ["lora", "abmll"])
def test_terms_of_micro_batches_are_weighted_by_their_questions(name: str) -> None:
    """Three questions and one: each loss by three quarters and one quarter, by hand; the KL is the same in both."""
    system = friendly() if name == "abmll" else system_of("lora")
    three, one = (system.batcher.batch(questions(count, start=start)) for count, start in ((3, 0), (1, 3)))
    losses = [system.method.inner_loss(batch, KEY) for batch in (three, one)]
    found = backward_by_share([three, one], lambda batch: system.method.inner_loss(batch, KEY))
    nll = 0.75 * float(losses[0].nll.detach()) + 0.25 * float(losses[1].nll.detach())
    total = 0.75 * float(losses[0].total.detach()) + 0.25 * float(losses[1].total.detach())
    assert float(found.nll) == pytest.approx(nll, rel=1e-6)
    assert float(found.total) == pytest.approx(total, rel=1e-6)
    if name == "lora":
        assert found.task_kl is None
    else:
        assert float(found.task_kl) == pytest.approx(float(losses[0].task_kl.detach()), rel=1e-6)
    assert not any(part.requires_grad for part in (*found.losses, found.nll))


# -------------------- settings


def test_every_value_out_of_range_is_named_with_its_path_and_what_was_there() -> None:
    with pytest.raises(AbmllError) as caught:
        resolve_settings("reptile", given={"inner_lr": -1.5, "batch_size": 0})
    first, second = str(caught.value).splitlines()
    assert first.startswith("method.inner_lr: ")
    assert first.endswith("found -1.5")
    assert second.startswith("method.batch_size: ")
    assert second.endswith("found 0")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("reptil",), ("method", "'reptil'", "reptile")),
        (("abmll", "papper"), ("preset of abmll", "'papper'", "paper")),
        (("lora", "default", {"inner_lrr": 1}), ("setting of method lora", "'inner_lrr'", "inner_lr")),
    ],
)
def test_an_unknown_name_is_said_with_its_kind_and_the_nearest(words: Any, parts: tuple[str, ...]) -> None:
    with pytest.raises(AbmllError) as caught:
        resolve_settings(*words)
    assert all(part in str(caught.value) for part in parts)


def test_what_is_given_goes_before_a_preset_and_a_preset_before_the_defaults() -> None:
    plain, paper = resolve_settings("abmll"), resolve_settings("abmll", "paper")
    assert (plain.outer_step, paper.outer_step) == ("displacement", "identity")
    assert (paper.inner_lr, paper.reduction) == (1e-5, "sum")
    mixed = resolve_settings("abmll", "paper", {"inner_lr": 0.5})
    assert (mixed.inner_lr, mixed.reduction) == (0.5, "sum")


# Defaults: docs/method.md, section 1, section 2 and section 4, and where an experiment chose otherwise,
# docs/evidence.md. Class attributes, which no mutation tool reaches; a change here needs a measurement to go with it.
EVERY: dict[str, Any] = {
    "episodes": "by_task",
    "inner_optimizer": "adamw",
    "inner_lr": 3e-4,
    "inner_steps": 5,
    "batch_size": 2,
    "outer_optimizer": "sgd",
    "outer_lr": 1.0,
    "outer_schedule": "constant",
    "inner_schedule": "constant",
    "warmup": 0,
    "temperature_lr": 1e-2,
}
MEANS: dict[str, Any] = {**EVERY, "mean_prior_weight": 0.0, "mean_prior_variance": 2.06e-9, "dropout": 0.0}
BAYES: dict[str, Any] = {
    "second_order": False,
    "outer_rows": "query",
    **EVERY,
    "task_kl_weight": 0.34,
    "mean_prior_weight": 0.0,
    "precision_prior_weight": 0.0,
    "mean_prior_variance": 2.06e-9,
    "precision_prior_shape": 1.0,
    "precision_prior_rate": 0.01,
    "phi": "reset",
    "std_form": "square",
    "std_relative": None,
    "std_floor": 1e-6,
    "std_lr": 3e-4,
    "outer_std_lr": 3e-4,
    "std_state": "float32",
    "train_stds": True,
    "training_sampler": "activation",
    "training_samples": 1,
    "sequence_noise": False,
    "kl_entries": 1.0,
    "reduction": "mean",
}
PAPER: dict[str, Any] = {
    **BAYES,
    **dict.fromkeys(("inner_lr", "outer_lr", "std_lr", "outer_std_lr"), 1e-05),
    "outer_optimizer": "adamw",
    "outer_step": "identity",
    "std_start": "copy",
    "reduction": "sum",
    "task_kl_weight": 5e-10,
    "mean_prior_weight": 1e-6,
    "precision_prior_weight": 1e-6,
    "std_state": "float64",
}
QUERY = {**MEANS, "inner_lr": 1.2e-3, "outer_optimizer": "adamw", "outer_lr": 3.7e-5}
DEFAULTS: dict[tuple[str, str], dict[str, Any]] = {
    ("pretrained", "default"): {**MEANS, "inner_lr": 1.6e-3},
    ("lora", "default"): {**MEANS, "episodes": "mixed", "inner_optimizer_state": "persistent"},
    ("structured", "default"): {**MEANS, "inner_optimizer_state": "persistent"},
    ("reptile", "default"): {**MEANS, "inner_lr": 1.4e-3, "outer_lr": 0.22, "outer_schedule": "linear"},
    ("fomaml", "default"): {**MEANS, "inner_lr": 1.2e-3, "outer_optimizer": "adamw", "outer_lr": 3.7e-5},
    ("metaicl", "default"): {**MEANS, "inner_optimizer_state": "persistent", "demonstrations": 16},
    ("meta-sgd", "default"): {**QUERY, "second_order": False, "rate_lr": 1e-2},
    ("anil", "default"): {**QUERY, "second_order": False, "task_modules": ("v_proj",)},
    ("maml", "default"): {**QUERY, "second_order": True, "inner_optimizer": "sgd", "inner_lr": 0.1},
    ("imaml", "default"): {**QUERY, "proximal_weight": 2.0, "cg_steps": 5, "inner_optimizer": "sgd", "inner_lr": 0.1},
    ("lift", "default"): {
        **MEANS,
        "task_std": 1e-2,
        "shared_std": 1.0,
        "task_rows": 12.0,
        "noise": 1.0,
        "inner_optimizer": "sgd",
        "inner_lr": 1e-5,
        "outer_lr": 1e-6,
    },
    ("maml-en-llm", "default"): {**QUERY, "second_order": True, "demonstrations": 16, "moments": "separate"},
    ("maml-en-llm", "as-published"): {
        **QUERY,
        "second_order": True,
        "demonstrations": 16,
        "moments": "shared",
        "inner_optimizer_state": "persistent",
    },
    ("abmll", "ravi-beatson"): {
        **BAYES,
        "outer_step": "identity",
        "std_start": "copy",
        "outer_optimizer": "adamw",
        "outer_lr": 3e-4,
        "second_order": True,
        "outer_rows": "all",
        "reduction": "sum",
        "task_kl_weight": 1 / 12,
        "inner_optimizer": "sgd",
        "training_sampler": "weight",
        "std_init": 1e-2,
        "inner_lr": 1e-5,
        "std_lr": 1e-5,
    },
    ("core", "default"): {
        **EVERY,
        "outer_optimizer": "adamw",
        "outer_lr": 1e-3,
        "start": "lora",
        "core_std": 0.3,
        "covariance": "full",
        "passes": 2,
        "rows_at_once": "all",
        "fit_tokens": 512,
        "variances": "each",
        "mean_rate": 0.1,
        "variance_rate": 0.1,
        "precision_prior_shape": 1.0,
        "precision_prior_rate": 0.01,
        "prior_tasks": 34.0,
        "outer_draws": 1,
        "train_factors": True,
    },
    ("abmll", "default"): {
        **BAYES,
        "outer_step": "displacement",
        "outer_lr": 0.5,
        "std_start": "init",
        "std_init": 3e-3,
    },
    ("abmll", "paper"): {**PAPER, "std_init": 2.06e-9, "std_floor": 1e-10},
    ("abmll", "paper-variance"): {**PAPER, "std_init": 2.06e-9**0.5, "std_floor": 1e-6},
}


@pytest.mark.parametrize(("name", "preset"), [(n, p) for n, method in METHODS.items() for p in method.presets])
def test_what_is_trained_with_where_nothing_is_said(name: str, preset: str) -> None:
    found = resolve_settings(name, preset).model_dump()
    state = found.pop("inner_optimizer_state")
    expected = dict(DEFAULTS[name, preset])
    assert state == expected.pop("inner_optimizer_state", "fresh")
    assert found == expected


def test_a_displacement_brings_reptiles_rule_and_another_step_the_papers() -> None:
    first_order = resolve_settings("abmll", given={"outer_step": "identity"})
    assert (first_order.outer_optimizer, first_order.outer_lr) == ("adamw", 3e-4)
    given = resolve_settings("abmll", given={"outer_lr": 0.1})
    assert (given.outer_optimizer, given.outer_lr) == ("sgd", 0.1)
    assert METHODS["abmll"].settings_class().std_init == 2.06e-9**0.5
