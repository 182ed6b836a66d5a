"""Safetensors files from anywhere: what is damaged, hostile or unasked for is refused, fast and in little memory."""

import json
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from abmll.errors import AbmllError
from abmll.tensors import read_header, read_tensors


def raw(header: Any, data: bytes = b"") -> bytes:
    """A file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(shape: list[Any], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def million() -> bytes:
    """A header of a million empty tensors, written out without an object for each: every worker imports this file."""
    one = json.dumps(entry([0], 0, 0))
    return raw(("{" + ", ".join(f'"t{i}": {one}' for i in range(1_000_000)) + "}").encode())


GOOD = save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}, metadata={"x": "y"})
ONE = entry([1], 0, 4)
HOSTILE = {  # file -> what the message says
    "empty": (b"", "header"),
    "seven bytes": (b"1234567", "header"),
    "truncated": (GOOD[:-1], "the file holds"),
    "truncated header": (GOOD[:20], "header"),
    "trailing bytes": (GOOD + b"x", "the file holds"),
    "header of 100 MB announced": ((100 << 20).to_bytes(8, "little") + b"{}", "header"),
    "header of 9 MB": (raw(b" " * (9 << 20)), "header"),
    "header of 2^64 - 1": (b"\xff" * 8 + b"{}", "header"),
    "a million tensors": (million, "header"),
    "overlap": (raw({"a": ONE, "b": entry([1], 2, 6)}, b"\0" * 6), "overlap"),
    "gap": (raw({"a": ONE, "b": entry([1], 8, 12)}, b"\0" * 12), "gaps"),
    "shape of 1 TB": (raw({"a": entry([1 << 19, 1 << 19], 0, 4)}, b"\0" * 4), "cannot hold"),
    "place of 1 TB": (raw({"a": entry([1 << 38], 0, 1 << 40)}, b"\0" * 4), "the file holds"),
    "wrong shape": (raw({"a": entry([2], 0, 4)}, b"\0" * 4), "cannot hold"),
    "negative shape": (raw({"a": entry([-1, -1], 0, 4)}, b"\0" * 4), "impossible"),
    "boolean shape": (raw({"a": entry([True], 0, 4)}, b"\0" * 4), "impossible"),
    "float offsets": (raw(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4.0]}}', b"\0" * 4), "impossible"),
    "duplicate names": (raw(b'{"a":%s,"a":%s}' % ((json.dumps(ONE).encode(),) * 2), b"\0" * 4), "given twice"),
    "unknown dtype": (raw({"a": entry([1], 0, 4, "F9")}, b"\0" * 4), "F9"),
    "nine dimensions": (raw({"a": entry([1] * 9, 0, 4)}, b"\0" * 4), "impossible"),
    "no object": (raw([1, 2]), "no object"),
    "not JSON": (raw(b"{'a': 1}"), "no safetensors file"),
    "not UTF-8": (raw(b'{"\xff": 1}'), "no safetensors file"),
    "brackets": (raw(b"[" * 200_000), "nested"),
    "huge integer": (raw(b'{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,4]}}' % (b"9" * 5000)), "no safetensors"),
    "metadata of numbers": (raw({"__metadata__": {"a": 1}}), "metadata"),
    "NaN": (save({"a": torch.tensor([0.0, float("nan")])}), "NaN or infinity in a"),
    "infinity": (save({"a": torch.tensor([float("inf")])}), "NaN or infinity in a"),
    "another dtype": (save({"a": torch.ones(2, dtype=torch.float16)}), "F16"),
    "a pickle": (b"\x80\x04\x95" + b"x" * 100, "header"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_trust_42_hostile_files_are_refused_fast_and_in_little_memory(kind: str, tmp_path: Path) -> None:
    made, message = HOSTILE[kind]
    data = made() if callable(made) else made
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(data)
    tracemalloc.start()
    began = time.perf_counter()
    with pytest.raises(AbmllError, match=message) as found:
        read_tensors(path)
    seconds, peak = time.perf_counter() - began, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "hostile.safetensors" in str(found.value)
    assert len(str(found.value)) < 1000
    assert seconds < 2
    assert peak < 200 << 20


def test_trust_42_a_sparse_file_of_a_terabyte_is_refused_by_its_shapes(tmp_path: Path) -> None:
    path = tmp_path / "sparse.safetensors"
    header = raw({"a": entry([1 << 19, 1 << 19], 0, 1 << 40)})
    with path.open("wb") as file:
        file.write(header)
        try:
            file.truncate(len(header) + (1 << 40))
        except OSError:
            pytest.skip("this file system has no sparse files of that size")
    with pytest.raises(AbmllError, match="wrong shapes"):
        read_tensors(path, {"a": (4, 4)})


def test_a_good_file_is_read_as_safetensors_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "good.safetensors"
    path.write_bytes(GOOD)
    header = read_header(path)
    assert header.metadata == {"x": "y"}
    assert {name: e.shape for name, e in header.entries.items()} == {"a": (2, 3), "b": (2,)}
    found, theirs = read_tensors(path, {"a": (2, 3), "b": (2,)}), load_file(path)
    assert found.keys() == theirs.keys()
    assert all(torch.equal(found[name], theirs[name]) for name in theirs)


def test_an_empty_file_of_tensors_and_scalars_are_fine(tmp_path: Path) -> None:
    save_file({}, tmp_path / "none.safetensors")
    assert read_tensors(tmp_path / "none.safetensors") == {}
    save_file({"a": torch.tensor(1.0), "b": torch.zeros(0, 3)}, tmp_path / "odd.safetensors")
    assert {n: tuple(t.shape) for n, t in read_tensors(tmp_path / "odd.safetensors").items()} == {"a": (), "b": (0, 3)}


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"a": (2, 3)}, "1 unexpected: b"),
        ({"a": (2, 3), "b": (2,), "c": (1,)}, "1 missing: c"),
        ({"a": (3, 2), "b": (2,)}, r"a is \[2, 3\], not \[3, 2\]"),
    ],
)
def test_trust_31_names_and_shapes_must_be_the_expected_ones(expected: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "good.safetensors"
    path.write_bytes(GOOD)
    with pytest.raises(AbmllError, match=message):
        read_tensors(path, expected)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AbmllError, match=r"nowhere\.safetensors: cannot be read"):
        read_tensors(tmp_path / "nowhere.safetensors")


def test_every_flipped_bit_of_a_header_is_refused_or_read_without_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "flipped.safetensors"
    for place in range(0, 8 * (8 + int.from_bytes(GOOD[:8], "little")), 3):
        data = bytearray(GOOD)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(bytes(data))
        with suppress(AbmllError):  # any other error fails
            read_tensors(path, {"a": (2, 3), "b": (2,)})
