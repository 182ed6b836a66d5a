"""The check of the kernels: right ones pass, in Triton's interpreter too; ones made wrong on purpose are told."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

pytest.importorskip("triton")

import tests.interpreter  # noqa: F401 - makes it quick
from abmll import kernels
from abmll.cli import app
from abmll.diagnosis import machine as doctor
from abmll.errors import AbmllError
from abmll.kernels import check, onednn, triton_kl
from abmll.kernels.check import check_kernels, is_bad

CPU = torch.device("cpu")
AGREES = re.compile(r"agrees with float64 to \d\.\de-\d\d(, in bfloat16 to \d\.\de-\d\d)?")
SMALL = (
    check._Case(37, 41, 3, 5, torch.float32),
    check._Case(32, 48, 4, 4, torch.bfloat16),
)  # the interpreter is slow


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(check, "_CASES", SMALL)
    kernels.use("triton")
    kernels.fallbacks.clear()
    yield
    kernels.use("auto")


@pytest.fixture
def only_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "OPS", ("task_kl", "precision_penalty"))
    monkeypatch.setattr(check, "_CASES", SMALL[:1])


def replaced(monkeypatch: pytest.MonkeyPatch, change: Callable[..., Any], name: str = "task_kl") -> None:
    """An op of `triton_kl` becomes `change(op, its arguments)`."""
    right = getattr(triton_kl, name)
    monkeypatch.setattr(triton_kl, name, lambda *given: change(right, *given))


def only_prior(monkeypatch: pytest.MonkeyPatch, change: Callable[..., Any]) -> None:
    """The quickest op of all becomes `change(op, its arguments)`."""
    monkeypatch.setattr(kernels, "OPS", ("precision_penalty",))
    replaced(monkeypatch, change, "precision_penalty")


def with_larger_gradient(right: Callable[..., Any], task: Any, *rest: Any) -> Any:
    """The right value; the gradient of one factor of one layer is off by a hundredth."""
    std_a = task[1].std_a
    return right([task[0], task[1]._replace(std_a=std_a + 0.01 * (std_a - std_a.detach()))], *rest)


def raising(error: Exception) -> Callable[..., Any]:
    def change(*given: Any) -> Any:
        raise error

    return change


def test_kernels_that_are_right_agree() -> None:
    told = check_kernels(CPU)
    assert set(told) == {*kernels.OPS} - {"frozen_linear"}
    assert all(AGREES.fullmatch(verdict) for verdict in told.values()), told
    assert not kernels.fallbacks  # it was not eager that was compared
    assert not any(map(is_bad, told.values()))
    assert "bfloat16" in told["weight_output"]


def test_what_eager_did_is_no_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "OPS", ("activation_output",))
    above = check._Case(20, 24, 65, 3, torch.float32)
    monkeypatch.setitem(kernels.fallbacks, "weight_output", "of an earlier call")
    monkeypatch.setattr(check, "_CASES", (above,))
    assert check_kernels(CPU) == {
        "activation_output": "not checked: it hands over to eager (rank 65 is above 64)",
    }
    monkeypatch.setattr(check, "_CASES", (above, SMALL[0]))
    verdict = check_kernels(CPU)["activation_output"]
    assert AGREES.fullmatch(verdict.removesuffix("; hands over to eager where rank 65 is above 64"))
    assert not AGREES.fullmatch(verdict)
    monkeypatch.setattr(check, "_CASES", (above, SMALL[1]))
    assert check_kernels(CPU)["activation_output"].startswith("agrees with float64 in bfloat16 to ")
    monkeypatch.setattr(check, "_trials", raising(RuntimeError("lost")))
    assert is_bad(check_kernels(CPU)["activation_output"])
    assert kernels.fallbacks == {"weight_output": "of an earlier call"}


def test_onednn_is_checked_by_products_that_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    if onednn.onednn_error() is not None:
        pytest.skip(onednn.onednn_error())
    monkeypatch.undo()  # the layers as they are: smaller ones would be eager's
    kernels.use("onednn")
    calls, product = [], onednn._product
    monkeypatch.setattr(onednn, "_product", lambda *given: calls.append(1) or product(*given))
    told = check_kernels(CPU)
    assert set(told) == {"weight_output", "frozen_linear"}
    assert all(AGREES.fullmatch(verdict) for verdict in told.values()), told
    assert len(calls) == len(check._CASES) * (2 * 2 + 2 * 2)  # forward and backward: two ways to pack, and two keys
    monkeypatch.setattr(onednn, "_product", lambda *given: product(*given) * 1.01)
    assert all(verdict.startswith("WRONG: off by 0.0") for verdict in check_kernels(CPU).values())


@pytest.mark.usefixtures("only_losses")
def test_a_gradient_that_is_off_by_a_hundredth_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    replaced(monkeypatch, with_larger_gradient)
    told = check_kernels(CPU)
    assert told["task_kl"] == "WRONG: off by 0.01 from float64; set engine.kernels=eager"
    assert AGREES.fullmatch(told["precision_penalty"])


@pytest.mark.usefixtures("only_losses")
def test_what_is_not_a_number_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    only_prior(monkeypatch, lambda right, *given: right(*given) * float("nan"))
    assert check_kernels(CPU)["precision_penalty"].startswith("WRONG: off by nan")


@pytest.mark.usefixtures("only_losses")
def test_a_kernel_that_writes_over_its_inputs_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(right: Callable[..., Any], std_b: list[Tensor], *rest: Any) -> Any:
        with torch.no_grad():
            std_b[0].mul_(2)
        return right(std_b, *rest)

    only_prior(monkeypatch, change)
    assert check_kernels(CPU)["precision_penalty"].startswith("WRONG")


@pytest.mark.usefixtures("only_losses")
@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (RuntimeError("no such\ninstruction"), "cannot run: RuntimeError: no such; set engine.kernels=eager"),
        (AssertionError(), "cannot run: AssertionError: no message; set engine.kernels=eager"),
        (torch.OutOfMemoryError("CUDA out of memory"), "not checked: the device has no memory left"),
    ],
)
def test_an_op_that_raises_is_told_and_the_next_is_checked(
    monkeypatch: pytest.MonkeyPatch, error: Exception, verdict: str
) -> None:
    replaced(monkeypatch, raising(error))
    told = check_kernels(CPU)
    assert told["task_kl"] == verdict
    assert AGREES.fullmatch(told["precision_penalty"])


@pytest.mark.usefixtures("only_losses")
def test_nothing_is_asked_of_a_device_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [False, True]
    monkeypatch.setattr(check, "_is_lost", lambda device: answers.pop(0))
    replaced(monkeypatch, raising(RuntimeError("CUDA error: an illegal memory access was encountered")))
    told = check_kernels(CPU)
    assert "illegal memory access" in told["task_kl"]
    assert told["precision_penalty"] == "not checked: the device answers no more since task_kl"
    answers.append(True)
    assert set(check_kernels(CPU).values()) == {"not checked: the device does not answer"}


@pytest.mark.usefixtures("only_losses")
def test_doctor_tells_what_is_wrong_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    only_prior(monkeypatch, lambda right, *given: 1.5 * right(*given))
    wrong = "WRONG: off by 0.5 from float64; set engine.kernels=eager"
    said = CliRunner().invoke(app, ["doctor"]).output
    assert f"\nCheck of the kernels on cpu\n  precision_penalty  {wrong}\n" in said
    assert f"\nKernel precision_penalty on cpu: {wrong}\n" in said
    assert "Nothing is wrong" not in said
    found = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).output)
    assert found["checks"] == {"cpu": {"precision_penalty": wrong}}
    assert found["advice"][0] == f"Kernel precision_penalty on cpu: {wrong}"
    said = CliRunner().invoke(app, ["doctor", "--no-check"]).output
    assert "Versions" in said
    assert "WRONG" not in said


@pytest.mark.usefixtures("only_losses")
def test_kernels_that_do_not_load_do_not_stop_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "op", raising(AttributeError("module 'triton' has no attribute 'jit'")))
    found = doctor.diagnose()
    assert found.kernels["cpu"]["task_kl"] == "nothing: triton cannot be loaded (AttributeError)"
    assert "has no attribute 'jit'; set engine.kernels=eager" in found.advice[0]


@pytest.fixture
def none_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_compared", set())
    monkeypatch.setattr(kernels, "refused", refused := {})
    monkeypatch.setattr(triton_kl, "refused", refused)
    monkeypatch.setattr(check, "_at_rank", lambda rank, dtype: check._Case(32, 48, rank, 4, dtype))


@pytest.mark.usefixtures("none_compared")
def test_a_kernel_that_is_wrong_at_a_rank_is_not_used_there(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The value of rank 3 alone is off by a hundredth: rank 3 is eager's from then on, rank 2 is as it was."""
    right = triton_kl._penalty_of_group

    def wrong(b: Any, *rest: Any) -> Any:
        loss, *gradients = right(b, *rest)
        return (loss * (1.01 if b.rank == 3 else 1.0), *gradients)

    monkeypatch.setattr(triton_kl, "_penalty_of_group", wrong)
    ops = ("precision_penalty",)
    assert check.refuse_wrong(2, CPU, torch.float32, ops) == {}
    assert is_bad(check.refuse_wrong(3, CPU, torch.float32, ops)["precision_penalty"])
    assert check.refuse_wrong(3, CPU, torch.float32, ops) == {}, "compared once in a process"
    assert list(kernels.refused) == [("precision_penalty", 3)]
    assert "at rank 3" in caplog.text
    (trial,) = check._trials("precision_penalty", check._at_rank(3, torch.float32), CPU)
    (value, *_), (exact, *_) = (
        trial.outcome(op, torch.float64) for op in (triton_kl.precision_penalty, check.eager.precision_penalty)
    )
    assert float(value) == float(exact)
    (value, *_) = trial.outcome(triton_kl.precision_penalty)
    assert float(value) == pytest.approx(float(exact), rel=1e-4)
    assert kernels.fallbacks["precision_penalty"].startswith("at rank 3 it is WRONG")


@pytest.mark.usefixtures("none_compared")
def test_a_kernel_that_takes_the_device_down_ends_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_trials", raising(RuntimeError("an illegal memory access was encountered")))
    answers = iter([False, True, True])  # it is there, and gone after the first op
    monkeypatch.setattr(check, "_is_lost", lambda device: next(answers))
    with pytest.raises(AbmllError, match=r"adapter.rank=3: .*illegal memory access.*engine.kernels=eager, and start"):
        check.refuse_wrong(3, CPU, torch.float32, ("precision_penalty", "task_kl"))
