"""A set of the catalogue as a Task: its Parquet files fetched, checked against their pin, and mapped row by row."""

import hashlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from abmll.errors import AbmllError
from abmll.question import Question, Task
from abmll.tables.collect import OnBadRow, Rows, collect, reject_repeats, settle
from abmll.tables.formats import parquet_rows
from abmll.tables.rows import question_from_row
from abmll.tasks.catalogue import hub
from abmll.tasks.catalogue.entries import Columns, Entry, catalogue_entry
from abmll.tasks.catalogue.mapping import columns_of, map_row
from abmll.tasks.catalogue.pins import Pin, pin_of, write_pin

log = logging.getLogger(__name__)

MOST_BAD = 0.01  # of the rows of a split: more, and its layout is not the one that the catalogue says


@dataclass(frozen=True)
class _Files:
    """The Parquet files of a set at one commit: split -> name -> file, and whether that commit was pinned."""

    commit: str
    splits: Mapping[str, Mapping[str, Path]]
    pinned: bool


def load_hub_task(name: str, *, merge_choices: bool = False, on_bad_row: OnBadRow = "error") -> Task:
    """One set of the catalogue, at its pinned commit or else at the newest.

    Raises:
        AbmllError: no such set; it cannot be had; a file is not the one that was pinned; or rows are bad. Where
            these are skipped, a set that is not pinned may have one in a hundred: with more its layout is another one,
            and those that still pass for questions may have wrong answers (counted from 1, not from 0).
    """
    entry = catalogue_entry(name)
    files = _locate(entry)
    if not files.pinned:
        log.warning("hub:%s is read at today's commit, %s; `abmll tasks pin %s` keeps it", name, files.commit, name)
    splits = _read(entry, files, merge_choices)
    if on_bad_row == "skip" and not files.pinned:
        _check_layout(entry, files, splits if merge_choices else _read(entry, files, merge_choices=True), "not read")
    if "test" in splits:
        reject_repeats(splits["train"], splits["test"])
    skipped = settle(list(splits.values()), on_bad_row)
    questions = {split: tuple(rows.questions) for split, rows in splits.items()}
    source = f"hub:{name} ({entry.hub} {entry.configuration or ''} at {files.commit})"
    return Task(name, questions["train"], questions.get("test", ()), source, entry.licence, skipped)


def pin_hub_task(name: str) -> tuple[Pin, Path]:
    """Find out the newest commit of a set, map all its rows, and keep the commit and its files' hashes.

    Returns:
        The pin, and the file it was written to.

    Raises:
        AbmllError: it cannot be had, or more than one row in a hundred is no question.
    """
    entry = catalogue_entry(name)
    files = _newest(entry)
    splits = _read(entry, files, merge_choices=True)
    _check_layout(entry, files, splits, "not pinned")
    pin = Pin(
        hub=entry.hub or "",
        configuration=entry.configuration,
        revision=files.commit,
        files={
            split: {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in found.items()}
            for split, found in files.splits.items()
        },
        rows={split: len(rows.questions) for split, rows in splits.items()},
        verified=True,
    )
    return pin, write_pin(name, pin)


def _check_layout(entry: Entry, files: _Files, splits: Mapping[str, Rows], refused: str) -> None:
    """Refuse rows that were read with repeated choices merged, if more than `MOST_BAD` of a split are no questions."""
    for split, rows in splits.items():
        total = len(rows.questions) + len(rows.problems)
        if len(rows.problems) > MOST_BAD * total or not rows.questions or rows.rows_lost:
            raise AbmllError(
                f"hub:{entry.name} is {refused}: {len(rows.problems):,} of {total:,} {split} rows at commit "
                f"{files.commit} are no questions in the catalogue's layout. The first: {rows.problems[0]}"
            )


def _locate(entry: Entry) -> _Files:
    """The pinned files, which may lie in the local cache, or else the newest ones.

    Raises:
        AbmllError: with what to do instead.
    """
    try:
        pin = pin_of(entry)
        return _newest(entry) if pin is None else _pinned(entry, pin)
    except AbmllError as error:
        raise AbmllError(
            f"hub:{entry.name}: {error}\nWithout the hub: put its rows into a folder as {entry.name}.train.jsonl and "
            f"{entry.name}.test.jsonl (docs/tasks.md says how) and give that folder as the source. A set that was "
            f"pinned with network (`abmll tasks pin {entry.name}`) is read from the local cache without it"
        ) from error


