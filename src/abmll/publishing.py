"""Push a run to the Hugging Face hub: its shared weights and the saved tasks that are named, and nothing else of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from abmll.adapters.folder import EXTRAS_FILE, read_adapter, read_facts
from abmll.config import RunConfig, load_config
from abmll.errors import AbmllError
from abmll.everyday.saved import IN_PROMPT, read_posterior
from abmll.everyday.shipped import check_shareable, find_run
from abmll.files import open_regular
from abmll.hub.runs import OF_ADAPTER, OF_RUN, OF_TASK, SCHEME, check_repository, run_reference, upload_run
from abmll.runs.card import CARD_FILE, about_run, card_text, is_ours

WITH_ROWS = "--with-rows"


@dataclass(frozen=True)
class Pushed:
    """What was pushed.

    Attributes:
        repository: owner/name.
        commit: which everybody can use it by.
        files: name -> bytes.
        local_base: the base model, where it is a folder or file of this machine that nobody else has.
    """

    repository: str
    commit: str
    files: Mapping[str, int]
    local_base: str | None = None

    @property
    def reference(self) -> str:
        """What others give in the place of a run."""
        return f"{SCHEME}{self.repository}@{self.commit}"


def push_run(
    run: Path | str,
    repository: str,
    tasks: Sequence[str] = (),
    *,
    private: bool = True,
    with_rows: bool = False,
) -> Pushed:
    """Push a run to the hub, so that `hf://owner/name@COMMIT` can be given wherever a run is taken.

    Pushed are its configuration, its adapter, what was learned of its temperature, and the saved tasks that are named,
    each checked as when it is loaded; with a model card, and a list of the files with their SHA-256. No checkpoints,
    predictions, rows or journals. `task.json` has hashes of the rows that were adapted to: whoever has such a row can
    find out that it was among them.

    Args:
        run: a run directory.
        repository: owner/name; made if it is not there.
        tasks: saved tasks to push with it.
        private: whether a repository that is made is private.
        with_rows: push tasks whose labelled rows stand in their prompts, so that everybody who may read the repository
            can read them.

    Raises:
        AbmllError: there is nothing to push, it is damaged, a task holds rows, or the hub cannot be reached or refuses.
    """
    check_repository(repository)
    if run_reference(run) is not None:
        raise AbmllError(f"{run}: is on the hub already; push a run directory")
    folder = find_run(run, copy=False)
    if not (folder / "config.yaml").is_file():
        raise AbmllError(f"{run}: a base model, of which nothing was trained; push a run directory, with --task NAME")
    config = load_config(RunConfig, folder / "config.yaml")
    check_shareable(str(folder), config)
    files = _files(folder, OF_RUN)
    if (folder / "adapter").is_dir():
        read_adapter(folder / "adapter")
        files |= _files(folder, tuple(f"adapter/{name}" for name in OF_ADAPTER))
    for name in tasks:
        _check_task(folder, name, with_rows)
        files |= _files(folder, tuple(f"tasks/{name}/{each}" for each in OF_TASK))
    if not any(name.endswith(EXTRAS_FILE) for name in files):
        raise AbmllError(f"{folder}: has no adapter, as nothing was trained; name a saved task to push (--task NAME)")
    files[CARD_FILE] = _card(folder, repository, tasks).encode()
    commit = upload_run(repository, files, f"{config.name}, by abmll", private=private)
    source = config.model.source
    local = source if source is not None and Path(source).expanduser().exists() else None
    return Pushed(repository, commit, {name: len(data) for name, data in files.items()}, local)


def _files(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Those of the files that are there, none of them by a link that leaves the folder."""
    out = {}
    for name in names:
        path = folder / name
        if not path.exists() or name == CARD_FILE:
            continue
        if not path.resolve().is_relative_to(folder.resolve()):
            raise AbmllError(f"{path}: a link that leaves the run directory; remove it")
        with open_regular(path) as file:
            out[name] = file.read()
    return out


def _check_task(folder: Path, name: str, with_rows: bool) -> None:
    saved = read_posterior(folder, name)
    if IN_PROMPT in saved.details and not with_rows:
        raise AbmllError(
            f"{saved.folder}: its task.json holds labelled rows, which stand in every prompt: everybody who may read "
            f"the repository could read them. {WITH_ROWS} pushes them all the same; nothing was pushed"
        )


def _card(folder: Path, repository: str, tasks: Sequence[str]) -> str:
    """The card of the repository: that of the shared weights, else of the first task; one that was edited stays."""
    adapter, details, name = folder / "adapter", None, ""
    if not adapter.is_dir():
        saved = read_posterior(folder, tasks[0])
        adapter, details, name = saved.folder, saved.details, saved.name
    file = adapter / CARD_FILE
    if file.is_file() and not is_ours(text := file.read_text(encoding="utf-8")):
        return text
    about = about_run(folder, read_facts(adapter / EXTRAS_FILE), details, name)
    return card_text(replace(about, repository=repository))
