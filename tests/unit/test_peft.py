"""The adapter of a run, read back by stock PEFT; and a LoRA of stock PEFT as the start of a run."""

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from abmll.adapters.attach import attach
from abmll.adapters.facts import BaseFacts
from abmll.adapters.folder import write_adapter
from abmll.adapters.layer import AdapterSet
from abmll.adapters.peft import read_peft, start_from, write_peft
from abmll.adapters.stored import take_adapter
from abmll.errors import AbmllError
from tests.faults import said
from tests.tiny import tiny_gpt2, tiny_model

IDS = torch.tensor([[1, 17, 305, 44, 9, 260], [1, 5, 77, 301, 2, 8]])


CASES = {  # how the base is made, targets
    "q and v": (tiny_model, ("q_proj", "v_proj")),
    "all-linear": (tiny_model, "all-linear"),
    "tied embeddings": (lambda: tiny_model(tie=True), "all-linear"),
    "grouped queries": (lambda: tiny_model(heads=8, kv_heads=2), ("k_proj", "v_proj")),
    "one layer of several": (lambda: tiny_model(layers=12), r"model\.layers\.1\.self_attn\.q_proj"),
    "more paths than PEFT lists": (lambda: tiny_model(layers=12), ("q_proj", "v_proj")),
    "GPT-2": (tiny_gpt2, "all-linear"),
}


