"""JSON of results, short enough to be committed: six digits, a line for each entry of the second level."""

import json
from typing import Any


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


def _lines(value: Any, depth: int) -> str:
    if depth and isinstance(value, dict) and value:
        rows = [f"{json.dumps(str(key))}:{_lines(each, depth - 1)}" for key, each in value.items()]
        return "{\n" + ",\n".join(rows) + "\n}"
    if depth and isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(_lines(each, 0) for each in value) + "\n]"
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
