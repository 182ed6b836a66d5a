"""The work of `abmll tasks check`: tables of what is in tasks, and the leaks between them."""

from collections.abc import Sequence
from operator import attrgetter

from rich.markup import escape
from rich.table import Column, Table
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from abmll.cli.console import out_console, say
from abmll.errors import AbmllError, harmless
from abmll.models.gguf_header import read_header
from abmll.models.gguf_weights import read_tokenizer
from abmll.models.load import find_folder, find_gguf
from abmll.models.pretrained import FAILURES, explain
from abmll.question import Task
from abmll.runs.roles import Leak, RunTasks, find_leaks
from abmll.tables.rows import shown
from abmll.tasks.inspection import Measure, TaskReport, inspect_task, words
from abmll.tasks.leaks import overlaps, rows_of


def show_check(trained: tuple[Task, ...], scored: tuple[Task, ...], model: str | None, max_tokens: int) -> int:
    """Print the tables and the leaks.

    Args:
        trained: tasks to train on.
        scored: tasks to score; none: the test rows of `trained` are.
        model: measure rows in the tokens of this model; None: in words.
        max_tokens: length above which a row loses the start of its passage, with `model`.

    Returns:
        Number of leaks.
    """
    measure, unit = (_tokens(_tokenizer(model)), "tokens") if model else (words, "words")
    limit = max_tokens if model else None
    _print_reports([inspect_task(task, measure, limit) for task in (*trained, *scored)], unit, limit)
    leaks = _leaks(trained, scored)
    for leak in leaks:
        say(f"{leak}: {leak.overlap.first.question.question[:80]}")
    rows = sum(len(task.train) for task in trained)
    out_console.print(f"{rows:,} rows to train on, {len(leaks):,} leak{'s' * (len(leaks) != 1)}")
    return len(leaks)


def _leaks(trained: tuple[Task, ...], scored: tuple[Task, ...]) -> list[Leak]:
    """As `train` and `compare` find them; without tasks to score, test rows of all are compared with train rows of all.

    Rows of one task that are nearly the same are counted in its line of the table.
    """
    leaks = list(find_leaks(RunTasks(trained, (), scored)))
    if scored:
        return leaks
    train, test = (
        [row for task in trained for row in rows_of(task.name, rows(task))]
        for rows in (attrgetter("train"), attrgetter("test"))
    )
    pairs = (pair for pair in overlaps(train, test) if pair.kind == "same" or pair.first.task != pair.second.task)
    return leaks + [Leak(pair, "trained on", "a test row") for pair in pairs]


def _tokenizer(source: str) -> PreTrainedTokenizerBase:
    try:
        if (parts := find_gguf(source, None)) is not None:
            return read_tokenizer(read_header(parts))
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
    out_console.print(table)
    say(_explanation(reports, limit))


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
    sentences = [
        "answers: how often each label, or the first, second, ... choice, is right. repeats: rows that are the same "
        "question as an earlier one. in both: test rows that are train rows too."
    ]
    uneven = [report.task for report in reports if len(report.answers) > 1 and max(report.answers) > 0.75]
    if uneven:
        sentences.append(
            f"In {', '.join(uneven)} one answer is right in more than three of four rows: a guess scores high."
        )
    for report in (report for report in reports if report.alike):
        one, other = report.alike[0]
        more = f", and {len(report.alike) - 1} more pairs" if len(report.alike) > 1 else ""
        sentences.append(f"In {report.task} {shown(one)} and {shown(other)} are two choices, and look alike{more}.")
    if limit is not None:
        sentences.append(f"Rows over {limit} tokens lose the start of their passage; stem and choices are never cut.")
    return "\n".join(sentences)
