"""Base models in 4 and 8 bits, where bitsandbytes is installed; and what is said where it is not, or does not fit."""

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from abmll.adapters.attach import StdOptions, attach
from abmll.adapters.base_weights import base_distance, dense_weight, is_quantised
from abmll.adapters.folder import read_adapter, write_adapter
from abmll.adapters.layer import AdapterSet
from abmll.adapters.stored import take_adapter
from abmll.config import ModelConfig
from abmll.errors import AbmllError
from abmll.exporting.merge import merge
from abmll.methods.noise import drawn
from abmll.models import LanguageModel, load_model
from abmll.models import quantised as quantised_module
from abmll.systems.adapters import load_adapter
from abmll.systems.build import load_base
from abmll.systems.system import base_facts
from tests.adapters import move
from tests.tiny import tiny_model, tiny_tokenizer

IDS = torch.tensor([[1, 17, 305, 44, 9, 260], [1, 5, 77, 301, 2, 8]])
BITS = ("4bit", "8bit")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model wide enough for bitsandbytes' blocks of 64."""
    place = tmp_path_factory.mktemp("wide")
    tiny_model(hidden=64).save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    return place


@pytest.fixture
def bits(request: pytest.FixtureRequest) -> str:
    """4bit or 8bit; skips where bitsandbytes is missing."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: `pip install bitsandbytes` runs these")
    return str(request.param)


def packed(folder: Path, bits: str) -> LanguageModel:
    return load_model(str(folder), dtype="float32", device="cpu", quantisation=bits)


def trained(base: LanguageModel) -> AdapterSet:
    adapters = attach(base.model, "all-linear", rank=3, alpha=6.0, std=StdOptions(init=0.05))
    move(adapters, "shared", size=0.1)
    adapters.begin_task()
    return adapters


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    found: Tensor = model(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("bits", BITS, indirect=True)
def test_trust_30_peft_on_a_packed_base_gives_our_logits(
    bits: str, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = packed(folder, bits)
    plain = logits(base.model)
    adapters = trained(base)
    ours = logits(base.model)
    write_adapter(take_adapter(adapters, "shared", alpha=6.0, base=base_facts(base)), tmp_path / "a")
    caplog.clear()
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING, logger="peft"):
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        model = PeftModel.from_pretrained(packed(folder, bits).model, tmp_path / "a").eval()
    assert not [record for record in caplog.records if record.name.startswith("peft")]
    scale = float(ours.abs().max())
    assert float((logits(model) - ours).abs().max()) < 1e-5 * scale
    assert float((ours - plain).abs().max()) > 1e-2 * scale


@pytest.mark.parametrize("bits", BITS, indirect=True)
def test_trust_35_the_bayesian_forward_runs_on_a_packed_base(bits: str, folder: Path) -> None:
    base = packed(folder, bits)
    adapters = trained(base)
    mean, draws = logits(base.model), []
    for number in range(4):
        with drawn(adapters, number):
            draws.append(logits(base.model))
    assert float(torch.stack(draws).std(0).mean()) > 1e-3 * float(mean.abs().max())
    assert torch.equal(logits(base.model), mean)


@pytest.mark.parametrize("bits", BITS, indirect=True)
def test_trust_35_gradients_of_a_packed_base_are_the_same_after_a_prediction(bits: str, folder: Path) -> None:
    """bitsandbytes repacks 4-bit layers for some CPUs at the first prediction, and loses the gradient from then on."""

    def gradients(predict_first: bool) -> list[Tensor]:
        base = packed(folder, bits)
        adapters = trained(base)
        if predict_first:
            logits(base.model)
        base.model(input_ids=IDS).logits.square().mean().backward()
        found = [parameter.grad for parameter in adapters.parameters("task", "mean")]
        assert all(gradient is not None and gradient.any() for gradient in found)
        return [gradient for gradient in found if gradient is not None]

    for one, other in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("bits", BITS, indirect=True)
def test_an_adapter_of_the_float_base_loads_with_the_distance_and_one_of_another_does_not(
    bits: str, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = load_model(str(folder), dtype="float32", device="cpu")
    write_adapter(take_adapter(trained(base), "shared", alpha=6.0, base=base_facts(base)), tmp_path / "a")
    adapters = load_adapter(tmp_path / "a", packed(folder, bits))
    distance = base_distance(read_adapter(tmp_path / "a"), adapters)
    assert distance is not None
    assert 1e-3 < distance < {"8bit": 0.02, "4bit": 0.2}[bits]
    assert "another quantisation" in caplog.text
    tiny_model(hidden=64, seed=1).save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    with pytest.raises(AbmllError, match="its weights differ"):
        load_adapter(tmp_path / "a", packed(tmp_path / "other", bits))


@pytest.mark.parametrize("bits", BITS, indirect=True)
def test_trust_32_a_packed_base_is_not_merged_into(bits: str, folder: Path) -> None:
    adapters = trained(packed(folder, bits))
    before = [layer.base.weight.clone() for layer in adapters.layers.values()]
    with pytest.raises(AbmllError, match=r"quantised .*model\.quantisation=null.*without --merge"):
        merge(adapters)
    after = [layer.base.weight for layer in adapters.layers.values()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("bits", BITS, indirect=True)
def test_packed_weights_are_read_as_numbers(bits: str, folder: Path) -> None:
    base = packed(folder, bits)
    layer = base.model.model.layers[0].self_attn.q_proj
    assert is_quantised(layer)
    found, true = dense_weight(layer), tiny_model(hidden=64).model.layers[0].self_attn.q_proj.weight
    assert found is not None
    assert float((found - true).norm() / true.norm()) < 0.15


# -------------------- without bitsandbytes


class Packed(nn.Linear):
    """A linear layer whose weights are bytes, as a quantisation that nobody here knows leaves them."""

    def __init__(self, features: int) -> None:
        super().__init__(features, features, bias=False)
        self.weight = nn.Parameter(torch.zeros(features * features // 2, 1, dtype=torch.uint8), requires_grad=False)


class QuantLinear(nn.Module):
    """A quantised layer that is no `nn.Linear`, as GPTQ's are."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.qweight = nn.Parameter(torch.zeros(features, dtype=torch.uint8), requires_grad=False)


