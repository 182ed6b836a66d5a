"""`abmll tasks list | show | check | pin`: what tasks there are, what is in them, and whether they can be trusted."""

from collections.abc import Sequence
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from abmll.errors import AbmllError, harmless
from abmll.models.load import find_folder, find_gguf, load_model
from abmll.models.pretrained import FAILURES, explain
from abmll.question import Question, Task
from abmll.runs.roles import Leak, RunTasks, find_leaks
from abmll.tables.rows import shown
from abmll.tasks.builtin import builtin_names, builtin_task
from abmll.tasks.catalogue.entries import Entry, catalogue_entry, catalogue_names
from abmll.tasks.catalogue.load import pin_hub_task
from abmll.tasks.catalogue.pins import pin_of, pins_file
from abmll.tasks.inspection import Measure, TaskReport, inspect_task, words
from abmll.tasks.leaks import overlaps, rows_of
from abmll.tasks.sources import load_tasks

console = Console()
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="List tasks, show their rows, check them for leaks and imbalance, pin those of the hub.",
)
Merge = Annotated[bool, typer.Option("--merge-choices", help="Drop a choice that a row gives twice.")]
Skip = Annotated[bool, typer.Option("--skip-bad-rows", help="Leave out bad rows, counted, instead of refusing them.")]


@app.command("list")
def list_tasks(
    folder: Annotated[Path | None, typer.Argument(help="A folder of tasks. Default: what abmll has itself.")] = None,
) -> None:
    """List the built-in tasks and the sets of the hub's catalogue, or the tasks of a folder.

    Example: `abmll tasks list my/tasks`
    """
    if folder is not None:
        _print_tasks(load_tasks(folder, merge_choices=True, on_bad_row="skip"))
        return
    for title, held_out in (("builtin: to train on", False), ("builtin:held-out: to try adapting on", True)):
        console.print(f"[bold]{title}[/]")
        _print_tasks([builtin_task(name) for name in builtin_names(held_out)])
    console.print("[bold]hub:NAME: from the Hugging Face hub[/]")
    _print_catalogue()


def _print_tasks(tasks: Sequence[Task]) -> None:
    table = Table("task", "train", "test", "choices", "licence")
    for task in tasks:
        counts = sorted({len(question.choices) for question in task.train + task.test})
        choices = "-".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
        table.add_row(escape(task.name), f"{len(task.train):,}", f"{len(task.test):,}", choices, escape(task.licence))
    console.print(table)


def _print_catalogue() -> None:
    table = Table("task", "data set", "pinned", "licence")
    for name in catalogue_names():
        entry = catalogue_entry(name)
        pin = pin_of(entry)
        where = f"{entry.hub} {entry.configuration or ''}".strip() if entry.hub else "not on the hub"
        table.add_row(name, escape(where), pin.revision[:8] if pin else "", escape(entry.licence))
    console.print(table)


@app.command()
def show(
    source: Annotated[str, typer.Argument(help="builtin:NAME, hub:NAME, a folder or a file.", show_default=False)],
    rows: Annotated[int, typer.Option(min=0, help="Rows of each task.")] = 3,
) -> None:
    """Show the first rows of tasks, where they come from, and their licence.

    Example: `abmll tasks show builtin:plurals`
    """
    if source.startswith("hub:") and source[4:] in catalogue_names():
        _show_entry(catalogue_entry(source[4:]))
    for task in load_tasks(source, merge_choices=True, on_bad_row="skip"):
        console.print(f"[bold]{escape(task.name)}[/]  {len(task.train):,} train rows, {len(task.test):,} test rows")
        _say(f"source: {task.source or 'unknown'}\nlicence: {task.licence or 'unknown'}")
        for question in (task.train or task.test)[:rows]:
            _show_question(question)


def _show_entry(entry: Entry) -> None:
    pin = pin_of(entry)
    lines = [
        f"data set: {entry.hub or 'none'} {entry.configuration or ''}",
        f"splits: {', '.join(f'{ours} = {theirs}' for ours, theirs in entry.splits.items()) or 'none'}",
        f"layout read in: {entry.layout_source or 'nowhere'}",
        f"revision: {pin.revision if pin else 'not pinned'}",
        f"note: {entry.note}",
    ]
    _say("\n".join(line for line in lines if line != "note: "))


def _show_question(question: Question) -> None:
    _say(f"\n{question.location or question.id}")
    for line in filter(None, (question.context, question.question)):
        _say(f"  {line}")
    for number, choice in enumerate(question.choices):
        _say(f"  {'->' if number == question.answer else '  '} {choice}")


