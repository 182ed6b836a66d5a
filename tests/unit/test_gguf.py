"""GGUF files: parts in their order, faults named, and every weight what the package `gguf` makes of it."""

import logging
import shutil
import threading
from math import prod
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, BloomConfig, BloomForCausalLM
from transformers.modeling_gguf_pytorch_utils import TensorProcessor, get_gguf_hf_weights_map

from abmll.errors import AbmllError
from abmll.models import gguf as cache
from abmll.models import gguf_weights as weights_module
from abmll.models import load_model, load_skeleton
from abmll.models.gguf_header import StoredTensor, read_header
from abmll.models.gguf_parts import GGUFParts, JoinedBytes, find_parts
from abmll.models.gguf_weights import (
    Destination,
    GGUFModel,
    _names,
    _Whole,
    dequantised,
    plan_weights,
    read_config,
    read_tokenizer,
    write_weights,
)
from abmll.models.language_model import hash_tokenizer
from abmll.models.pretrained import read_gguf
from tests.gguf_files import split_bytes, write_gguf
from tests.tiny import tiny_model

PACKED = [kind for kind in Kind if kind in gguf.quants._type_traits]
"""Every kind that `gguf` can dequantise."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ABMLL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("whole") / "tiny.gguf")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("parts")
    write_gguf(folder / "tiny.gguf", tensors=8)
    found = sorted(folder.glob("tiny-0*.gguf"))
    assert [path.name for path in found] == [f"tiny-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    return found


@pytest.fixture
def copies(parts: list[Path], tmp_path: Path) -> list[Path]:
    return [Path(shutil.copy(path, tmp_path)) for path in parts]


def equal_weights(one: str, other: str) -> bool:
    first, second = (load_model(source, device="cpu").model.state_dict() for source in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ------------------------------------------------------------------------------------------------ header and weights


def test_header_says_what_the_reader_of_gguf_says(whole: Path) -> None:
    header, reference = read_header(GGUFParts((whole,))), gguf.GGUFReader(whole)
    assert header.architecture == "llama"
    for name, field in reference.fields.items():
        if not name.startswith("GGUF."):
            assert header.values[name] == field.contents(), name
    assert len(header.tensors) == len(reference.tensors)
    for mine, theirs in zip(header.tensors, reference.tensors, strict=True):
        assert (mine.name, mine.kind, mine.offset) == (theirs.name, theirs.tensor_type, theirs.data_offset)
        assert (mine.shape, mine.stored_bytes) == (tuple(reversed(theirs.shape.tolist())), theirs.n_bytes)


def stored(folder: Path, kind: Kind, shape: tuple[int, ...], seed: int = 0) -> tuple[StoredTensor, np.ndarray]:
    """A tensor of blocks that hold any bytes, and what `gguf` makes of them, row by row."""
    rows = np.random.default_rng(seed)
    width = gguf.quants.quant_shape_to_byte_shape(shape, kind)
    blocks = rows.integers(0, 256, size=width, dtype=np.uint8)
    file = folder / f"{kind.name}.bin"
    file.write_bytes(b"before" + blocks.tobytes() + b"after")
    expected = gguf.dequantize(blocks, kind)
    return StoredTensor("t", shape, kind, JoinedBytes((file,)), len(b"before")), expected


@pytest.mark.parametrize("kind", PACKED, ids=lambda kind: kind.name)
def test_every_kind_is_dequantised_to_the_bits_of_gguf(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_module, "PIECE", 512)
    monkeypatch.setattr(weights_module, "PIECES", 2)
    with np.errstate(all="ignore"):  # any bytes: scales may be NaN or infinite
        tensor, expected = stored(tmp_path, kind, (5, 768))
        part = dequantised(tensor, range(768, 768 + 1024))
        assert np.array_equal(part.view("i4"), expected.ravel()[768:1792].view("i4"))
        model = GGUFModel(tiny_model(), (Destination(tensor, "w", (5, 768), plain=True),), None)
        write_weights(model, tmp_path / "w.safetensors", torch.float32)
    found = load_file(tmp_path / "w.safetensors")["w"].numpy()
    assert np.array_equal(found.view("i4"), expected.view("i4"))


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0, Kind.F16, Kind.BF16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_model_of_each_kind_is_the_one_of_transformers_reader(kind: Kind, dtype: torch.dtype, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", kind=kind)
    loaded = load_model(str(path), device="cpu", dtype=str(dtype).removeprefix("torch."))
    direct, tokenizer = read_gguf(path, dtype=dtype, device=torch.device("cpu"))
    assert hash_tokenizer(tokenizer) == loaded.tokenizer_hash
    for name, weight in direct.state_dict().items():
        assert torch.equal(weight, loaded.model.state_dict()[name]), name


def test_configuration_and_tokenizer_are_those_of_transformers(whole: Path) -> None:
    header = read_header(GGUFParts((whole,)))
    theirs = AutoConfig.from_pretrained(whole.parent, gguf_file=whole.name).to_dict()
    assert read_config(header).to_dict() == {**theirs, "_name_or_path": ""}
    tokenizer = AutoTokenizer.from_pretrained(whole.parent, gguf_file=whole.name)
    mine = read_tokenizer(header)
    assert hash_tokenizer(mine) == hash_tokenizer(tokenizer)
    assert (type(mine), mine("a b 漢").input_ids) == (type(tokenizer), tokenizer("a b 漢").input_ids)


def test_the_cache_is_in_the_dtype_of_the_model(whole: Path, own_cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for dtype, size in (("bfloat16", 2), ("float32", 4)):
        model = load_model(str(whole), device="cpu", dtype=dtype).model
        count = sum(prod(weight.shape) for weight in model.state_dict().values())
        assert f"{count * size / 1e9:.1f} GB of {dtype}" in caplog.text
        (file,) = (f for f in own_cache.rglob("model.safetensors") if f.stat().st_size // count == size)
        assert {weight.dtype for weight in load_file(file).values()} == {model.dtype}


def test_a_weight_of_an_unknown_kind_is_named(tmp_path: Path) -> None:
    tensor = StoredTensor("blk.0.w", (256,), Kind.Q8_K, JoinedBytes((write_gguf(tmp_path / "t.gguf"),)), 0)
    with pytest.raises(AbmllError, match=r"blk\.0\.w is packed as Q8_K"):
        dequantised(tensor, range(256))


# ------------------------------------------------------------------------------------------------ parts


@pytest.mark.parametrize("given", [0, 2])
def test_any_part_of_a_split_brings_the_others(given: int, parts: list[Path], whole: Path) -> None:
    assert equal_weights(str(parts[given]), str(whole))
    assert load_skeleton(str(parts[given])).num_parameters() == load_skeleton(str(whole)).num_parameters()


def test_a_pattern_finds_the_parts_of_a_split(parts: list[Path], whole: Path) -> None:
    assert equal_weights(str(parts[0].parent / "tiny-*.gguf"), str(whole))


def test_plain_pieces_are_joined_by_their_numbers_and_share_the_cache(
    whole: Path, tmp_path: Path, own_cache: Path
) -> None:
    split_bytes(whole, tmp_path / "pieces", 12)  # part10 comes after part2
    found = find_parts(str(tmp_path / "pieces" / "part*.bin"))
    assert found is not None
    assert [path.name for path in found.paths] == [f"part{n}.bin" for n in range(1, 13)]
    assert JoinedBytes(found.paths).read(0, 1 << 30) == whole.read_bytes()
    assert equal_weights(str(tmp_path / "pieces" / "part*.bin"), str(whole))
    keys = {folder.name.rpartition("-")[2] for folder in (own_cache / "gguf").iterdir()}
    assert len(keys) == 1


def test_pieces_that_are_called_part_of_are_found_by_one_of_them(whole: Path, tmp_path: Path) -> None:
    for number, piece in enumerate(split_bytes(whole, tmp_path, 3)):
        piece.rename(tmp_path / f"part-0000{number + 1}-of-00003")
    assert equal_weights(str(tmp_path / "part-00002-of-00003"), str(whole))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", r"of its 3 parts tiny-00002-of-00003\.gguf is missing beside it"),
        ("swapped", r"tiny-00002-of-00003\.gguf: is part 3 by its header, but stands in the place of part 2"),
        ("cut", r"tiny-00003-of-00003\.gguf: cut off: 100 of its [\d,]+ bytes are missing"),
        ("stranger", r"tiny-00003-of-00003\.gguf: not a part of a split GGUF file"),
        ("beyond", "calls itself part 00004 of 00003"),
        ("two", r"is one of 3 parts by its header, but here are 2"),
    ],
)
def test_faults_of_a_split_are_named(fault: str, message: str, copies: list[Path], whole: Path) -> None:
    first, second, third = copies
    given = first
    if fault == "missing":
        second.unlink()
    elif fault == "swapped":
        aside = second.rename(second.with_name("aside"))
        third.rename(second)
        aside.rename(third)
    elif fault == "cut":
        third.write_bytes(third.read_bytes()[:-100])
    elif fault == "stranger":
        shutil.copy(whole, third)
    elif fault == "beyond":
        given = third.rename(third.with_name("tiny-00004-of-00003.gguf"))
    else:
        given = first.rename(first.with_name("tiny-00001-of-00002.gguf"))
        second.rename(second.with_name("tiny-00002-of-00002.gguf"))
    with pytest.raises(AbmllError, match=message):
        load_model(str(given), device="cpu")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", r"part3\.bin is missing among the 4 parts"),
        ("first", r"part1\.bin is missing among the 4 parts"),
        ("last", r"bytes are missing: a part is missing or cut off"),
        ("cut", r"bytes are missing: part2\.bin is shorter than the others, or a part is missing"),
        ("order", r"part1\.bin: not a GGUF file, nor the first part of one"),
        ("more", r"bytes more than the [\d,]+ of the model"),
        ("none", "no file has such a name"),
        ("alone", r"part1\.bin: cut off: .* give all of its parts \(a pattern"),
    ],
)
def test_faults_of_plain_pieces_are_named(fault: str, message: str, whole: Path, tmp_path: Path) -> None:
    pieces, given = split_bytes(whole, tmp_path, 5), "part*.bin"
    if fault in ("missing", "first", "last"):
        pieces[{"missing": 2, "first": 0, "last": 4}[fault]].unlink()
    elif fault == "cut":
        pieces[1].write_bytes(pieces[1].read_bytes()[:-10])
    elif fault == "order":
        pieces[0].write_bytes(pieces[1].read_bytes())
    elif fault == "more":
        pieces[4].write_bytes(pieces[4].read_bytes() + bytes(1000))
    else:
        given = "p*.none" if fault == "none" else "part1.bin"
    with pytest.raises(AbmllError, match=message):
        load_model(str(tmp_path / given), device="cpu")


@pytest.mark.parametrize("place", [4, 8, 16, 24, 60, 2000])
def test_a_damaged_header_is_a_message(place: int, whole: Path, tmp_path: Path) -> None:
    data = bytearray(whole.read_bytes())
    data[place : place + 8] = b"\xff" * 8
    (tmp_path / "bad.gguf").write_bytes(data)
    with pytest.raises(AbmllError, match=r"bad\.gguf"):
        load_model(str(tmp_path / "bad.gguf"), device="cpu")


def test_a_model_without_one_of_its_weights_is_refused(whole: Path) -> None:
    header = read_header(GGUFParts((whole,)))
    fewer = type(header)(header.values, header.raw, header.tensors[:-2] + header.tensors[-1:])
    with pytest.raises(AbmllError, match="1 weights are not in its files"):
        plan_weights(fewer)


# ------------------------------------------------------------------------------------------------ room and neighbours


def test_a_full_disk_is_said_before_and_the_temporary_folder_is_tried(
    whole: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    free = {True: 0, False: 1 << 40}
    usage = shutil._ntuple_diskusage
    monkeypatch.setattr(
        "abmll.models.gguf.shutil.disk_usage", lambda place: usage(0, 0, free[Path(place).is_relative_to(own_cache)])
    )
    assert load_model(str(whole), device="cpu").model is not None
    assert "0.0 GB are free" in caplog.text
    assert "will be slow" in caplog.text
    assert not list((own_cache / "gguf").iterdir())
    free[False] = 0
    with pytest.raises(AbmllError, match="Set ABMLL_CACHE to a folder with room"):
        load_model(str(whole), device="cpu")


def test_two_processes_at_once_dequantise_once(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads stand for them: the lock is of the open file, not of the process."""
    made, begun = [], threading.Event()
    write = cache.write_weights

    def slow(*arguments: object) -> None:
        begun.set()
        made.append(1)
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(cache, "write_weights", slow)
    header, found = read_header(GGUFParts((whole,))), []
    other = threading.Thread(
        target=lambda: begun.wait(20) and found.append(cache._cached(GGUFParts((whole,)), header, torch.float32))
    )
    other.start()
    found.append(cache._cached(GGUFParts((whole,)), header, torch.float32))
    other.join()
    assert made == [1]
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["llama", "bloom"])
def test_names_are_those_of_transformers_which_asks_every_module(kind: str) -> None:
    """Of Bloom only the modules inside know all names; of Llama the model itself does, and no module is asked."""
    bloom = BloomConfig(hidden_size=8, n_layer=1, n_head=2, vocab_size=16)
    skeleton = tiny_model() if kind == "llama" else BloomForCausalLM(bloom)
    processor = TensorProcessor(config=skeleton.config.to_dict())
    found = _names(skeleton, processor)
    assert found == get_gguf_hf_weights_map(skeleton, processor)
    by_itself = get_gguf_hf_weights_map(_Whole(skeleton), processor)
    assert (found == by_itself) == (kind == "llama")
