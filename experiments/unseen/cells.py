"""What is committed of a run: the answers that later scores need, of all targets together, as three small tables.

`cells.parquet` has a row for each system, seed, draw, task and split; `questions.parquet` says once which questions a
cell answers; `targets.parquet` has the configuration, cost and environment of each system and seed. Of a target the
adapted answers at its last checkpoint are there, `test` and `held_out`; of `pretrained` also those before adapting,
`test` and `adaptation`. Left out are spreads, confidences over the vocabulary and journals: `summary.json.gz` was made
from the full files, and means, NLL and accuracy can be computed from here again.

Log-probabilities are stored as differences to the first choice, log p_k - log p_0 for k = 1, ..., K - 1, in whole steps
of 1/64 nat. A difference is then off by at most 1/128 nat, as float16 is from differences of 8 on, and takes a third
less room; which choice is the likeliest stays as it was. Means over thousands of answers move by about 1e-5 nat.
Systems answer much alike, so a cell is stored as what it differs from the mean of the cells before it that answer the
same questions after the same draw (those of its own system, if there are any), which takes a sixth less room again.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import yaml

from abmll.errors import AbmllError
from abmll.files import write_bytes
from abmll.metrics.predictions import Prediction, Predictions
from experiments.unseen.packing import Found, Packed, read_packed

BEFORE = "before-adaptation"
STEP = 64
"""Steps of a nat."""
LARGEST = 2**13 - 1
"""Of a difference, in steps: 128 nats."""
CELLS, QUESTIONS, TARGETS = "cells.parquet", "questions.parquet", "targets.parquet"
ABOUT = ("config", "cost", "environment", "commit")
"""Of what is known about a target, what is kept."""

Sheet = tuple[tuple[str, int, int], ...]
"""(id, right choice, number of choices) of the questions of a cell."""


def write_cells(packed: Iterable[Packed], folder: Path, means: Sequence[str] = ()) -> int:
    """Write the three tables; returns their bytes.

    Args:
        packed: targets.
        folder: where the tables go.
        means: systems whose row of mean weights is kept as well.
    """
    sheets: dict[Sheet, int] = {}
    cells: list[dict[str, Any]] = []
    targets: list[dict[str, Any]] = []
    for one in packed:
        about = {name: one.about[name] for name in ABOUT if name in one.about}
        targets.append({"system": one.about["system"], "seed": one.about["seed"], "about": json.dumps(about)})
        for system in one.found:
            if system.removesuffix("_mean") == system or system.removesuffix("_mean") in means:
                cells += _cells(system, one, sheets)
    rows = [
        {"sheet": number, "id": name, "answer": answer, "choices": choices}
        for sheet, number in sheets.items()
        for name, answer, choices in sheet
    ]
    tables = ((CELLS, _less_expected(cells)), (QUESTIONS, rows), (TARGETS, targets))
    return sum(_write(folder / name, table) for name, table in tables)


def _cells(system: str, one: Packed, sheets: dict[Sheet, int]) -> list[dict[str, Any]]:
    """The rows of a system of a target, whose questions are added to the sheets."""
    files = one.found[system]
    last = max(place for place, _, _ in files if place != BEFORE)
    out = []
    for (place, draw, task), found in sorted(files.items()):
        head = {"system": system, "target": one.about["system"], "seed": one.about["seed"], "place": place}
        head |= {"draw": draw, "task": task, "examples": found.examples_consumed}
        head |= {"labels": list(found.label_counts or ())}
        parts = {"test": found.rows, "held_out": found.held_out_rows}
        if place == BEFORE:
            parts = {"test": found.rows, "adaptation": found.adaptation_rows} if system == "pretrained" else {}
        elif place != last:
            continue
        for split, rows in parts.items():
            if rows:
                sheet = tuple((row.id, row.answer, len(row.probabilities)) for row in rows)
                steps = np.concatenate([_steps(row.probabilities) for row in rows])
                out.append({**head, "split": split, "sheet": sheets.setdefault(sheet, len(sheets)), "steps": steps})
    return out


def _steps(probabilities: Sequence[float]) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.array(probabilities, dtype=np.float64))
        steps = np.clip(np.round(STEP * np.nan_to_num(logs - logs[0], nan=0.0)), -LARGEST, LARGEST)
    top = int(logs.argmax())
    if steps.argmax() != top:  # rounded to a tie, or by way of the first choice: the answer stays what it was
        steps[top] = steps[:top].max() + 1
    return steps[1:].astype(np.int32)


class _Expected:
    """What a cell is expected to be, by the cells before it: the same in writing and in reading, in whole numbers."""

    def __init__(self) -> None:
        self._seen: dict[Any, dict[str, list[np.ndarray]]] = {}

    def of(self, row: dict[str, Any]) -> np.ndarray:
        before = self._seen.get(self._key(row), {})
        alike = before.get(row["system"]) or [steps for each in before.values() for steps in each]
        return np.sum(alike, axis=0) // len(alike) if alike else np.zeros(len(row["steps"]), dtype=np.int64)

    def add(self, row: dict[str, Any], steps: np.ndarray) -> None:
        self._seen.setdefault(self._key(row), {}).setdefault(row["system"], []).append(steps)

    @staticmethod
    def _key(row: dict[str, Any]) -> Any:
        return row["place"] == BEFORE, row["draw"], row["sheet"]


def _less_expected(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells in the order in which they are expected, each without what is expected of it."""
    expected, out = _Expected(), []
    for row in sorted(cells, key=lambda row: (row["split"], row["task"], row["draw"], row["system"], row["seed"])):
        rest = row["steps"] - expected.of(row)
        out.append({**row, "steps": np.where(rest < 0, -2 * rest - 1, 2 * rest)})  # small numbers, without a sign
        expected.add(row, row["steps"])
    return out


