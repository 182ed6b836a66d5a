"""Files are whole or absent."""

import errno
import json
import math
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from abmll.errors import AbmllError, NonFiniteError
from abmll.files import read_sealed_json, strict_json, write_bytes, write_json, write_sealed_json, write_text
from abmll.files.sealed import MOST_JSON


def test_what_is_written_is_read_and_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.bin"
    write_bytes(path, b"\0one\r\n")
    assert path.read_bytes() == b"\0one\r\n"
    write_bytes(path, b"")
    assert path.read_bytes() == b""
    assert list(path.parent.iterdir()) == [path]


def test_text_is_utf_8_and_line_ends_stay(tmp_path: Path) -> None:
    write_text(tmp_path / "t", "Zürich\n河\r\n")
    assert (tmp_path / "t").read_bytes() == "Zürich\n河\r\n".encode()


STEPS = ["write", "fsync", "chmod", "replace"]


def fail_at(step: str, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one step of writing fail as a full disk or an interrupt would."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    if step == "write":
        opened = os.fdopen

        def half_written(handle: int, mode: str) -> Any:
            file = opened(handle, mode, buffering=0)
            whole = file.write
            file_like = type("Half", (), {"flush": file.flush, "fileno": file.fileno, "__enter__": lambda self: self})
            file_like.__exit__ = lambda self, *args: file.close()
            file_like.write = lambda self, data: (whole(data[: len(data) // 2]), fail())
            return file_like()

        monkeypatch.setattr(os, "fdopen", half_written)
    elif step == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, step, fail)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=["full", "^C"]
)
def test_trust_08_a_failure_at_any_step_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    path = tmp_path / "result.json"
    write_bytes(path, b"old")
    with monkeypatch.context() as patched:
        fail_at(step, error, patched)
        with pytest.raises(type(error)):
            write_bytes(path, b"new and longer")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("result.json", b"old")]


@pytest.mark.parametrize("step", STEPS)
def test_trust_08_a_failure_of_a_new_file_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    with monkeypatch.context() as patched:
        fail_at(step, OSError(errno.EIO, "Input/output error"), patched)
        with pytest.raises(OSError, match="Input/output"):
            write_bytes(tmp_path / "result.json", b"new")
    assert list(tmp_path.iterdir()) == []


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole_and_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "result", []
    write_bytes(path, b"old")
    synced = os.fsync

    def watch(handle: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        seen.append((is_folder, path.read_bytes(), os.fstat(handle).st_size if not is_folder else 3))
        synced(handle)

    monkeypatch.setattr(os, "fsync", watch)
    write_bytes(path, b"new")
    assert seen == [(False, b"old", 3), (True, b"new", 3)]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_permissions_of_any_new_file(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write_bytes(tmp_path / "f", b"x")
        assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == mode
        assert os.umask(mask) == mask, "the process's own mask is as it was"
    finally:
        os.umask(before)


def test_a_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_bytes(tmp_path / "f", b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_json_is_read_back_and_floats_are_exact(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, 0.1 + 0.2, 5e-324, None, True], "河": {"b": "ü\n\u2028"}}
    write_json(tmp_path / "v.json", value)
    text = (tmp_path / "v.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert text.endswith("}\n")
    assert "河" in text


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("inside", [lambda x: x, lambda x: {"a": [1, {"b": x}]}], ids=["bare", "nested"])
def test_trust_19_json_refuses_nan_and_infinity_and_leaves_the_old_file(tmp_path: Path, number: float, inside) -> None:
    path = tmp_path / "scores.json"
    write_json(path, {"ece": 0.1})
    with pytest.raises(NonFiniteError, match=r"scores\.json: .*, not a finite number; nothing was written"):
        write_json(path, inside(number))
    assert json.loads(path.read_text()) == {"ece": 0.1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("value", ["NaN", "1e999", "-Infinity", '"\\ud800"', "2"])
def test_sealed_json_with_another_value_is_damaged_whatever_the_value(value: str, tmp_path: Path) -> None:
    write_sealed_json(tmp_path / "a.json", {"x": 1})
    assert read_sealed_json(tmp_path / "a.json") == {"x": 1}
    text = (tmp_path / "a.json").read_text()
    (tmp_path / "a.json").write_text(text.replace('"x": 1', f'"x": {value}'))
    with pytest.raises(AbmllError, match=r"a\.json: .*damaged"):
        read_sealed_json(tmp_path / "a.json")


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": NaN}', "[" * 100_000, "{", '{"a": -Infinity}'])
def test_strict_json_refuses_what_json_lets_through(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        strict_json(text)


def test_sealed_json_is_read_strictly_once_and_may_be_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a hand has put in twice does not pass, whether there is a seal or none; a file grows with its questions."""
    file = tmp_path / "a.json"
    for text in ('{"x": 1, "x": 2}', '{"x": NaN}', '{"x": 1e999}', '{"x": "\\ud800"}', "[" * 100_000):
        file.write_text(text)
        with pytest.raises(AbmllError, match=r"a\.json: cannot be read .* the file is damaged, delete it"):
            read_sealed_json(file)
    value = {"x": "a" * (MOST_JSON + 1)}
    write_sealed_json(file, value)
    assert read_sealed_json(file) == value
    with pytest.raises(AbmllError, match="bytes are too many"):
        read_sealed_json(file, most=MOST_JSON)
    write_sealed_json(file, {"x": 1})
    reads: list[Path] = []
    monkeypatch.setattr(Path, "read_bytes", lambda path: reads.append(path) or path.open("rb").read())
    read_sealed_json(file)
    assert reads == [file]


def test_strict_json_refuses_what_is_too_long() -> None:
    with pytest.raises(ValueError, match="too many"):
        strict_json('"' + "a" * MOST_JSON + '"')
