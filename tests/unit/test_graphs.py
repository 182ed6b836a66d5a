"""Steps that could be captured in CUDA graphs, as far as a CPU shows it: run eagerly, they give what they always gave.

What a capture itself does needs a device: `benchmarks/` holds graph and eager against each other there.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from abmll.kernels.noise import key_tensor
from abmll.methods.base import Group, Terms
from abmll.prompts.batches import ChoiceBatch
from abmll.systems import build
from abmll.systems.plans import PredictionPlan
from abmll.systems.predict import _together, predict
from abmll.systems.system import System
from abmll.training.graphs import EAGER_VISITS, Graphs
from abmll.training.inner import NonFiniteError, as_values, inner_steps, not_finite, terms_of
from abmll.training.optimizers import GroupOptimizer
from abmll.training.outer import add_outer_gradient
from tests.systems import (
    TASKS,
    gradients,
    key_of,
    largest_difference,
    questions,
    run_config,
    same,
    scramble,
    system_of,
    tiny_base,
    train,
    values,
)

CPU = torch.device("cpu")
PLACE = (5, 3, 1)
LEARNED = {"likelihood": {"learn_temperature": True}}
WIDE = {"std_init": 0.05}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "structured": ("structured", {}),
    "fomaml": ("fomaml", LEARNED),
    "abmll": ("abmll", WIDE),
    "abmll-weight-sampler": ("abmll", {**WIDE, "training_sampler": "weight", "kl_entries": 0.5}),
    "abmll-displacement": ("abmll", {**WIDE, "outer_step": "displacement", "precision_prior_weight": 1e-3, **LEARNED}),
}
every_method = pytest.mark.parametrize("name", METHODS)


def with_buckets(system: System) -> System:
    """The same system with batches padded to few shapes, as for captured steps."""
    return replace(system, batcher=replace(system.batcher, buckets=True))


# -------------------- running steps


def test_on_the_cpu_every_run_is_eager_on_the_very_inputs() -> None:
    graphs = Graphs(CPU, capture=True)
    seen: list[tuple[Sequence[ChoiceBatch], Tensor]] = []

    def step(batches: Sequence[ChoiceBatch], keys: Tensor) -> tuple[Tensor, ...]:
        seen.append((batches, keys))
        return (keys + 1, batches[0].input_ids)

    batch = system_of("lora").batcher.batch(questions(2))
    for run in range(EAGER_VISITS + 3):
        keys, ids = graphs.run("step", step, [batch], key_tensor(run, 7))
        assert keys.tolist() == [run + 1, 8]
        assert torch.equal(ids, batch.input_ids)
    assert not graphs.capture
    assert [keys.tolist() for _, keys in seen] == [[run, 7] for run in range(EAGER_VISITS + 3)]
    assert graphs.report() == {
        "captured": 0,
        "replays": 0,
        "eager_runs": EAGER_VISITS + 3,
        "capture_seconds": 0.0,
        "reserved_bytes": 0,
        "fallbacks": {},
    }


def test_steps_get_their_own_name_and_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """What differs between two steps but is no argument of them must be in the name: the optimizer, and the share."""
    names: list[tuple[str, list[int]]] = []
    run = Graphs.run

    def watch(self: Graphs, name: str, step: Any, batches: Any, keys: Tensor) -> tuple[Tensor, ...]:
        names.append((name, keys.tolist()))
        return run(self, name, step, batches, keys)

    monkeypatch.setattr(Graphs, "run", watch)
    system = system_of("abmll", **WIDE)
    one, other = (GroupOptimizer(system.method.task()) for _ in range(2))
    graphs = Graphs(CPU)
    for optimizer in (one, other):
        inner_steps(system.method, optimizer, system.batcher, [questions(2)] * 2, PLACE, 1.0, graphs)
    inner_steps(system.method, one, system.batcher, [questions(2)], PLACE, 0.5, graphs)
    outer = GroupOptimizer(system.method.shared())
    sums = (outer, [torch.zeros_like(p) for p in outer.parameters])
    for share in (0.5, 1.0):
        add_outer_gradient(system.method, system.batcher, questions(2), (*PLACE, 2), sums, share, graphs)
    for plan in (PredictionPlan("weight", 2), PredictionPlan("mean", 2), PredictionPlan("activation", 2)):
        predict(system.method, system.likelihood, system.batcher, questions(1), plan, (0,), graphs)
    used = [name for name, _ in names]
    assert used[0] == used[1] == used[4]  # of one optimizer, whatever the rate, which is on the device
    assert used[2] == used[3] != used[0]
    assert len(set(used)) == 7
    assert [keys for _, keys in names[:2]] == [[int(key_of(*PLACE, step))] for step in range(2)]
    assert names[5][1] == names[6][1] == [int(key_of(*PLACE, 2))]


class _Device:
    """Stands for what `torch.cuda` does in a capture: which is to fail."""

    def __getattr__(self, name: str) -> Any:
        if name == "memory_reserved":
            return lambda device: 0
        if name == "mem_get_info":
            return lambda device: (1 << 30, 2 << 30)
        if name in ("synchronize", "current_stream"):
            return lambda device: None
        raise RuntimeError("operation not permitted when stream is capturing\nand more")


def test_a_step_that_cannot_be_captured_runs_eagerly_from_then_on_and_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch, "cuda", _Broken())
    graphs = Graphs(CPU)
    graphs.capture = True
    runs: list[int] = []

    def step(batches: Sequence[ChoiceBatch], keys: Tensor) -> tuple[Tensor, ...]:
        runs.append(int(keys[0]))
        return (2 * keys,)

    found = [graphs.run("step", step, [], key_tensor(i))[0].tolist() for i in range(4)]
    assert found == [[0], [2], [4], [6]]
    assert runs == [0, 1, 2, 3]
    assert graphs.report()["eager_runs"] == 4
    assert graphs.report()["fallbacks"] == {"step": "operation not permitted when stream is capturing"}
    assert caplog.text.count("step cannot be captured") == 1


class _Broken(_Device):
    """As `_Device`, with a graph object to be had, which captures nothing."""

    class CUDAGraph:
        __class__ = torch.cuda.CUDAGraph  # passes for one, which builds of torch with CUDA do not let be made here

        def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")


class _Replaying(_Device):
    """A `torch.cuda` whose graphs know nothing but how to run their step again."""

    class CUDAGraph:
        """Needs no device, and does nothing."""

        __class__ = torch.cuda.CUDAGraph

        def replay(self) -> None:
            pass

        def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
            pass

        def capture_end(self) -> None:
            pass


def test_a_replay_reads_new_contents_of_the_same_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a device: which memory is written, what is counted, and which graph goes when there are too many."""
    inputs: dict[str, list[tuple[list[ChoiceBatch], Tensor]]] = {"a": [], "b": [], "c": []}
    batcher = system_of("lora").batcher
    monkeypatch.setattr(torch, "cuda", _Replaying())
    graphs = Graphs(CPU, most=2)
    graphs.capture = True
    batches = [batcher.batch(questions(1, start=i)) for i in range(20)]
    alike = [batch for batch in batches if batch.signature == batches[0].signature]
    assert len(alike) > 4

    def run(name: str, batch: ChoiceBatch, key: int) -> tuple[Tensor, ...]:
        def step(given: Sequence[ChoiceBatch], keys: Tensor) -> tuple[Tensor, ...]:
            inputs[name].append((list(given), keys))
            return (keys,)

        return graphs.run(name, step, [batch], key_tensor(key))

    before = alike[1].buffer.clone()
    for i, batch in enumerate(alike[:4]):
        (keys,) = run("a", batch, i)
        assert keys.tolist() == [i]
        (static,), static_keys = inputs["a"][-1]
        assert torch.equal(static.buffer, batch.buffer)
        assert static_keys.tolist() == [i]
    assert len(inputs["a"]) == EAGER_VISITS + 1, "a captured step is not run again by Python"
    assert torch.equal(alike[1].buffer, before), "a replay overwrote the batch that was captured with"
    for name in ("b", "b", "c", "c"):
        run(name, alike[0], 9)
    report = graphs.report()
    assert report.pop("capture_seconds") >= 0
    assert report == {
        "captured": 2,
        "replays": 5,
        "eager_runs": 3,
        "reserved_bytes": 0,
        "fallbacks": {},
    }
    run("a", alike[0], 5)  # its graph went, as the one used longest ago: captured anew
    assert len(inputs["a"]) == EAGER_VISITS + 2
    run("c", alike[0], 6)
    assert len(inputs["c"]) == EAGER_VISITS + 1


