"""Answers and adapted weights that are not finite are refused where they arise, with the rows, the dtype and advice."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from abmll.adapters.layer import AdapterSet
from abmll.errors import NonFiniteError
from abmll.question import Question

SHOWN = 5
ADVICE = {
    "float16": ": float16 ends at 65,504, so try model.dtype=float32 or model.dtype=bfloat16",
    "bfloat16": ": try model.dtype=float32",
    "float32": "",
    "float64": "",
}
PACKED = ": try the model unpacked (model.quantisation=null), or model.dtype=float32"


def dtype_advice(dtype: str) -> str:
    """What to do about numbers that are not finite in a dtype.

    >>> dtype_advice("bfloat16")
    'computed in bfloat16: try model.dtype=float32'
    """
    return f"computed in {dtype}{ADVICE.get(dtype, PACKED)}"


def name_rows(questions: Sequence[Question]) -> str:
    """Rows as a message names them: file and line, or the id; the first few.

    >>> name_rows([Question(str(i), "?", ("a", "b"), 0, location=f"rows.csv:{i + 2}") for i in range(7)])
    'rows.csv:2, rows.csv:3, rows.csv:4, rows.csv:5, rows.csv:6 and 2 more'
    """
    names = ", ".join(question.location or f"question {question.id}" for question in questions[:SHOWN])
    return names + (f" and {len(questions) - SHOWN} more" if len(questions) > SHOWN else "")


def without_folders(text: str, questions: Iterable[Question], run: Path | None = None) -> str:
    """A message as it is written to files, without the user's folders.

    Args:
        text: the message.
        questions: rows that it may name, by their file's name alone then.
        run: a run directory that it may name, of which two folders stay.

    >>> row, run = Question("1", "?", ("a", "b"), 0, location="/home/me/rows.csv:2"), Path("/home/me/runs/mine")
    >>> without_folders(f"{row.location}: not finite, see {run}/non-finite", [row], run)
    'rows.csv:2: not finite, see runs/mine/non-finite'
    """
    if run is not None:
        text = text.replace(str(run), str(Path(*run.parts[-2:])))
    for question in questions:
        if question.location:
            text = text.replace(question.location, Path(question.location).name)
    return text


def rows_not_finite(tables: Sequence[Float[np.ndarray, "B K"]]) -> list[int]:
    """The rows of a batch that have a probability that is not finite, in some draw.

    >>> rows_not_finite([np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([[0.5, 0.5], [np.nan, 0.0]])])
    [1]
    """
    good = np.logical_and.reduce([np.isfinite(table).all(axis=1) for table in tables])
    return np.flatnonzero(~good).tolist()


def no_answers(questions: Sequence[Question], adapters: AdapterSet) -> NonFiniteError:
    """Why questions have no answer: probabilities that are not finite are none.

    Args:
        questions: those whose probabilities are not finite.
        adapters: that they were computed with.

    Returns:
        An error that names the rows and the dtype, and says whether the weights are at fault.
    """
    weights = first_non_finite(adapters, "task")
    advice = dtype_advice(adapters.base_dtype)
    cause = f"the adapted weights are not finite ({weights}): lower the rates; {advice}" if weights else advice
    rows = name_rows(questions)
    return NonFiniteError(f"{rows}: the probabilities of the choices are NaN or infinite, which is no answer; {cause}")


def check_adapted(task: str, adapters: AdapterSet) -> None:
    """Refuse a phi that is not finite: what a finite gradient makes at too high a rate.

    Raises:
        NonFiniteError: names the task and the first such weight.
    """
    norms = torch._foreach_norm([weight.detach() for weight in adapters.parameters("task")], float("inf"))
    if bool(torch.stack([norm.float() for norm in norms]).isfinite().all()):
        return
    raise NonFiniteError(
        f"adapting to task {task}: {first_non_finite(adapters, 'task')} is not finite after the last step. Lower the "
        f"inner rates (method.inner_lr); {dtype_advice(adapters.base_dtype)}"
    )


def first_non_finite(adapters: AdapterSet, slot: str) -> str:
    """Name of the first weight of theta (`shared`) or phi (`task`) that is not finite; empty if all are."""
    state = adapters.state_dict("task" if slot == "task" else "shared")
    return next((name for name, tensor in state.items() if not bool(tensor.isfinite().all())), "")