def with_layer(make: Any) -> nn.Module:
    model = tiny_model()
    for layer in model.model.layers:
        layer.self_attn.q_proj = make(32)
    return model


def test_trust_32_bytes_are_not_merged_into() -> None:
    adapters = attach(with_layer(Packed), ("q_proj",), rank=3, alpha=6.0)
    with pytest.raises(AbmllError, match=r"q_proj holds torch\.uint8"):
        merge(adapters)


def test_weights_that_nobody_can_unpack_give_no_sample() -> None:
    adapters = attach(with_layer(Packed), ("q_proj", "v_proj"), rank=3, alpha=6.0)
    sample = take_adapter(adapters, "shared", alpha=6.0, base=base_facts_of_nothing()).base_sample
    assert not sample[0].any()
    assert sample[-1].any()


def base_facts_of_nothing() -> Any:
    from abmll.adapters.facts import BaseFacts

    return BaseFacts(name="x")


def test_trust_35_layer_types_that_are_not_supported_are_an_error() -> None:
    with pytest.raises(AbmllError, match="'q_proj' matches no linear layer"):
        attach(with_layer(QuantLinear), ("q_proj",))


@pytest.mark.parametrize("bits", BITS)
def test_without_the_package_the_message_names_it(bits: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AbmllError, match="pip install bitsandbytes"):
        packed(folder, bits)


def test_what_cannot_be_packed_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised_module.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(AbmllError, match=r"a folder or hub id can be packed, not tiny-llama"):
        load_base(ModelConfig(shape="tiny-llama", quantisation="4bit"))
    with pytest.raises(AbmllError, match=r"unknown model\.quantisation '3bit'"):
        packed(folder, "3bit")