def _pinned(entry: Entry, pin: Pin) -> _Files:
    splits: dict[str, dict[str, Path]] = {}
    for split, files in pin.files.items():
        for name, digest in files.items():
            file = hub.fetch_file(pin.hub, pin.revision, name)
            if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
                raise AbmllError(
                    f"{file} is not the file that was pinned: damaged, or changed. Remove it, or pin the set again"
                )
            splits.setdefault(split, {})[name] = file
    return _Files(pin.revision, splits, pinned=True)


def _newest(entry: Entry) -> _Files:
    if entry.hub is None or entry.columns is None:
        raise AbmllError(f"the catalogue knows no data set for {entry.name}: {entry.note}")
    commit, names = hub.list_files(entry.hub)
    splits = {
        split: {name: hub.fetch_file(entry.hub, commit, name) for name in chosen}
        for split, chosen in choose_files(entry, names).items()
    }
    return _Files(commit, splits, pinned=False)


def choose_files(entry: Entry, names: tuple[str, ...]) -> dict[str, list[str]]:
    """The Parquet files of each split, in order.

    Raises:
        AbmllError: there is no such configuration or split.

    >>> from abmll.tasks.catalogue.entries import catalogue_entry
    >>> choose_files(catalogue_entry("copa"), ("copa/train/0000.parquet", "copa/validation/0000.parquet"))
    {'train': ['copa/train/0000.parquet'], 'test': ['copa/validation/0000.parquet']}
    """
    found: dict[str, dict[str, list[str]]] = {}
    for name in sorted(names):
        if match := re.fullmatch(r"([^/]+)/([^/]+)/[^/]+\.parquet", name):
            found.setdefault(match[1], {}).setdefault(match[2], []).append(name)
    configuration = entry.configuration or (next(iter(found)) if len(found) == 1 else None)
    if configuration not in found:
        raise AbmllError(
            f"data set {entry.hub} has no configuration {entry.configuration or 'of its own'} in its Parquet form; it "
            f"has {', '.join(found) or 'none'}"
        )
    splits = found[configuration]
    if missing := sorted(set(entry.splits.values()) - set(splits)):
        raise AbmllError(f"data set {entry.hub} has no split {', '.join(missing)}; it has {', '.join(splits)}")
    return {split: splits[theirs] for split, theirs in entry.splits.items()}


def _read(entry: Entry, files: _Files, merge_choices: bool) -> dict[str, Rows]:
    assert entry.columns is not None  # _newest refuses others, and only those it takes are pinned
    read = {split: _read_split(entry, entry.columns, named, merge_choices) for split, named in files.splits.items()}
    if entry.test_share is None:
        return read
    return _divide(entry.name, read["train"], entry.test_share)


def _read_split(entry: Entry, columns: Columns, files: Mapping[str, Path], merge_choices: bool) -> Rows:
    whole = Rows("")

    def as_question(row: Mapping[str, Any], line: int, *, location: str) -> Question:
        return question_from_row(map_row(columns, row), line, merge_choices=merge_choices, location=location)

    for name, file in files.items():
        part = collect(f"hub:{entry.hub}/{name}", parquet_rows(file.read_bytes(), columns_of(columns)), as_question)
        prefix = f"{name}:" if len(files) > 1 else ""  # a row's id is its line, of which several files have the same
        whole.add(part, prefix)
    return whole


def _divide(name: str, rows: Rows, share: float) -> dict[str, Rows]:
    """Train and test rows of a set that has one split: questions on one passage land on one side, by its hash."""
    divided = {"train": replace(rows, questions=[]), "test": Rows("")}
    for question in rows.questions:
        digest = hashlib.sha256(f"{name}\x1f{question.context or _text(question)}".encode()).digest()
        divided["test" if int.from_bytes(digest[:6], "big") < share * 2**48 else "train"].questions.append(question)
    return divided


def _text(question: Question) -> str:
    return "\x1f".join((question.question, *question.choices))
