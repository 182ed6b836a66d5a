"""Frozen linear layers: oneDNN's products are those of `torch.nn.functional.linear`, and nothing else changes."""

import copy
import pickle
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from abmll import kernels
from abmll.kernels import onednn
from abmll.models.frozen import FrozenLinear, freeze, pack, packed_bytes
from tests.tiny import tiny_model

pytestmark = pytest.mark.skipif(onednn.onednn_error() is not None, reason=str(onednn.onednn_error()))


@pytest.fixture(autouse=True)
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(onednn, "LEAST_WORK", 1)
    kernels.use("onednn")
    yield
    kernels.use("auto")


def layer(out: int = 33, into: int = 47, bias: bool = True, packed: bool = True) -> FrozenLinear:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(into, out, bias=bias))
    freeze(model)
    pack(model, packed)
    assert isinstance(model[0], FrozenLinear)
    return model[0]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(47,), (1, 47), (70, 47), (2, 3, 47)])
def test_values_and_gradients_are_those_of_torch(shape: tuple[int, ...], bias: bool, packed: bool) -> None:
    one = layer(bias=bias, packed=packed)
    x = torch.randn(shape, requires_grad=True)
    wide = x.detach().double().requires_grad_()
    y, exact = one(x), linear(wide, one.weight.double(), None if one.bias is None else one.bias.double())
    upstream = torch.randn_like(y)
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)
    (mine,), (theirs,) = torch.autograd.grad(y, x, upstream), torch.autograd.grad(exact, wide, upstream.double())
    torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-5)


def test_a_weight_that_is_written_to_is_packed_anew() -> None:
    one, x = layer(), torch.randn(5, 47)
    before = one(x)
    with torch.no_grad():
        one.weight.mul_(2.0)
    torch.testing.assert_close(one(x), linear(x, one.weight, one.bias))
    assert not torch.allclose(one(x), before)


def test_what_it_is_not_for_goes_the_plain_way() -> None:
    one = layer()
    for x in (torch.randn(3, 47, dtype=torch.float64), torch.randn(3, 47, dtype=torch.bfloat16)):
        other = copy.deepcopy(one).to(x.dtype)
        assert torch.equal(other(x), linear(x, other.weight, other.bias))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert one(torch.randn(3, 47)).dtype == torch.bfloat16
    torch.testing.assert_close(one(torch.ones(3, 47)), linear(torch.ones(3, 47), one.weight, one.bias))
    one.weight.requires_grad_(True)
    one(torch.randn(3, 47)).sum().backward()
    assert one.weight.grad is not None


def test_copies_are_no_part_of_the_state_and_are_not_copied_along() -> None:
    one = layer()
    one(torch.randn(5, 47))
    assert set(one.state_dict()) == {"weight", "bias"}
    assert copy.deepcopy(one).packed is not one.packed
    assert isinstance(pickle.loads(pickle.dumps(one.packed)), onednn.Packed)


def test_a_model_gives_the_same_logits_and_keeps_names_and_ties() -> None:
    model = tiny_model()
    names, ids = list(model.state_dict()), torch.randint(3, 200, (2, 9))
    kernels.use("eager")
    with torch.no_grad():
        plain = model(ids).logits
    freeze(model)
    assert pack(model, "auto")
    assert packed_bytes(model) > 0
    kernels.use("onednn")
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, plain, rtol=0, atol=1e-4)  # of logits up to 5
    assert list(model.state_dict()) == names
    assert not pack(model, False)
    assert not any(isinstance(m, FrozenLinear) and m.packed is not None for m in model.modules())