def _write(path: Path, rows: list[dict[str, Any]]) -> int:
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    types = {"steps": pyarrow.list_(pyarrow.int32()), "labels": pyarrow.list_(pyarrow.int16())}
    table = pyarrow.table({n: pyarrow.array(v, types.get(n)) for n, v in columns.items()})
    words = [field.name for field in table.schema if field.type == pyarrow.string()]
    buffer = pyarrow.BufferOutputStream()
    planes = ["steps.list.element"] if "steps" in columns else False  # their bytes in planes: two of four are signs
    pyarrow.parquet.write_table(
        table,
        buffer,
        compression="brotli",
        compression_level=11,
        use_dictionary=words,
        use_byte_stream_split=planes,
        write_statistics=False,
    )
    data = buffer.getvalue().to_pybytes()
    write_bytes(path, data)
    return len(data)


def read_cells(folder: Path, systems: Iterable[str] | None = None) -> list[Packed]:
    """The targets that `write_cells` wrote; of some systems alone if they are named.

    Raises:
        AbmllError: a table is missing or damaged.
    """
    try:
        cells, questions, targets = (pyarrow.parquet.read_table(folder / n) for n in (CELLS, QUESTIONS, TARGETS))
        sheets: dict[int, list[tuple[str, int, int]]] = {}
        for row in questions.to_pylist():
            sheets.setdefault(row["sheet"], []).append((row["id"], row["answer"], row["choices"]))
        about = {(t["system"], t["seed"]): json.loads(t["about"]) for t in targets.to_pylist()}
        found: dict[tuple[str, int], Found] = {key: {} for key in about}
        asked = None if systems is None else set(systems)
        expected = _Expected()
        for row in cells.to_pylist():
            coded = np.array(row["steps"], dtype=np.int32)
            steps = np.where(coded % 2, -(coded + 1) // 2, coded // 2) + expected.of(row)
            expected.add(row, steps)
            if asked is None or row["system"] in asked:
                files = found[row["target"], row["seed"]].setdefault(row["system"], {})
                key = (row["place"], row["draw"], row["task"])
                files[key] = _with_split(files.get(key), row, _predictions(steps, sheets[row["sheet"]]))
    except (OSError, pyarrow.ArrowException, KeyError, ValueError, IndexError) as error:
        raise AbmllError(f"{folder}: cannot be read ({error}); take its tables from git again") from error
    known = {key: {"system": key[0], "seed": key[1], "journal": [], "commit": "", **about[key]} for key in about}
    return [Packed(known[key], files) for key, files in found.items() if files]


def _predictions(steps: Sequence[int], sheet: Sequence[tuple[str, int, int]]) -> tuple[Prediction, ...]:
    out, begin = [], 0
    values = np.asarray(steps, dtype=np.float64) / STEP
    for name, answer, choices in sheet:
        logs = np.concatenate([[0.0], values[begin : begin + choices - 1]])
        logs[logs.argmax()] += 1e-9  # where rounding made a tie, the first was the likeliest
        begin += choices - 1
        shares = np.exp(logs - logs.max())
        out.append(Prediction(name, answer, tuple((shares / shares.sum()).tolist())))
    if begin != len(values):
        raise ValueError(f"{len(values)} differences for {begin}")
    return tuple(out)


def _with_split(known: Predictions | None, row: dict[str, Any], rows: tuple[Prediction, ...]) -> Predictions:
    parts = {
        "test": () if known is None else known.rows,
        "adaptation": () if known is None else known.adaptation_rows,
        "held_out": () if known is None else known.held_out_rows,
    }
    parts[row["split"]] = rows
    head = (row["system"], row["task"], row["seed"], row["draw"], row["examples"])
    return Predictions(*head, parts["test"], parts["adaptation"], tuple(row["labels"]) or None, parts["held_out"])


def read_targets(folder: Path, kind: str = "*") -> list[Packed]:
    """The targets of a folder, as three tables or as one packed file each.

    Args:
        folder: of either.
        kind: the likelihood, where there are packed files of several.
    """
    if (folder / CELLS).exists():
        return read_cells(folder)
    pattern = "*.parquet" if kind == "*" else f"*.{kind}.seed-*.parquet"
    return [read_packed(path) for path in sorted(folder.glob(pattern))]


def names_in(folder: Path) -> set[str]:
    """`SYSTEM.KIND.seed-N.parquet` of each target of a folder."""
    if not (folder / TARGETS).exists():
        return {path.name for path in folder.glob("*.parquet")}
    targets = pyarrow.parquet.read_table(folder / TARGETS).to_pylist()
    kinds = [yaml.safe_load(json.loads(target["about"])["config"])["likelihood"]["kind"] for target in targets]
    return {f"{t['system']}.{kind}.seed-{t['seed']}.parquet" for t, kind in zip(targets, kinds, strict=True)}
