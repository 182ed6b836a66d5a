"""The tables of a report: made once as plain text cells, then shown as Markdown, on the terminal or on the page."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from abmll.report.words import LETTER, POSTERIOR, difference_note, footnotes, has_score, one_of

Summary = dict[str, Any]
Entry = dict[str, Any]

NOT_FINITE = "not finite"
PLAIN = "nll"
WIDE = 136  # columns of a terminal from which the main table fits in one piece
_NONE = "-"


@dataclass(frozen=True)
class TextTable:
    """Text cells under a header; the first column is a name, the others are numbers.

    Attributes:
        title: what the table shows.
        header: one title a column.
        rows: cells, each row as long as the header.
        faint: numbers of the rows that are baselines.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    faint: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Column:
    """A column of the main table: its title, the half that it is in, its cell for a system; and what it needs.

    That is whose NLL it is, or a score that systems need not have.
    """

    title: str
    half: str
    cell: Callable[[Entry], str]
    needs: str | None = None


def percent(value: float | None) -> str:
    """A share as a percentage without its sign, one decimal."""
    return _NONE if value is None else f"{100 * value:.1f}"


def number(value: float | None) -> str:
    """Three decimals."""
    return _NONE if value is None else f"{value:.3f}"


def signed(value: float | None) -> str:
    """Three decimals and always a sign."""
    return _NONE if value is None else f"{value:+.3f}"


def _with_error(metric: str, form: Callable[[float | None], str]) -> Callable[[Entry], str]:
    def cell(entry: Entry) -> str:
        if entry["not_finite"]:
            return NOT_FINITE
        error = entry[f"{metric}_standard_error"]
        return form(entry[metric]) + ("" if error is None else f" ± {form(error)}")

    return cell


def _interval(metric: str, form: Callable[[float | None], str]) -> Callable[[Entry], str]:
    return lambda entry: _range(entry[f"{metric}_interval"], form)


def _range(ends: list[float] | None, form: Callable[[float | None], str]) -> str:
    return _NONE if ends is None else f"[{form(ends[0])}, {form(ends[1])}]"


def _number_of(metric: str) -> Callable[[Entry], str]:
    return lambda entry: number(entry[metric])


COLUMNS = (
    Column("Accuracy %", "answers", _with_error("accuracy", percent)),
    Column("95 %", "answers", _interval("accuracy", percent)),
    Column("NLL posterior", "answers", _with_error(POSTERIOR, number), POSTERIOR),
    Column("Gain", "answers", lambda entry: signed(entry[f"{POSTERIOR}_over_uniform"]), POSTERIOR),
    Column("NLL", "answers", lambda entry: NOT_FINITE if entry["not_finite"] else number(entry["nll"]), POSTERIOR),
    Column("NLL", "answers", _with_error("nll", number), PLAIN),
    Column("Gain", "answers", lambda entry: signed(entry["nll_over_uniform"]), PLAIN),
    Column("n", "calibration", lambda entry: f"{entry['n']:,}"),
    Column("ECE", "calibration", _with_error("ece", number)),
    Column("ECE letter", "calibration", _with_error(LETTER, number), LETTER),
    Column("Floor", "calibration", lambda entry: number(entry["ece_noise_floor"])),
    Column("Brier", "calibration", lambda entry: number(entry["brier"])),
    Column("ECE posterior", "calibration", lambda entry: number(entry["ece_posterior"]), POSTERIOR),
)


def score_table(summary: Summary, half: str | None = None) -> TextTable:
    """The main table, or one half of it (`answers`, `calibration`), a row a system, baselines last.

    Where no system has answers at the posterior temperature, the scores as they are stated stand alone.
    """
    shown = {
        None,
        POSTERIOR if has_score(summary, POSTERIOR) else PLAIN,
        LETTER if has_score(summary, LETTER) else None,
    }
    every = (
        *(column for column in COLUMNS if column.needs in shown),
        *(Column(name, "calibration", _number_of(name)) for name in summary.get("metrics", ())),
    )
    columns = [column for column in every if half in (None, column.half)]
    entries = summary["systems"]
    rows = [(_row_name(summary, name), *(c.cell(entry) for c in columns)) for name, entry in entries.items()]
    faint = [i for i, entry in enumerate(entries.values()) if entry["kind"] == "baseline"]
    title = {None: "Scores", "answers": "Answers", "calibration": "Calibration"}[half]
    return TextTable(title, ("System", *(column.title for column in columns)), tuple(rows), frozenset(faint))


def _row_name(summary: Summary, name: str) -> str:
    return name + ("" if summary["systems"][name]["n_tasks"] == len(summary["tasks"]) else " *")


def difference_table(summary: Summary, metrics: Iterable[str] | None = None) -> TextTable:
    """Paired tests against the reference, a row a system; by default of accuracy, the primary score and plain NLL."""
    titles = {"accuracy": "Accuracy, points", PLAIN: "NLL, nats", POSTERIOR: "NLL posterior, nats"}
    metrics = tuple(dict.fromkeys(("accuracy", summary["primary"], PLAIN) if metrics is None else metrics))
    rows = []
    for name, entry in summary["systems"].items():
        tests = entry["against_reference"] or {}
        if tests:
            cells = [cell for metric in metrics for cell in _test_cells(metric, tests.get(metric))]
            rows.append((name, *cells))
    header = [title for metric in metrics for title in (titles[metric], "p")]
    return TextTable(f"Difference to {summary['reference']}", ("System", *header), tuple(rows))