def trained(model: nn.Module, targets, **options) -> AdapterSet:
    """Adapters whose shared means have left 0, with phi equal to theta, so that the model's own logits are theta's."""
    adapters = attach(model, targets, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapters.parameters("shared"):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    adapters.begin_task()
    return adapters


def write(adapters: AdapterSet, folder: Path, alpha: float = 16.0) -> None:
    """All three files of an adapter."""
    write_adapter(take_adapter(adapters, "shared", alpha=alpha, base=BaseFacts(name="tiny")), folder)


def read_by_peft(base: nn.Module, folder: Path, caplog: pytest.LogCaptureFixture) -> PeftModel:
    """Stock PEFT's model; any warning, through `warnings` or a logger, is an error."""
    caplog.clear()
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)  # not of PEFT
        loaded = PeftModel.from_pretrained(base, folder)
    assert not caplog.records
    return loaded.eval()


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("rank", "alpha"), [(8, 16.0), (3, 7.0)])
def test_trust_30_stock_peft_reads_the_adapter_without_a_warning_and_gives_our_logits(
    case, rank, alpha, tmp_path, caplog
):
    make, targets = CASES[case]
    model = make()
    plain = logits(model)
    adapters = trained(model, targets, rank=rank, alpha=alpha)
    ours = logits(model)
    write(adapters, tmp_path / "adapter", alpha)
    theirs = logits(read_by_peft(make(), tmp_path / "adapter", caplog))
    scale = float(ours.abs().max())
    assert float((ours - plain).abs().max()) > 1e-3 * scale
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("case", CASES)
def test_trust_30_key_set_is_exactly_lora_a_and_b_of_the_targets(case, tmp_path):
    make, targets = CASES[case]
    adapters = trained(make(), targets)
    write(adapters, tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    names = [(path, factor) for path in adapters.layers for factor in ("lora_A", "lora_B")]
    assert tensors.keys() == {f"base_model.model.{path}.{factor}.weight" for path, factor in names}
    for path, layer in adapters.layers.items():
        assert torch.equal(tensors[f"base_model.model.{path}.lora_A.weight"], layer.shared.mean_a)
        assert torch.equal(tensors[f"base_model.model.{path}.lora_B.weight"], layer.shared.mean_b)


def test_the_shared_slot_is_written_and_not_the_task_s(tmp_path):
    adapters = trained(tiny_model(), ("q_proj",))
    with torch.no_grad():
        for parameter in adapters.parameters("task"):
            parameter.zero_()
    write_peft(adapters, tmp_path, "tiny", 16.0)
    assert all(tensor.any() for tensor in load_file(tmp_path / "adapter_model.safetensors").values())


def test_the_plain_function_writes_stock_files_alone(tmp_path, caplog):
    adapters = trained(tiny_model(), ("q_proj",))
    write_peft(adapters, tmp_path, "tiny", 16.0)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    read_by_peft(tiny_model(), tmp_path, caplog)


def test_config_names_the_base_and_every_layer_by_its_whole_path(tmp_path):
    adapters = trained(tiny_model(), ("q_proj",), rank=3, alpha=7.0)
    write_peft(adapters, tmp_path, "somebody/some-model", 7.0)
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["target_modules"] == sorted(adapters.layers)
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (3, 7.0, "somebody/some-model")
    assert (config["peft_type"], config["task_type"], config["bias"]) == ("LORA", "CAUSAL_LM", "none")


def test_writing_twice_gives_the_same_bytes(tmp_path):
    adapters = trained(tiny_model(), "all-linear")
    for folder in ("one", "two"):
        write_peft(adapters, tmp_path / folder, "tiny", 16.0)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.parametrize("damage", ["missing key", "wrong rank"])
def test_the_no_warning_check_can_fail(damage, tmp_path, caplog):
    """What PEFT says about a file that does not fit is raised here. (Of an unexpected key it says nothing.)"""
    write_peft(trained(tiny_model(), ("q_proj",)), tmp_path, "tiny", 16.0)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    first = next(iter(tensors))
    if damage == "missing key":
        del tensors[first]
    else:
        tensors[first] = tensors[first][:4].clone()
    save_file(tensors, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises((UserWarning, RuntimeError), match=r"missing adapter keys|size mismatch"):
        read_by_peft(tiny_model(), tmp_path, caplog)


def test_trust_31_an_adapter_on_tied_embeddings_is_an_error_and_not_peft_s_warning() -> None:
    with pytest.raises(AbmllError, match="lm_head shares its weights with the embeddings"):
        attach(tiny_model(tie=True), ("q_proj", "lm_head"))
    assert "lm_head" in attach(tiny_model(), ("q_proj", "lm_head")).layers


# -------------------- an ordinary LoRA as the start


def stock_lora(folder: Path, make=tiny_model, targets: Any = ("q_proj", "v_proj"), **options: Any) -> torch.Tensor:
    """A LoRA as stock PEFT saves it, its B factors moved away from 0; returns the logits of its model."""
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", **options}, target_modules=list(targets))
    model = get_peft_model(make(), config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return logits(model)


STARTS: dict[str, dict[str, Any]] = {
    "q and v": {},
    "GPT-2": {"make": tiny_gpt2, "targets": ("c_attn",), "fan_in_fan_out": True},
    "rsLoRA": {"use_rslora": True, "lora_alpha": 4},  # 4 / sqrt(4) = 8 / 4
    "bfloat16": {},
}


@pytest.mark.parametrize("case", STARTS)
def test_an_ordinary_lora_is_the_start_and_gives_its_own_logits(case: str, tmp_path: Path) -> None:
    options = STARTS[case]
    theirs = stock_lora(tmp_path, **options)
    if case == "bfloat16":
        file = tmp_path / "adapter_model.safetensors"
        save_file({n: t.bfloat16() for n, t in load_file(file).items()}, file)
    model = options.get("make", tiny_model)()
    adapters = attach(model, options.get("targets", ("q_proj", "v_proj")), rank=4, alpha=8.0)
    start_from(adapters, 8.0, tmp_path)
    tolerance = 0.1 if case == "bfloat16" else 1e-5 * float(theirs.abs().max())
    torch.testing.assert_close(logits(model), theirs, rtol=0, atol=tolerance)
    assert all(not layer.shared.std_b.any() for layer in adapters.layers.values()), "stds start as they do"


MISFITS = {
    "rank": ({"r": 2, "lora_alpha": 4}, "its rank is 2, adapter.rank is 4"),
    "alpha": ({"lora_alpha": 9}, "its alpha is 9, adapter.alpha is 8"),
    "more targets": ({"targets": ("q_proj", "v_proj", "o_proj")}, r"only it adapts .*o_proj"),
    "fewer targets": ({"targets": ("q_proj",)}, r"only adapter.targets adapts .*v_proj"),
    "sizes": ({"make": lambda: tiny_model(hidden=64)}, "q_proj is 64 x 64 there and 32 x 32 here"),
    "DoRA": ({"use_dora": True}, "use_dora=True"),
    "bias": ({"bias": "lora_only"}, "bias='lora_only'"),
    "saved modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "rank by layer": ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_trust_31_a_start_that_does_not_fit_says_what_differs(case: str, tmp_path: Path) -> None:
    options, message = MISFITS[case]
    stock_lora(tmp_path, **options)
    adapters = attach(tiny_model(), ("q_proj", "v_proj"), rank=4, alpha=8.0)
    before = {name: tensor.clone() for name, tensor in adapters.state_dict("shared").items()}
    with pytest.raises(AbmllError, match=message):
        start_from(adapters, 8.0, tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in adapters.state_dict("shared").items())


def edited(folder: Path, **values: Any) -> None:
    """Other values in adapter_config.json."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


BROKEN = {
    "no folder": (lambda f: f / "nowhere", "no such folder"),
    "no configuration": (lambda f: (f / "adapter_config.json").unlink(), r"adapter_config\.json: cannot be read"),
    "not JSON": (lambda f: (f / "adapter_config.json").write_text("{"), r"adapter_config\.json: not JSON"),
    "a list": (lambda f: (f / "adapter_config.json").write_text("[]"), "not a JSON object"),
    "name twice": (lambda f: (f / "adapter_config.json").write_text('{"r": 1, "r": 2}'), "given twice"),
    "another method": (lambda f: edited(f, peft_type="IA3"), "peft_type is 'IA3'"),
    "no rank": (lambda f: edited(f, r=None), "r is None"),
    "rank is true": (lambda f: edited(f, r=True), "r is True"),
    "rank of another file": (lambda f: edited(f, r=5), "says r=5"),
    "PiSSA": (lambda f: edited(f, init_lora_weights="pissa"), "changes the base weights"),
    "activated LoRA": (lambda f: edited(f, alora_invocation_tokens=[1]), "alora_invocation_tokens"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), r"adapter_model\.safetensors: cannot"),
    "huge configuration": (lambda f: (f / "adapter_config.json").write_text(" " * (5 << 20)), "too many"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_lora_is_an_error_that_names_the_file(case: str, tmp_path: Path) -> None:
    stock_lora(tmp_path)
    damage, message = BROKEN[case]
    folder = damage(tmp_path)
    with pytest.raises(AbmllError, match=message):
        read_peft(folder if isinstance(folder, Path) and not folder.exists() else tmp_path)


@pytest.mark.parametrize("name", ["half a pair", "a bias", "no prefix"])
def test_trust_31_tensors_that_are_no_pair_are_refused(name: str, tmp_path: Path) -> None:
    stock_lora(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    first = next(iter(tensors))
    if name == "half a pair":
        del tensors[first]
    elif name == "a bias":
        tensors["base_model.model.model.layers.0.self_attn.q_proj.bias"] = torch.zeros(32)
    else:
        tensors[first.removeprefix("base_model.")] = tensors.pop(first)
    save_file(tensors, file)
    with pytest.raises(AbmllError, match=r"adapter_model\.safetensors"):
        read_peft(tmp_path)


def test_trust_41_a_pickled_lora_is_named_and_never_opened(tmp_path: Path) -> None:
    stock_lora(tmp_path)
    canary = tmp_path / "canary"
    payload = b"cos\nsystem\n(S'touch %s'\ntR." % str(canary).encode()
    (tmp_path / "adapter_model.safetensors").unlink()
    (tmp_path / "adapter_model.bin").write_bytes(payload)
    with pytest.raises(AbmllError, match=r"adapter_model\.bin"):
        read_peft(tmp_path)
    assert not canary.exists()


def test_a_start_made_for_another_model_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stock_lora(tmp_path)
    edited(tmp_path, base_model_name_or_path="somebody/other-model")
    start_from(attach(tiny_model(), rank=4, alpha=8.0), 8.0, tmp_path, "somebody/this-model")
    assert "somebody/other-model" in caplog.text
    caplog.clear()
    start_from(attach(tiny_model(), rank=4, alpha=8.0), 8.0, tmp_path, "elsewhere/other-model")
    assert not caplog.text


# -------------------- each fault in words


def test_a_stock_lora_is_read_as_its_factors_scale_and_base(tmp_path: Path) -> None:
    stock_lora(tmp_path, use_rslora=True, lora_alpha=4)
    edited(tmp_path, base_model_name_or_path="somebody/a-model")
    found = read_peft(tmp_path)
    assert (found.rank, found.alpha, found.base_model) == (4, 4 * 4**0.5, "somebody/a-model")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert len(found.factors) == 4
    for path, (b, a) in found.factors.items():
        assert torch.equal(b, tensors[f"base_model.model.{path}.lora_B.weight"])
        assert torch.equal(a, tensors[f"base_model.model.{path}.lora_A.weight"])
    edited(tmp_path, base_model_name_or_path=None)
    assert read_peft(tmp_path).base_model == ""


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only LORA can be read"),
        ({"r": 0}, "r is 0, expected a positive number"),
        ({"r": 2.0}, "r is 2.0, expected a positive number"),
        ({"lora_alpha": 1e9}, "lora_alpha is 1000000000.0, expected a positive number"),
        ({"lora_alpha": False}, "lora_alpha is False, expected a positive number"),
        (
            {"use_dora": True, "bias": "all"},
            "more than a plain LoRA (use_dora=True, bias='all'); only s B A can be read",
        ),
        (
            {"init_lora_weights": "olora"},
            "more than a plain LoRA (init_lora_weights='olora', which changes the base weights); only s B A can "
            "be read",
        ),
    ],
)
def test_a_configuration_of_something_else_is_said(values: dict[str, Any], words: str, tmp_path: Path) -> None:
    stock_lora(tmp_path)
    edited(tmp_path, **values)
    assert said(lambda: read_peft(tmp_path)) == f"{tmp_path / 'adapter_config.json'}: {words}"


@pytest.mark.parametrize(
    "values", [{"bias": None}, {"modules_to_save": []}, {"rank_pattern": None}, {"use_dora": None}]
)
def test_nothing_is_as_good_as_the_plain_value(values: dict[str, Any], tmp_path: Path) -> None:
    stock_lora(tmp_path)
    edited(tmp_path, **values)
    assert len(read_peft(tmp_path).factors) == 4


def test_tensors_that_are_no_pairs_are_said(tmp_path: Path) -> None:
    stock_lora(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    good = load_file(file)
    layer = "model.layers.0.self_attn.q_proj"
    a, b = (f"base_model.model.{layer}.lora_{factor}.weight" for factor in "AB")
    for tensors, words in (
        ({}, "holds no tensor"),
        ({n: t for n, t in good.items() if n != a}, f"{layer} has only lora_B of its two factors"),
        ({**good, a: good[a][:3].clone()}, f"{a} has the shape [3, 32], but adapter_config.json says r=4"),
        ({**good, b: good[b][:, :3].clone()}, f"{b} has the shape [32, 3], but adapter_config.json says r=4"),
        ({**good, "x": torch.ones(1)}, "x is no lora_A or lora_B of a linear layer"),
        ({**good, a: torch.ones(4)}, f"{a} is no lora_A or lora_B of a linear layer"),
    ):
        save_file(tensors, file)
        assert said(lambda: read_peft(tmp_path)) == f"{file}: {words}"


def test_a_folder_without_a_lora_is_said_to_be_what_it_is(tmp_path: Path) -> None:
    config = tmp_path / "adapter_config.json"
    assert said(lambda: read_peft(tmp_path / "no")) == f"{tmp_path / 'no'}: no such folder"
    assert said(lambda: read_peft(tmp_path)) == (
        f"{config}: cannot be read (No such file or directory); an adapter's folder holds one"
    )
    for text, words in (("[]", "not a JSON object"), (" " * ((4 << 20) + 1), "4,194,305 bytes are too many for a")):
        config.write_text(text)
        assert said(lambda: read_peft(tmp_path)).startswith(f"{config}: {words}")
    config.write_text("{" + "\n" * 3)
    assert said(lambda: read_peft(tmp_path)).startswith(f"{config}: not JSON (")
    config.unlink()
    stock_lora(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    for name in ("b.bin", "a.pt", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert said(lambda: read_peft(tmp_path)) == (
        f"{tmp_path / 'a.pt'}: a pickle, which can run code, is never read; save as safetensors"
    )


def test_a_file_that_announces_more_than_any_lora_is_not_read(tmp_path: Path) -> None:
    """A header alone, of a sparse file: 2^31 + 16 numbers."""
    stock_lora(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    header = json.dumps({"x": {"dtype": "F16", "shape": [16, (1 << 27) + 1], "data_offsets": [0, (1 << 32) + 32]}})
    data = header.encode() + b" " * (-len(header) % 8)
    with file.open("wb") as out:
        out.write(len(data).to_bytes(8, "little") + data)
        out.truncate(8 + len(data) + (1 << 32) + 32)
    assert said(lambda: read_peft(tmp_path)) == (
        f"{file}: announces 2,147,483,664 numbers; a LoRA has at most 2,147,483,648"
    )


def test_a_start_that_does_not_fit_is_said_with_all_that_differs(tmp_path: Path) -> None:
    stock_lora(tmp_path, r=2, lora_alpha=9, targets=("q_proj", "k_proj", "o_proj"))
    adapters = attach(tiny_model(), ("q_proj", "v_proj"), rank=4, alpha=8.0)
    paths = [f"model.layers.{n}.self_attn.{name}_proj" for n in (0, 1) for name in "ko"]
    values = [f"model.layers.{n}.self_attn.v_proj" for n in (0, 1)]
    assert said(lambda: start_from(adapters, 8.0, tmp_path)) == (
        f"adapter.start: {tmp_path} does not fit this run: its rank is 2, adapter.rank is 4; its alpha is 9, "
        f"adapter.alpha is 8; only it adapts {', '.join(paths[:3])} ...; only adapter.targets adapts "
        f"{', '.join(values)}"
    )


def test_a_start_is_of_theta_and_phi_and_tells_of_another_base_by_its_last_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stock_lora(tmp_path)
    edited(tmp_path, base_model_name_or_path="somebody/other-model")
    adapters = attach(tiny_model(), rank=4, alpha=8.0 * (1 + 5e-7))
    start_from(adapters, 8.0 * (1 + 5e-7), tmp_path, "somebody/this-model")
    assert [record.getMessage() for record in caplog.records] == [
        f"adapter.start: {tmp_path} was made for 'somebody/other-model', this run is of 'somebody/this-model'"
    ]
    for path, (b, a) in read_peft(tmp_path).factors.items():
        for slot in (adapters.layers[path].shared, adapters.layers[path].task):
            assert torch.equal(slot.mean_b, b)
            assert torch.equal(slot.mean_a, a)
    caplog.clear()
    start_from(adapters, 8.0, tmp_path)
    assert not caplog.records, "nobody said what base this is"


def test_a_whole_alpha_is_a_whole_number_in_the_file(tmp_path: Path) -> None:
    for alpha, kept in ((7.0, "7"), (7.5, "7.5")):
        write_peft(trained(tiny_model(), ("q_proj",), rank=3, alpha=alpha), tmp_path, "tiny", alpha)
        assert f'"lora_alpha": {kept},' in (tmp_path / "adapter_config.json").read_text()
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["lora_dropout"], config["fan_in_fan_out"], config["inference_mode"]) == (0.0, False, True)
    write_peft(trained(tiny_gpt2(), ("c_attn",)), tmp_path, "tiny", 16.0)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["fan_in_fan_out"]