def test_terms_survive_being_made_one_tensor() -> None:
    one, two, three = torch.tensor(1.0), torch.tensor(2.0), torch.tensor(3.0)
    values = as_values(Terms((one, two), two, three.double()), torch.tensor(0.0))
    assert values.tolist() == [3.0, 2.0, 0.0, 3.0]
    back = terms_of(values)
    assert [float(x) for x in (back.total, back.nll, back.task_kl)] == [3.0, 2.0, 3.0]
    values = as_values(Terms((one,), two), torch.tensor(1.0))
    assert values.tolist() == [1.0, 2.0, 1.0]
    assert terms_of(values).task_kl is None


def test_terms_hand_their_share_of_the_gradient_to_every_loss() -> None:
    leaf = torch.tensor([2.0, 3.0], requires_grad=True)
    Terms((leaf[0] * leaf[0], (5 * leaf[1]).double()), leaf[0].detach()).backward(0.5)
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [2.0, 2.5]


@pytest.mark.parametrize(("bad", "expected"), [(0.0, 0.0), (float("nan"), 1.0), (float("-inf"), 1.0)])
def test_not_finite_is_a_number_for_losses_and_gradients(bad: float, expected: float) -> None:
    fine = terms_of(torch.tensor([1.0, 2.0, 0.0]))
    gradient = torch.tensor([1.0, bad, 2.0])
    assert float(not_finite(fine, [torch.ones(3), gradient, gradient.double()])) == expected
    assert float(not_finite(None, [gradient])) == expected
    assert float(not_finite(terms_of(torch.tensor([bad, 2.0, 0.0])), [torch.ones(3)])) == expected


