"""JSON of results, short enough to be committed: six digits, a line for each entry of the second level.

What nobody reads as it stands, because pages have its numbers, is compressed by gzip to a sixth: `zcat FILE` shows it,
`pandas.read_json` and `read_gzipped` read it.
"""

import gzip
import json
from pathlib import Path
from typing import Any

from abmll.files import write_bytes


def rounded(value: Any) -> Any:
    """The same value, each float to six significant digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list | tuple) else value


def short_json(value: dict[str, Any]) -> str:
    """The text of a file.

    >>> print(short_json({"a": {"b": 0.12345678, "c": [1, 2]}, "d": None}))
    {
    "a":{
    "b":0.123457,
    "c":[1,2]
    },
    "d":null
    }
    <BLANKLINE>
    """
    return _lines(rounded(value), depth=2) + "\n"


def write_gzipped(path: Path, value: dict[str, Any]) -> None:
    """Write `short_json` of results into a file NAME.json.gz; the same results are the same bytes."""
    write_bytes(path, gzip.compress(short_json(value).encode(), mtime=0))


def read_gzipped(path: Path) -> Any:
    """What `write_gzipped` wrote."""
    return json.loads(gzip.decompress(path.read_bytes()))


def _lines(value: Any, depth: int) -> str:
    if depth and isinstance(value, dict) and value:
        rows = [f"{json.dumps(str(key))}:{_lines(each, depth - 1)}" for key, each in value.items()]
        return "{\n" + ",\n".join(rows) + "\n}"
    if depth and isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(_lines(each, 0) for each in value) + "\n]"
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
