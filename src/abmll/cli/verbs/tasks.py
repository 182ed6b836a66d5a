"""`abmll tasks list | show | check | pin`: what tasks there are, what is in them, and whether they can be trusted."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from abmll.cli.console import out_console, say
from abmll.cli.lazy import quick_imports
from abmll.question import Question, Task
from abmll.tasks.builtin import builtin_names, builtin_task
from abmll.tasks.catalogue.entries import Entry, catalogue_entry, catalogue_names
from abmll.tasks.catalogue.load import pin_hub_task
from abmll.tasks.catalogue.pins import pin_of, pins_file
from abmll.tasks.sources import load_tasks

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="List tasks, show their rows, check them for leaks and imbalance, pin those of the hub.",
)
MergeChoicesOption = Annotated[bool, typer.Option("--merge-choices", help="Drop a choice that a row gives twice.")]
SkipBadRowsOption = Annotated[
    bool, typer.Option("--skip-bad-rows", help="Leave out bad rows, counted, instead of refusing them.")
]


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
        out_console.print(f"[bold]{title}[/]")
        _print_tasks([builtin_task(name) for name in builtin_names(held_out)])
    out_console.print("[bold]hub:NAME: from the Hugging Face hub[/]")
    _print_catalogue()


def _print_tasks(tasks: Sequence[Task]) -> None:
    table = Table("task", "train", "test", "choices", "licence")
    for task in tasks:
        counts = sorted({len(question.choices) for question in task.train + task.test})
        choices = "-".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
        table.add_row(escape(task.name), f"{len(task.train):,}", f"{len(task.test):,}", choices, escape(task.licence))
    out_console.print(table)


def _print_catalogue() -> None:
    table = Table("task", "data set", "pinned", "licence")
    for name in catalogue_names():
        entry = catalogue_entry(name)
        pin = pin_of(entry)
        data_set = f"{entry.hub} {entry.configuration or ''}".strip() if entry.hub else "not on the hub"
        table.add_row(name, escape(data_set), pin.revision[:8] if pin else "", escape(entry.licence))
    out_console.print(table)


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
        out_console.print(f"[bold]{escape(task.name)}[/]  {len(task.train):,} train rows, {len(task.test):,} test rows")
        say(f"source: {task.source or 'unknown'}\nlicence: {task.licence or 'unknown'}")
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
    say("\n".join(line for line in lines if line != "note: "))


def _show_question(question: Question) -> None:
    say(f"\n{question.location or question.id}")
    for line in filter(None, (question.context, question.question)):
        say(f"  {line}")
    for number, choice in enumerate(question.choices):
        say(f"  {'->' if number == question.answer else '  '} {choice}")


@app.command()
def check(
    sources: Annotated[list[str], typer.Argument(help="Tasks to train on: folders, files, builtin, hub:NAME.")],
    scored: Annotated[
        list[str] | None, typer.Option("--scored", help="Tasks to score, to look for leaks into. May be repeated.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Measure rows in the tokens of this model, not in words.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="likelihood.max_tokens, with --model.")] = 512,
    merge_choices: MergeChoicesOption = False,
    skip_bad_rows: SkipBadRowsOption = False,
) -> None:
    """Check tasks: balance of answers, lengths, repeats, and leaks from what is trained on into what is scored.

    Without --scored, the train rows of all tasks are held against the test rows of all. Ends with exit code 1 if a row
    to train on is the same as a scored one, or, in another task, nearly the same.

    Example: `abmll tasks check my/train --scored my/unseen`
    """
    trained, scored_tasks = (_load(names, merge_choices, skip_bad_rows) for names in (sources, scored or []))

    with quick_imports():
        from abmll.cli.work.check_tasks import show_check  # after the arguments

    if show_check(trained, scored_tasks, model, max_tokens):
        raise typer.Exit(1)


def _load(sources: Sequence[str], merge_choices: bool, skip: bool) -> tuple[Task, ...]:
    loaded = (
        load_tasks(source, merge_choices=merge_choices, on_bad_row="skip" if skip else "error") for source in sources
    )
    return tuple(chain.from_iterable(loaded))


@app.command()
def pin(
    names: Annotated[list[str], typer.Argument(help="Sets of the catalogue.", metavar="NAME...", show_default=False)],
) -> None:
    """Pin sets of the hub to the commit of today, once all their rows were read; needs network.

    Pins are kept in the file that the environment names as ABMLL_PINS, or else in your configuration folder.

    Example: `abmll tasks pin arc_easy winogrande`
    """
    for name in names:
        pinned, _ = pin_hub_task(name.removeprefix("hub:"))
        rows = ", ".join(f"{count:,} {split} rows" for split, count in pinned.rows.items())
        say(f"{name}: {pinned.hub} at {pinned.revision}, {rows}")
    say(f"Pins: {pins_file()}")