# -------------------- the optimizer


def one_group(rule: str = "adamw", wide: bool = False) -> tuple[torch.nn.Parameter, GroupOptimizer]:
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    return parameter, GroupOptimizer([Group("g", [parameter], rule, 0.5, wide)])


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("rule", ["adamw", "sgd"])
def test_on_the_cpu_the_caller_skips_and_the_optimizer_steps_in_any_case(rule: str, wide: bool) -> None:
    ends = []
    for skip in (None, torch.tensor(0.0), torch.tensor(1.0)):
        parameter, optimizer = one_group(rule, wide)
        assert not optimizer.skips_by_itself
        parameter.grad = torch.tensor([0.3, -0.1])
        optimizer.step(skip)
        assert float(optimizer.skip_from_here) == 0.0
        ends.append(parameter.detach().clone())
    assert not torch.equal(ends[0], torch.tensor([1.0, -2.0]))
    assert all(torch.equal(end, ends[0]) for end in ends)


def test_set_rates_multiplies_each_groups_own_rate_and_holds_until_the_next() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimizer = GroupOptimizer([Group(str(r), [p], "sgd", r) for p, r in zip(parameters, (0.5, 2.0), strict=True)])
    moved = []
    for factor in (None, 0.5, None, 3.0):
        if factor is not None:
            optimizer.set_rates(factor)
        for parameter in parameters:
            parameter.grad = torch.ones(2)
        before = [float(p.detach()[0]) for p in parameters]
        optimizer.step()
        moved.append([b - float(p.detach()[0]) for b, p in zip(before, parameters, strict=True)])
    assert moved == [[0.5, 2.0], [0.25, 1.0], [0.25, 1.0], [1.5, 6.0]]


@every_method
def test_inner_steps_leave_no_gradient_but_the_temperatures(name: str) -> None:
    method, settings = METHODS[name]
    system = system_of(method, **settings)
    system.method.begin_task()
    inner_steps(system.method, system.adapting, system.batcher, [questions(2)] * 2, PLACE)
    assert all(g is None for slot in ("task", "shared") for g in gradients(system, slot).values())
    assert all(p.grad is not None for p in system.method.temperature)


def test_a_nonfinite_second_step_leaves_phi_where_the_first_put_it() -> None:
    ends = []
    for steps in (1, 3):
        system = system_of("abmll", **WIDE)
        system.method.begin_task()
        nll, calls = system.method.nll, []

        def poisoned(batch: Any, nll: Any = nll, calls: list[int] = calls) -> Tensor:
            calls.append(1)
            return nll(batch) * (float("nan") if len(calls) == 2 else 1.0)

        system.method.nll = poisoned
        batches = [questions(2, start=2 * i) for i in range(steps)]
        if steps == 1:
            inner_steps(system.method, system.adapting, system.batcher, batches, PLACE)
        else:
            with pytest.raises(NonFiniteError, match=rf"inner step 1.*{batches[1][0].id}"):
                inner_steps(system.method, system.adapting, system.batcher, batches, PLACE)
            assert len(calls) == 2
        ends.append((values(system, "task"), system.adapting.state_dict()))
    assert same(ends[0][0], ends[1][0])
    assert same(ends[0][1], ends[1][1])


