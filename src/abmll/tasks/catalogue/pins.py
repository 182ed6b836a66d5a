"""Which commit of each set is read: found out by `abmll tasks pin`, kept in a file of the user's.

The catalogue itself is a part of the installed package, which may be read-only and is the same for everybody; so pins
lie in ABMLL_PINS, or in abmll/hub-pins.json in the user's configuration folder. Copy that file along with a recipe, and
the same rows are read elsewhere.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from abmll.errors import AbmllError
from abmll.files import read_sealed_json, write_sealed_json
from abmll.tasks.catalogue.entries import Entry


class Pin(BaseModel):
    """One set's pin.

    Attributes:
        hub, configuration: what was pinned; the pin of another data set is not used.
        revision: the commit of its Parquet form.
        files: split -> file -> SHA-256 of its bytes.
        rows: split -> rows that are questions.
        verified: rows were mapped; a pin is written only then.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hub: str
    configuration: str | None
    revision: str = Field(pattern=r"^[0-9a-f]{7,64}$")
    files: Mapping[str, Mapping[str, str]]
    rows: Mapping[str, int]
    verified: bool


PINS = "hub pins"
"""What a file of pins is sealed for, whatever its name is."""
ADVICE = "remove it and call `abmll tasks pin` again; or, if you know what it says, remove its entry sha256"
_PINS = TypeAdapter(dict[str, Pin])


def pins_file() -> Path:
    """Where pins are kept."""
    if place := os.environ.get("ABMLL_PINS"):
        return Path(place)
    folder = os.environ.get("XDG_CONFIG_HOME")
    return (Path(folder) if folder else Path.home() / ".config") / "abmll" / "hub-pins.json"


def read_pins() -> dict[str, Pin]:
    """All pins; none where there is no file.

    Raises:
        AbmllError: the file is damaged.
    """
    path = pins_file()
    try:
        path.stat()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise AbmllError(
            f"{path}: the pins of hub tasks cannot be read ({error}). The environment's ABMLL_PINS names the file"
        ) from error
    values = read_sealed_json(path, PINS, ADVICE)
    try:
        return _PINS.validate_json(json.dumps(values))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise AbmllError(
            f"{path}: no file of pins ({place}: {first['msg']}); remove it and call `abmll tasks pin` again"
        ) from None


def pin_of(entry: Entry) -> Pin | None:
    """The pin of a set, if there is one of the data set that the catalogue names.

    Raises:
        AbmllError: the file of pins is damaged.
    """
    pin = read_pins().get(entry.name)
    if pin is None or (pin.hub, pin.configuration) != (entry.hub, entry.configuration):
        return None
    if pin.files.keys() != entry.splits.keys() or not all(pin.files.values()):
        raise AbmllError(
            f"{pins_file()}: the pin of {entry.name} is damaged: it has files of {', '.join(pin.files) or 'nothing'}, "
            f"not of {', '.join(entry.splits)}; call `abmll tasks pin {entry.name}` again"
        )
    return pin


def write_pin(name: str, pin: Pin) -> Path:
    """Add a pin, or replace the one of that name; returns the file.

    Raises:
        AbmllError: the file cannot be read or written.
    """
    path = pins_file()
    pins = {**read_pins(), name: pin}
    try:
        write_sealed_json(path, {key: pins[key].model_dump(mode="json") for key in sorted(pins)}, PINS)
    except OSError as error:
        raise AbmllError(
            f"{path}: cannot be written ({error.strerror}). Name another file in the environment variable ABMLL_PINS"
        ) from error
    return path
