"""Ways to spoil a file: its bytes, or the values in it. All drawn from a generator: a seed is a corpus."""

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import yaml

Mutation = Callable[[bytes, random.Random], bytes]

DEEP: Any = None
for _ in range(200):
    DEEP = [DEEP]
VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    3,
    1.5,
    2**31,
    2**63,
    -(2**63) - 1,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "",
    " ",
    "a",
    "\0",
    "\ud800",
    "\u202eevil",
    "../../../tmp/evil",
    "/etc/passwd",
    "C:\\CON",
    "{{ 7 * 7 }}",
    "<script>alert(1)</script>",
    "=HYPERLINK(1)",
    "x" * 100_000,
    "9" * 5000,
    [],
    {},
    [[]],
    [None],
    {"": None},
    {"__class__": "os.system"},
    DEEP,
)
"""What stands where something else should."""


def truncate(data: bytes, rng: random.Random) -> bytes:
    """Lose the end."""
    return data[: rng.randrange(len(data) or 1)]


def flip(data: bytes, rng: random.Random) -> bytes:
    """Change up to eight bits."""
    out = bytearray(data or b"x")
    for _ in range(rng.randint(1, 8)):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def insert(data: bytes, rng: random.Random) -> bytes:
    """Put noise, or something telling, in the middle."""
    telling = (
        rng.randbytes(rng.randint(1, 40)),
        b"\0",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\r\n",
        b"[" * 5000,
        b"9" * 5000,
    )
    place = rng.randrange(len(data) + 1)
    return data[:place] + rng.choice(telling) + data[place:]


def cut_out(data: bytes, rng: random.Random) -> bytes:
    """Lose a piece of the middle."""
    begin, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:begin] + data[end:]


def repeat(data: bytes, rng: random.Random) -> bytes:
    """Give a piece twice."""
    begin, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:end] + data[begin:]


def blank(data: bytes, rng: random.Random) -> bytes:
    """Zeros in place of a piece."""
    begin, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:begin] + b"\0" * (end - begin) + data[end:]


def replace_all(data: bytes, rng: random.Random) -> bytes:
    """Another file altogether."""
    others = (
        b"",
        b"\0" * 64,
        b"\x80\x04\x95" + rng.randbytes(50),
        b"PK\x03\x04" + rng.randbytes(50),
        rng.randbytes(200),
    )
    return rng.choice((*others, b"[]", b"{}", b"null", b'"x"', b"GGUF" + rng.randbytes(60)))


BYTES: tuple[Mutation, ...] = (truncate, flip, insert, cut_out, repeat, blank, replace_all)


def spoil(value: Any, rng: random.Random) -> Any:
    """A value in which one, two or three places hold something else, are gone, are new, or have changed places."""
    for _ in range(rng.randint(1, 3)):
        place = rng.choice(list(_places(value)) or [()])
        value = _at(value, place, rng)
    return value


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in nested lists and tables."""
    yield place
    if len(place) > 20:
        return
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _places(entry, (*place, key))
    elif isinstance(value, list):
        for number, entry in enumerate(value[:20]):
            yield from _places(entry, (*place, number))


def _at(value: Any, place: tuple[Any, ...], rng: random.Random) -> Any:
    """A copy that is spoilt at a place."""
    if place:
        copy = value.copy()
        copy[place[0]] = _at(value[place[0]], place[1:], rng)
        return copy
    if isinstance(value, dict) and value and rng.random() < 0.6:
        gone = rng.choice(list(value))
        rest = {key: entry for key, entry in value.items() if key != gone}
        new = rng.choice((None, "extra", "\0", "x" * 1000, gone + "x" if isinstance(gone, str) else "y"))
        return rest if new is None else {**rest, new: value[gone]}
    if isinstance(value, list) and value and rng.random() < 0.5:
        return rng.choice((value + value, value[1:], value[::-1], [*value, rng.choice(VALUES)]))
    return rng.choice(VALUES)


def json_line(data: bytes, rng: random.Random) -> bytes:
    """One line of JSON lines, spoilt; the others stay."""
    lines = data.splitlines()
    number = rng.randrange(len(lines))
    lines[number] = as_json(spoil(json.loads(lines[number]), rng))
    return b"\n".join(lines) + b"\n"


def json_file(data: bytes, rng: random.Random) -> bytes:
    """A JSON file with something spoilt in it; now and then a name is given twice."""
    text = as_json(spoil(json.loads(data), rng))
    return text.replace(b"{", b'{"format": 9, "format": 1, ', 1) if rng.random() < 0.1 else text


def yaml_file(data: bytes, rng: random.Random) -> bytes:
    """The same for YAML."""
    value = spoil(yaml.safe_load(data), rng)
    try:
        return yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, ValueError):  # what YAML has no form for
        return as_json(value)


def as_json(value: Any) -> bytes:
    """JSON, lone surrogates and NaN as they come."""
    ascii_only = len(repr(value)) % 2 == 0
    try:
        return json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    except ValueError:  # an integer of more digits than Python prints
        return b'{"n": ' + b"9" * 5000 + b"}"


def safetensors_header(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose header is spoilt, its length mended, so that the header is what is read."""
    length = int.from_bytes(data[:8], "little")
    text = as_json(spoil(json.loads(data[8 : 8 + length]), rng))
    return len(text).to_bytes(8, "little") + text + data[8 + length :]
