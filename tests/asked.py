"""Files of questions that are all different, and rows planted in them."""

import json
from pathlib import Path
from typing import Any


def write(folder: Path, name: str, train: list[dict[str, Any]], test: list[dict[str, Any]]) -> None:
    folder.mkdir(exist_ok=True)
    for split, rows in (("train", train), ("test", test)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.{split}.jsonl").write_text(text, encoding="utf-8")


def asked(number: int, **what: Any) -> dict[str, Any]:
    things = (
        "stone",
        "cloud",
        "ladder",
        "violin",
        "pepper",
        "harbour",
        "needle",
        "mirror",
        "saddle",
        "candle",
        "engine",
    )
    text = f"On day {number} somebody found a {things[number % 11]} near the {things[number // 11 % 11]}: was it lost?"
    return {"id": str(number), "question": text, "choices": ["yes", "no"], "answer": number % 2, **what}


def plant(path: Path, row: dict[str, Any]) -> int:
    """Append a row; returns its line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**row, "id": "planted"}) + "\n")
    return len(path.read_text(encoding="utf-8").splitlines())
