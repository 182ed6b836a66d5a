"""Labelled questions that stand before others in a prompt, as JSON values and back."""

from collections.abc import Sequence
from typing import Any

from abmll.question import Question


def examples_to_json(examples: Sequence[Question]) -> dict[str, Any]:
    """Examples as JSON values, for `examples_from_json`; a stem with its choices is written once, whoever shares it.

    >>> rows = [Question(str(i), "Good?", ("yes", "no"), i, f"text {i}") for i in (0, 1)]
    >>> examples_to_json(rows)["rows"]
    [{'stem': 0, 'context': 'text 0', 'answer': 0}, {'stem': 0, 'context': 'text 1', 'answer': 1}]
    >>> [row.context for row in examples_from_json(examples_to_json(rows))]
    ['text 0', 'text 1']
    """
    stems = list(dict.fromkeys((row.question, row.choices) for row in examples))
    number = {stem: i for i, stem in enumerate(stems)}
    return {
        "stems": [{"question": question, "choices": list(choices)} for question, choices in stems],
        "rows": [
            {"stem": number[row.question, row.choices], "context": row.context, "answer": row.answer}
            for row in examples
        ],
    }


def examples_from_json(values: Any) -> tuple[Question, ...]:
    """What `examples_to_json` was given, but for ids and where they were read.

    Raises:
        ValueError, KeyError, TypeError, IndexError: it is no such thing.
    """
    stems = [(str(stem["question"]), tuple(map(str, stem["choices"]))) for stem in values["stems"]]
    out = []
    for number, row in enumerate(values["rows"]):
        question, choices = stems[int(row["stem"])]
        if not 0 <= int(row["answer"]) < len(choices):
            raise ValueError(f"example {number}: answer {row['answer']} of {len(choices)} choices")
        out.append(Question(f"example {number}", question, choices, int(row["answer"]), str(row["context"])))
    if not out:
        raise ValueError("no examples")
    return tuple(out)
