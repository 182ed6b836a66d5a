"""`classifier.json`: what an estimator's folder has beside its adapter."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from abmll.adapters.folder import checksum
from abmll.errors import AbmllError
from abmll.everyday.adapt import HeldBackRows
from abmll.files import MOST_JSON, read_and_tell_seal, write_sealed_json
from abmll.prompts.examples import examples_from_json, examples_to_json
from abmll.question import Question
from abmll.systems.temperature import TaskTemperature, read_temperature
from abmll.tables.labels import classes_from_json, classes_to_json
from abmll.tables.layouts import Layout

FILE = "classifier.json"
FORMAT = 5
"""In the first labels had no types, in the second there were no rows held back, in the third no temperature, in the
fourth no rows in the prompt."""


@dataclass(frozen=True, eq=False)
class Stored:
    """What an estimator learned, besides its adapter, and how it was made.

    Attributes:
        params: of the constructor, as JSON values.
        layout: which columns its rows have, and what is asked of them.
        classes: the labels, or the indices of the choices.
        held_back: rows that it was not fitted to, and its answers.
        temperature: of its answers; None: they are as the model states them.
        examples: labelled rows in every prompt.
    """

    params: Mapping[str, Any]
    layout: Layout
    classes: np.ndarray
    held_back: HeldBackRows
    temperature: TaskTemperature | None
    examples: tuple[Question, ...] = ()

    def write(self, folder: Path) -> None:
        """Write it into a folder that has the adapter."""
        values = {
            "abmll_classifier": FORMAT,
            "params": dict(self.params),
            "layout": self.layout.to_dict(),
            "classes": classes_to_json(self.classes),
            "held_back": self.held_back.to_json(),
            "temperature": None if self.temperature is None else self.temperature.model_dump(mode="json"),
            "examples_in_prompt": examples_to_json(self.examples) if self.examples else None,
        }
        write_sealed_json(folder / FILE, values, _of(folder))


def read_stored(folder: Path, constructor: Callable[..., Any]) -> Stored:
    """What `Stored.write` wrote, of this format or an earlier one.

    Args:
        folder: of `Classifier.save`.
        constructor: has to take the params.

    Raises:
        AbmllError: the folder is none, is damaged, or was written by a later version.
    """
    file = folder / FILE
    if not file.exists():
        raise AbmllError(f"{file}: not there, so this is no folder of Classifier.save")
    try:
        values, sealed = read_and_tell_seal(file, _of(folder), "fit and save again", MOST_JSON)
        if values["abmll_classifier"] not in range(1, FORMAT + 1):
            raise AbmllError(f"{file}: format {values['abmll_classifier']} is not known here: upgrade abmll")
        params = dict(values["params"])
        constructor(**params)
        layout, classes = Layout.from_dict(values["layout"]), classes_from_json(values["classes"])
        if layout.labels is not None and len(layout.labels) != len(classes):
            raise ValueError(f"{len(classes)} labels, and {len(layout.labels)} texts of them")
        held_back = HeldBackRows.from_json(values.get("held_back", {"probabilities": [], "answers": []}))
        temperature = read_temperature(values.get("temperature"), file)
        shown = values.get("examples_in_prompt")
        if not sealed and values["abmll_classifier"] > 1:
            raise AbmllError(f"{file}: has no SHA-256 of its own; fit and save again")
        examples = () if shown is None else examples_from_json(shown)
        return Stored(params, layout, classes, held_back, temperature, examples)
    except AbmllError as error:
        raise error if str(folder) in str(error) else AbmllError(f"{file}: {error}") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise AbmllError(f"{file}: not what was saved ({error})") from error


def _of(folder: Path) -> str:
    """What `classifier.json` is sealed for: the posterior beside it, whose labels it names."""
    return f"{FILE} of the adapter {checksum(folder)}"
