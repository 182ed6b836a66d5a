"""A folder in the place of the Hugging Face hub, filled with rows in the layouts of the catalogue's sets."""

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
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


class FakeRunHub:
    """The hub in memory, as `abmll.hub.runs` talks to it: repositories of commits, each a name -> content.

    `HfApi` gives itself; operations are huggingface_hub's own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commits: dict[tuple[str, str], dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.fetched: list[str] = []
        self.error: Exception | None = None

    def install(self, monkeypatch: pytest.MonkeyPatch) -> "FakeRunHub":
        """Answer in the place of huggingface_hub."""
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.download)
        return self

    def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self._fail()
        self.private.setdefault(repository, private)

    def create_commit(self, repository: str, operations: list[Any], *, commit_message: str) -> Any:
        self._fail()
        assert repository in self.private
        assert commit_message
        files = {operation.path_in_repo: bytes(operation.path_or_fileobj) for operation in operations}
        return SimpleNamespace(oid=self.put(repository, files))

    def put(self, repository: str, files: dict[str, bytes]) -> str:
        """Another commit; files of earlier ones stay."""
        before = [tree for (name, _), tree in self.commits.items() if name == repository]
        tree = {**(before[-1] if before else {}), **files}
        commit = hashlib.sha1(repr(sorted(tree.items())).encode()).hexdigest()
        self.commits[repository, commit] = tree
        return commit

    def model_info(self, repository: str, *, revision: str, timeout: float, files_metadata: bool) -> Any:
        assert files_metadata
        assert timeout > 0
        self._fail()
        tree = self._tree(repository, revision)
        siblings = [SimpleNamespace(rfilename=name, size=len(data)) for name, data in tree.items()]
        return SimpleNamespace(sha=revision, siblings=siblings)

    def download(self, repository: str, name: str, *, revision: str) -> str:
        self._fail()
        self.fetched.append(name)
        path = self.folder / repository / revision / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self._tree(repository, revision)[name])
        return str(path)

    def _tree(self, repository: str, commit: str) -> dict[str, bytes]:
        if (repository, commit) not in self.commits:
            raise huggingface_hub.errors.RepositoryNotFoundError("404", response=_response(404))
        return self.commits[repository, commit]

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


def refusal(status: int, text: str = "refused") -> Exception:
    """What huggingface_hub raises for an answer of the hub."""
    return huggingface_hub.errors.HfHubHTTPError(text, response=_response(status))


def _response(status: int) -> Any:
    """What huggingface_hub's errors read of a response, whatever HTTP library it has."""
    return SimpleNamespace(status_code=status, headers={}, request=None)
