"""A folder in the place of the Hugging Face hub, filled with rows in the layouts of the catalogue's sets."""

from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from abmll.tasks.catalogue import hub
from abmll.tasks.catalogue.entries import Entry, catalogue_entry
from tests.hub_layouts import LAYOUTS, Layout

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """A folder in the place of the hub: REPOSITORY/CONFIGURATION/SPLIT/0000.parquet."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.fetched = folder, []

    def list_files(self, repository: str, revision: str | None = None) -> tuple[str, tuple[str, ...]]:
        home = self.folder / repository
        names = sorted(path.relative_to(home).as_posix() for path in home.rglob("*.parquet"))
        return COMMIT, (".gitattributes", *names)

    def fetch_file(self, repository: str, commit: str, name: str) -> Path:
        assert commit == COMMIT
        self.fetched.append(name)
        return self.folder / repository / name

    def put(self, entry: Entry, rows: dict[str, list[dict[str, Any]]]) -> None:
        for split, theirs in entry.splits.items():
            path = self.folder / str(entry.hub) / (entry.configuration or "default") / theirs / "0000.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[split]), path)


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """Answer the hub's two functions from a folder, and keep pins in it too."""
    monkeypatch.setenv("ABMLL_PINS", str(folder / "pins.json"))
    made = FakeHub(folder / "hub")
    monkeypatch.setattr(hub, "list_files", made.list_files)
    monkeypatch.setattr(hub, "fetch_file", made.fetch_file)
    return made


def varied(layout: Layout, numbers: range) -> list[dict[str, Any]]:
    """The row, and others that differ from it in one column."""
    return [{**layout.row, layout.vary: layout.row[layout.vary] + " " * bool(n) + "x" * n} for n in numbers]


def put(fake: FakeHub, name: str, train: int = 2, test: int = 1) -> Entry:
    entry, layout = catalogue_entry(name), LAYOUTS[name]
    fake.put(entry, {"train": varied(layout, range(train)), "test": varied(layout, range(train, train + test))})
    return entry