@app.command()
def check(
    sources: Annotated[list[str], typer.Argument(help="Tasks to train on: folders, files, builtin, hub:NAME.")],
    scored: Annotated[
        list[str] | None, typer.Option("--scored", help="Tasks to score, to look for leaks into. May be repeated.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Measure rows in the tokens of this model, not in words.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="likelihood.max_tokens, with --model.")] = 512,
    merge_choices: Merge = False,
    skip_bad_rows: Skip = False,
) -> None:
    """Check tasks: balance of answers, lengths, repeats, and leaks from what is trained on into what is scored.

    Without --scored, the train rows of all tasks are held against the test rows of all. Ends with exit code 1 if a row
    to train on is the same as a scored one, or, in another task, nearly the same.

    Example: `abmll tasks check my/train --scored my/unseen`
    """
    trained, held = (_load(names, merge_choices, skip_bad_rows) for names in (sources, scored or []))
    measure, unit = (_tokens(_tokenizer(model)), "tokens") if model else (words, "words")
    limit = max_tokens if model else None
    _print_reports([inspect_task(task, measure, limit) for task in (*trained, *held)], unit, limit)
    leaks = _leaks(trained, held)
    for leak in leaks:
        _say(f"{leak}: {leak.overlap.first.question.question[:80]}")
    rows = sum(len(task.train) for task in trained)
    console.print(f"{rows:,} rows to train on, {len(leaks):,} leak{'s' * (len(leaks) != 1)}")
    if leaks:
        raise typer.Exit(1)


def _load(sources: Sequence[str], merge_choices: bool, skip: bool) -> tuple[Task, ...]:
    loaded = (
        load_tasks(source, merge_choices=merge_choices, on_bad_row="skip" if skip else "error") for source in sources
    )
    return tuple(chain.from_iterable(loaded))


def _leaks(trained: tuple[Task, ...], held: tuple[Task, ...]) -> list[Leak]:
    """As `train` and `compare` find them; without tasks to score, the test rows of all are held against the train rows.

    Rows of one task that are nearly the same are counted in its line of the table.
    """
    leaks = list(find_leaks(RunTasks(trained, (), held)))
    if held:
        return leaks
    train, test = (
        [row for task in trained for row in rows_of(task.name, rows(task))]
        for rows in (attrgetter("train"), attrgetter("test"))
    )
    pairs = (pair for pair in overlaps(train, test) if pair.kind == "same" or pair.first.task != pair.second.task)
    return leaks + [Leak(pair, "trained on", "a test row") for pair in pairs]


def _tokenizer(source: str) -> PreTrainedTokenizerBase:
    if find_gguf(source, None):
        return load_model(source, device="cpu").tokenizer
    try:
        return AutoTokenizer.from_pretrained(find_folder(source, None) or source)
    except AbmllError:
        raise
    except FAILURES as error:
        raise explain(source, error) from error


def _tokens(tokenizer: PreTrainedTokenizerBase) -> Measure:
    def measure(texts: Sequence[str]) -> list[int]:
        plain = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        return [len(ids) for ids in tokenizer(list(texts), **plain)["input_ids"]]

    return measure


def _print_reports(reports: Sequence[TaskReport], unit: str, limit: int | None) -> None:
    lengths = f"{unit}: median, 95 %, longest"
    table = Table(
        Column("task", overflow="fold"), "train", "test", "choices", "answers %", lengths, "repeats", "in both"
    )
    if limit is not None:
        table.add_column(f"over {limit}: cut, too long")
    for report in reports:
        table.add_row(*(escape(harmless(cell)) for cell in _cells(report, limit)))
    console.print(table)
    _say(_explanation(reports, limit))


def _cells(report: TaskReport, limit: int | None) -> list[str]:
    lengths = report.lengths
    near = f" (+{report.near} nearly)" if report.near else ""
    cells = [
        report.task,
        f"{report.train:,}" + (f" ({report.skipped:,} bad rows left out)" if report.skipped else ""),
        f"{report.test:,}",
        "-".join(map(str, dict.fromkeys(report.choices))),
        _balance(report),
        f"{lengths.median:g}, {lengths.most}, {lengths.longest}" if lengths else "",
        str(report.repeated or ""),
        f"{report.same}{near}" if report.same or report.near else "",
    ]
    return cells + ([f"{lengths.cut}, {lengths.too_long}" if lengths else ""] if limit is not None else [])


def _balance(report: TaskReport) -> str:
    shares = [f"{100 * share:.0f}" for share in report.answers]
    if report.labels and len(report.labels) >= len(shares):
        return ", ".join(f"{label} {share}" for label, share in zip(report.labels, shares, strict=False))
    return " ".join(shares)


def _explanation(reports: Sequence[TaskReport], limit: int | None) -> str:
    said = [
        "answers: how often each label, or the first, second, ... choice, is right. repeats: rows that are the same "
        "question as an earlier one. in both: test rows that are train rows too."
    ]
    uneven = [report.task for report in reports if len(report.answers) > 1 and max(report.answers) > 0.75]
    if uneven:
        said.append(f"In {', '.join(uneven)} one answer is right in more than three of four rows: a guess scores high.")
    for report in (report for report in reports if report.alike):
        one, other = report.alike[0]
        more = f", and {len(report.alike) - 1} more pairs" if len(report.alike) > 1 else ""
        said.append(f"In {report.task} {shown(one)} and {shown(other)} are two choices, and look alike{more}.")
    if limit is not None:
        said.append(f"Rows over {limit} tokens lose the start of their passage; stem and choices are never cut.")
    return "\n".join(said)


@app.command()
def pin(
    names: Annotated[list[str], typer.Argument(help="Sets of the catalogue.", metavar="NAME...", show_default=False)],
) -> None:
    """Pin sets of the hub to the commit of today, once all their rows were read; needs network.

    Pins are kept in the file that the environment names as ABMLL_PINS, or else in your configuration folder.

    Example: `abmll tasks pin arc_easy winogrande`
    """
    for name in names:
        found, _ = pin_hub_task(name.removeprefix("hub:"))
        rows = ", ".join(f"{count:,} {split} rows" for split, count in found.rows.items())
        _say(f"{name}: {found.hub} at {found.revision}, {rows}")
    _say(f"Pins: {pins_file()}")


def _say(text: str) -> None:
    """Print what data or a file name holds, as it stands, but for what a terminal would obey."""
    console.print(harmless(text), markup=False, highlight=False, soft_wrap=True)