# -------------------- the outer gradient


def summed(system: System, query: Any, shares: Sequence[float], places: Sequence[int]) -> dict[str, Tensor]:
    """What `add_outer_gradient` adds up over so many tasks, phi being the same."""
    outer = GroupOptimizer(system.method.shared())
    totals = [torch.zeros_like(p) for p in outer.parameters]
    for share, place in zip(shares, places, strict=True):
        graphs = Graphs(CPU)
        add_outer_gradient(system.method, system.batcher, query, (*PLACE, place), (outer, totals), share, graphs)
    task = [p for group in system.method.task() for p in group.parameters]
    assert all(p.grad is None for p in (*outer.parameters, *task))
    return {str(i): total for i, total in enumerate(totals)}


@every_method
def test_two_halves_are_the_mean_of_the_gradients(name: str) -> None:
    method, settings = METHODS[name]
    system = system_of(method, **settings)
    scramble(system, size=0.05)
    query = questions(2) if system.method.uses_query else ()
    single = [summed(system, query, [1.0], [place]) for place in (0, 1)]
    mean = {n: (single[0][n] + single[1][n]) / 2 for n in single[0]}
    both = summed(system, query, [0.5, 0.5], [0, 1])
    assert max(float(t.abs().max()) for t in mean.values()) > 1e-4
    assert largest_difference(both, mean) <= 1e-6 * max(float(t.abs().max()) for t in mean.values())


@every_method
def test_the_sum_is_what_the_method_leaves_on_theta(name: str) -> None:
    method, settings = METHODS[name]
    system = system_of(method, **settings)
    scramble(system, size=0.05)
    query = questions(2) if system.method.uses_query else ()
    found = summed(system, query, [0.25], [0])
    system.method.outer_gradient(system.batcher(query) if query else [], key_of(*PLACE, 0))
    parameters = [p for group in system.method.shared() for p in group.parameters]
    expected = {str(i): torch.zeros_like(p) if p.grad is None else 0.25 * p.grad for i, p in enumerate(parameters)}
    assert largest_difference(found, expected) <= 1e-6 * max(float(t.abs().max()) for t in expected.values())


@pytest.mark.parametrize("name", ["structured", "fomaml", "abmll", "pretrained"])
def test_the_temperature_takes_its_share_of_the_query_batch_or_else_of_the_last_inner_one(name: str) -> None:
    system = system_of(name, **LEARNED)
    (temperature,) = system.method.temperature
    batches = [questions(2), questions(2, start=2)]
    query = questions(2, start=4) if system.method.uses_query else ()
    per_batch: list[float] = []
    nll = system.method.nll

    def keep(batch: Any) -> Tensor:
        value = nll(batch)
        per_batch.append(float(torch.autograd.grad(value, temperature, retain_graph=True)[0]))
        return value

    system.method.nll = keep
    system.method.begin_task()
    inner_steps(system.method, system.adapting, system.batcher, batches, PLACE)
    assert temperature.grad is not None
    assert float(temperature.grad) == pytest.approx(per_batch[1])
    outer = GroupOptimizer(system.method.shared())
    totals = [torch.zeros_like(p) for p in outer.parameters]
    (at,) = [i for i, p in enumerate(outer.parameters) if p is temperature]
    totals[at].fill_(7.0)
    add_outer_gradient(system.method, system.batcher, query, (*PLACE, 2), (outer, totals), 0.25, Graphs(CPU))
    assert len(per_batch) == (3 if query else 2)
    assert float(totals[at]) == pytest.approx(7.0 + 0.25 * per_batch[-1])
    assert temperature.grad is None, "it would count again for the next task"
    assert abs(per_batch[-1]) > 1e-3


# -------------------- buckets


@every_method
def test_buckets_give_the_same_training_steps(name: str, tmp_path: Path) -> None:
    method, settings = METHODS[name]
    ends = []
    for buckets in (False, True):
        config = run_config(method, **settings)
        system = build.build_system(config, tiny_base())
        system = with_buckets(system) if buckets else system
        shapes = {batch.signature[1:4] for task in TASKS for batch in system.batcher(task.train)}
        assert not buckets or all(size % 8 == 0 for shape in shapes for size in shape)
        start = values(system, "shared")
        train(config, tmp_path / str(buckets), system=system)
        ends.append(values(system, "shared") | {f"phi {n}": t for n, t in values(system, "task").items()})
        assert largest_difference({n: ends[-1][n] for n in start}, start) > 1e-4
    assert largest_difference(*ends) < 1.5e-5  # 4.5e-6 with ten times the rounding; theta moves 1.1e-4 (FOMAML) to 4e-3


