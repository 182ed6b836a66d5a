"""One small file per finished target: every answer of every task and draw, and what made it.

A Parquet file of rows; log-probabilities in float32, so that p is kept to 1e-6 of itself however small it is.
"""

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from abmll.errors import AbmllError, NonFiniteError
from abmll.files import read_sealed_json, write_bytes
from abmll.metrics.predictions import SPLITS, Prediction, Predictions, read_predictions
from abmll.runs.record import COST, ENVIRONMENT, owner

ABOUT = b"about"
LOGS = pyarrow.list_(pyarrow.float32())
WORDS = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
SCHEMA = pyarrow.schema(
    [
        *((name, WORDS) for name in ("system", "place", "task", "split", "id")),
        ("draw", pyarrow.int16()),
        ("answer", pyarrow.int16()),
        ("log_probabilities", LOGS),
        ("vocabulary_confidence", pyarrow.float32()),
        ("spread", LOGS),
        ("group", WORDS),
        ("lengths", pyarrow.list_(pyarrow.int32())),
    ]
)

Found = dict[str, dict[tuple[str, int, str], Predictions]]
"""Row of the table -> (place, draw, task) -> predictions. A place is `examples-00003600` or `before-adaptation`."""


@dataclass(frozen=True)
class Packed:
    """A finished target: its predictions and what is known about them.

    Attributes:
        about: system, seed, configuration, cost, environment, the journal's last lines.
        found: the predictions.
    """

    about: Mapping[str, Any]
    found: Found


def read_target(work: Path, system: str, rows: Iterable[str], seed: int) -> Packed:
    """What a finished target left in its run directories below `work`."""
    folder = work / system / f"seed-{seed}"
    found: Found = {}
    for row in rows:
        place = work / row / f"seed-{seed}" / "predictions"
        files = [read_predictions(path) for path in sorted(place.glob("*/draw-*/*.jsonl"))]
        places = [path.parent.parent.name for path in sorted(place.glob("*/draw-*/*.jsonl"))]
        found[row] = {(p, f.draw, f.task): f for p, f in zip(places, files, strict=True)}
    about = {
        "system": system,
        "seed": seed,
        "config": (folder / "config.yaml").read_text(encoding="utf-8"),
        "cost": read_sealed_json(folder / COST, owner(COST, system, seed)),
        "environment": read_sealed_json(folder / ENVIRONMENT, owner(ENVIRONMENT, system, seed)),
        "journal": _telling_lines(folder / "journal.jsonl"),
    }
    return Packed(about, found)


def _telling_lines(journal: Path) -> list[dict[str, Any]]:
    """The lines with std statistics or a validation, the first and the last: enough to see what training did."""
    lines = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()] if journal.exists() else []
    telling = {"stds", "validation_nll"}
    return [line for i, line in enumerate(lines) if telling & set(line) or i in (0, len(lines) - 1) or i % 25 == 0]


def pack(packed: Packed) -> bytes:
    """The file's contents."""
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    heads = []
    for row, files in packed.found.items():
        for (place, draw, task), found in files.items():
            heads.append([row, place, draw, task, found.examples_consumed, found.label_counts])
            for split, rows in found.splits.items():
                for prediction in rows:
                    for name, value in _cells(prediction).items():
                        columns[name].append(value)
                    for name, value in zip(
                        ("system", "place", "task", "split", "draw"), (row, place, task, split, draw), strict=True
                    ):
                        columns[name].append(value)
    about = json.dumps({**packed.about, "files": heads}, sort_keys=True).encode()
    table = pyarrow.table(columns, schema=SCHEMA.with_metadata({ABOUT: about}))
    out = io.BytesIO()
    floats = [f"{name}.list.element" for name in ("log_probabilities", "spread")]  # their bytes in planes: a third less
    words = [field.name for field in SCHEMA if field.type == WORDS]
    options = {"use_byte_stream_split": floats, "use_dictionary": words, "write_statistics": False}
    pyarrow.parquet.write_table(table, out, compression="zstd", compression_level=19, **options)
    return out.getvalue()


def _cells(prediction: Prediction) -> dict[str, Any]:
    with np.errstate(divide="ignore"):
        logs = np.log(np.array(prediction.probabilities)).astype(np.float32)
    return {
        "id": prediction.id,
        "answer": prediction.answer,
        "log_probabilities": logs.tolist(),
        "vocabulary_confidence": prediction.vocabulary_confidence,
        "spread": None if prediction.spread is None else list(prediction.spread),
        "group": prediction.group,
        "lengths": None if prediction.lengths is None else list(prediction.lengths),
    }


def write_packed(packed: Packed, path: Path) -> int:
    """Write the file, whole or not at all; returns its size."""
    data = pack(packed)
    write_bytes(path, data)
    return len(data)


def read_packed(path: Path) -> Packed:
    """The inverse of `write_packed`.

    Raises:
        AbmllError: the file is damaged, or none of these.
    """
    try:
        table = pyarrow.parquet.read_table(path)
        about = json.loads(table.schema.metadata[ABOUT])
        heads = {(row, place, draw, task): rest for row, place, draw, task, *rest in about.pop("files")}
    except (OSError, pyarrow.ArrowException, TypeError, KeyError, ValueError) as error:
        raise AbmllError(f"{path}: cannot be read ({error}); the file is damaged, delete it") from error
    rows: dict[Any, dict[str, list[Prediction]]] = {key: {name: [] for name in SPLITS} for key in heads}
    try:
        for key, split, prediction in _predictions(table):
            rows[key][split].append(prediction)
    except NonFiniteError as error:
        raise AbmllError(f"{path}: {error}; the file is damaged, delete it") from error
    found: Found = {}
    for (row, place, draw, task), (examples, labels) in heads.items():
        parts = {name: tuple(values) for name, values in rows[row, place, draw, task].items()}
        found.setdefault(row, {})[place, draw, task] = Predictions(
            row,
            task,
            about["seed"],
            draw,
            examples,
            parts["test"],
            parts["adaptation"],
            None if labels is None else tuple(labels),
            parts["held_out"],
            content_free_rows=parts["content_free"],
        )
    return Packed(about, found)


def _predictions(table: pyarrow.Table) -> Iterator[tuple[Any, str, Prediction]]:
    names = [name for name in SCHEMA.names if name in table.column_names]
    columns = {name: table.column(name).to_pylist() for name in names}
    for cells in zip(*columns.values(), strict=True):
        row = dict(zip(columns, cells, strict=True))
        probabilities = np.exp(np.array(row["log_probabilities"], dtype=np.float64))
        spread, lengths = row["spread"], row.get("lengths")  # which, as groups, files of before do not have
        yield (
            (row["system"], row["place"], row["draw"], row["task"]),
            row["split"],
            Prediction(
                row["id"],
                row["answer"],
                tuple((probabilities / probabilities.sum()).tolist()),
                row["vocabulary_confidence"],
                None if spread is None else tuple(spread),
                row.get("group"),
                None if lengths is None else (lengths[0], lengths[1]),
            ),
        )