def _test_cells(metric: str, test: dict[str, Any] | None) -> tuple[str, str]:
    if test is None:
        return _NONE, _NONE
    form = _signed_points if metric == "accuracy" else signed
    return f"{form(test['difference'])} {_range(test['interval'], form)}", _p(test)


def _p(test: dict[str, Any]) -> str:
    """The adjusted p, or why there is none: the first reason alone, as a terminal has 80 columns."""
    if test["p_holm"] is None:
        return next(map(one_of, test["measured_once"]), _NONE)
    return f"{test['p_holm']:.3f}"


def _signed_points(value: float | None) -> str:
    return _NONE if value is None else f"{100 * value:+.1f}"


def task_table(summary: Summary, metric: str) -> TextTable:
    """One metric (`accuracy`, `gain` in the primary score, `ece`), a row a task, a column a system."""
    title, form = {
        "accuracy": ("Accuracy %, by task", percent),
        "gain": ("Gain over a uniform guess in nats, by task", signed),
        "ece": ("ECE, by task", number),
    }[metric]
    systems = list(summary["systems"])
    metric = f"{summary['primary']}_over_uniform" if metric == "gain" else metric
    rows = []
    for task, scores in summary["tasks"].items():
        count = max(found["n"] for found in scores.values())
        rows.append((task, f"{count:,}", *(_of_task(scores.get(name, {}), metric, form) for name in systems)))
    return TextTable(title, ("Task", "n", *systems), tuple(rows))


def _of_task(scores: dict[str, Any], metric: str, form: Callable[[float | None], str]) -> str:
    return NOT_FINITE if scores.get("not_finite") else form(scores.get(metric))


def cost_table(summary: Summary) -> TextTable:
    """Time, memory and parameters of the systems that recorded them: means over seeds, the largest peak."""
    rows = []
    for name, entry in summary["systems"].items():
        cost = entry["cost"]
        if cost is not None:
            peak = cost.get("peak_memory_bytes")
            seconds = [_seconds(cost.get(f"{part}_seconds")) for part in ("train", "adapt", "predict")]
            parameters = [_whole(cost.get(f"{part}_parameters")) for part in ("shared", "task")]
            memory = _NONE if peak is None else f"{peak / 2**30:.2f}"
            examples = _whole(cost.get("examples_consumed"))
            rows.append((name, *seconds, memory, *parameters, examples, str(cost.get("device", _NONE))))
    header = ("System", "Train s", "Adapt s", "Predict s", "Peak GiB", "Shared par.", "Task par.", "Examples", "Device")
    return TextTable("Cost", header, tuple(rows))


def _seconds(value: int | float | None) -> str:
    return _NONE if value is None else f"{value:,.1f}"


def _whole(value: int | float | None) -> str:
    return _NONE if value is None else f"{value:,.0f}"


def markdown(table: TextTable) -> str:
    """A table in Markdown, its columns lined up for reading as text."""
    cells = [[_markdown_cell(cell) for cell in row] for row in (table.header, *table.rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(table.header))]
    lines = [
        "| "
        + " | ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([lines[0] + " |", rule, *(line + " |" for line in lines[1:])])


def _markdown_cell(text: str) -> str:
    for mark in "\\`|<*":  # the backslash first: the others add some
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split())


def markdown_report(summary: Summary) -> str:
    """`table.md`: scores, tests, tasks and cost with what a reader must know below them."""
    parts = [f"# {summary['name']}", markdown(score_table(summary)), _list(footnotes(summary))]
    tests = difference_table(summary)
    if tests.rows:
        parts += [f"## {tests.title}", markdown(tests), difference_note(summary)]
    for table in (task_table(summary, "accuracy"), task_table(summary, "gain"), cost_table(summary)):
        parts += [f"## {table.title}", markdown(table)] if table.rows else []
    for title, lines in (("Not finite", summary["not_finite"]), ("Missing", summary["missing"])):
        parts += [f"## {title}", _list(map(_markdown_cell, lines))] if lines else []
    return "\n\n".join(parts) + "\n"


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


class TerminalReport:
    """The summary on a terminal: the main table in one piece if the terminal is wide, else in two."""

    def __init__(self, summary: Summary) -> None:
        self.summary = summary

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Chosen when printed, as only then is the width known."""
        more = (*self.summary.get("metrics", ()), *(["ECE letter"] if has_score(self.summary, LETTER) else ()))
        wide = WIDE + sum(len(name) + 2 for name in more)
        halves = (None,) if options.max_width >= wide else ("answers", "calibration")
        tables = [score_table(self.summary, half) for half in halves]
        tests = difference_table(self.summary, ("accuracy", self.summary["primary"]))
        for table in tables:
            yield _rich(table)
            yield Text()
        for i, line in enumerate(footnotes(self.summary)):
            yield Text(line, style="bold" if i == 0 and self.summary["note"] else "dim")
        if tests.rows:
            yield Text()
            yield _rich(tests)
            yield Text(difference_note(self.summary), style="dim")
        for what, lines in (("not finite", self.summary["not_finite"]), ("missing", self.summary["missing"])):
            for line in lines:
                yield Text(f"{what}: {line}", style="yellow")


def _rich(table: TextTable) -> RichTable:
    out = RichTable(title=Text(table.title), title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    out.pad_edge, out.collapse_padding = False, True
    for i, title in enumerate(table.header):
        out.add_column(Text(title), justify="left" if i == 0 else "right", no_wrap=i > 0, overflow="fold")
    for i, row in enumerate(table.rows):
        # Text and not str: a name in square brackets is not markup
        out.add_row(*(Text(cell) for cell in row), style="dim" if i in table.faint else "")
    return out