# -------------------- several draws in one pass


@pytest.mark.parametrize(
    ("tokens", "most", "samples", "together"),
    [
        (100, 450, 10, 2),
        (100, 500, 10, 5),
        (100, 999, 10, 5),
        (100, 1000, 10, 10),
        (100, 50, 10, 1),
        (10, 99, 1, 1),
        (10, 1000, 7, 7),
        (10, 69, 7, 1),
        (100, 600, 6, 6),
        (100, 599, 6, 3),
    ],
)
def test_as_many_draws_go_together_as_divide_the_samples_and_fit(
    tokens: int, most: int, samples: int, together: int
) -> None:
    assert _together(tokens, most, samples) == together


@pytest.mark.parametrize("kind", ["cloze", "letter"])
@pytest.mark.parametrize("sampler", ["weight", "activation", "mean"])
def test_several_draws_in_one_pass_give_what_they_give_one_by_one(
    sampler: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    run = Graphs.run

    def watch(self: Graphs, name: str, step: Any, batches: Any, keys: Tensor) -> tuple[Tensor, ...]:
        passes.append(len(keys))
        return run(self, name, step, batches, keys)

    monkeypatch.setattr(Graphs, "run", watch)
    system = system_of("abmll", **WIDE, likelihood={"kind": kind})
    scramble(system, size=0.1)
    asked = (*TASKS[0].test, *TASKS[2].test)  # two and four choices
    made = {}
    for tokens in (1, 1500, 100_000):
        for buckets in (False, True):
            batcher = replace(system.batcher, buckets=buckets)
            plan = PredictionPlan(sampler, 6, tokens)
            passes.clear()
            made[tokens, buckets] = predict(system.method, system.likelihood, batcher, asked, plan, (3, "task"))
            draws = 1 if sampler == "mean" else 6
            assert all(draws % size == 0 for size in passes)
            if not buckets or tokens == 1:
                assert set(passes) == {1}
            elif tokens == 100_000:
                assert passes == [draws]
    first = made[1, False]
    for found in made.values():
        for one, other in zip(first, found, strict=True):
            assert (one.id, one.answer) == (other.id, other.answer)
            assert np.abs(np.array(one.probabilities) - other.probabilities).max() < 1e-5
            assert (one.spread is None) == (other.spread is None) == (sampler == "mean")
            if one.spread is not None and other.spread is not None:
                assert np.abs(np.array(one.spread) - other.spread).max() < 1e-5
                assert max(one.spread) > 1e-4
            if kind == "letter":
                assert one.vocabulary_confidence == pytest.approx(other.vocabulary_confidence, abs=1e-5)
    assert system.method.adapters.noise.sampler == "mean"


def test_padded_batches_stay_within_the_tokens_of_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    system = with_buckets(system_of("abmll", **WIDE))
    sizes: list[tuple[int, int]] = []
    run = Graphs.run

    def watch(self: Graphs, name: str, step: Any, batches: Any, keys: Tensor) -> tuple[Tensor, ...]:
        sizes.append((batches[0].input_ids.numel(), batches[0].questions))
        return run(self, name, step, batches, keys)

    monkeypatch.setattr(Graphs, "run", watch)
    plan = PredictionPlan("weight", 4, 150)
    predict(system.method, system.likelihood, system.batcher, TASKS[2].test, plan, (0,))
    assert all(tokens <= 150 or count == 1 for tokens, count in sizes)
    assert len(sizes) > 4


# -------------------- the configuration's part


@pytest.mark.parametrize("capture", [True, False])
def test_the_engines_settings_reach_the_system_and_are_off_on_the_cpu(capture: bool) -> None:
    config = run_config("abmll")
    config = config.model_validate(config.model_dump() | {"engine": {"capture": capture, "kernels": "eager"}})
    try:
        system = build.build_system(config, tiny_base())
        assert build.kernels.backend_for(torch.device("cuda")) == "eager"
    finally:
        build.kernels.use("auto")
    assert not system.graphs.capture
    assert not system.batcher.buckets
    assert {id(p) for p in system.adapting.parameters} == {id(p) for p in system.method.adapters.parameters("task")}
