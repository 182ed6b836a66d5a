"""The files of a report: pictures that open, a page that is escaped and alone, tables that fit a terminal."""

import copy
import io
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from abmll.report import render_terminal, write_report
from abmll.report.figures import learning_curve
from tests.report_folder import make_folder

SYSTEMS = ("pretrained", "lora", "<script>alert(1)<b>$x$|[red]&--")
TASKS = ("boolean", "<script>alert(2)</script>")
NOTE = "Shows the path <img src=x onerror=alert(3)>, not the method."
PICTURES = ("learning_curve", "reliability", "risk_coverage", "adaptation_gain", "cost")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "toy"
    make_folder(folder, systems=SYSTEMS, tasks=TASKS, questions=25, draws=1, note=NOTE)
    return folder, write_report(folder)


class Elements(HTMLParser):
    """Every start tag of a page with its attributes, and the text outside of style."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = set(), [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def test_every_file_is_there_and_whole(report):
    folder, summary = report
    assert json.loads((folder / "results.json").read_text()) == summary
    assert not list(folder.rglob("*part"))
    assert sorted(path.stem for path in (folder / "figures").iterdir()) == sorted(PICTURES)
    for name in PICTURES:
        with Image.open(folder / "figures" / f"{name}.png") as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 200
            assert len(picture.convert("RGB").getcolors(10**6)) > 20  # something was drawn


def test_trust_46_page_escapes_names_and_needs_nothing_else(report):
    page = (report[0] / "report.html").read_text()
    found = Elements(page)
    assert found.tags.isdisjoint({"script", "img", "link", "iframe", "object", "b", "image", "foreignobject"})
    assert not [name for name, _ in found.attributes if name.startswith("on") or name == "src"]
    assert all(value.startswith("#") for name, value in found.attributes if name.endswith("href"))
    assert not re.search(r"https?:|//|@import|url\((?!#)", page)
    assert SYSTEMS[-1] in found.text
    assert TASKS[-1] in found.text
    assert NOTE in found.text


def test_page_is_for_small_screens_and_both_themes(report):
    page = (report[0] / "report.html").read_text()
    assert 'name="viewport"' in page
    assert "prefers-color-scheme:dark" in page
    assert page.count("<table>") == page.count('<div class="scroll"')
    ids = [value for name, value in Elements(page).attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"var\(--(\w+)\)", page))
    assert used <= set(re.findall(r"--(\w+):", page))
    drawings = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert not re.search(r"#[0-9a-f]{6}\b(?!\w)", re.sub(r"#[mp][0-9a-f]{10}", "", drawings))  # all colours themed


def test_drawing_again_gives_the_same_picture(report):
    folder, summary = report
    again = learning_curve(summary).svgs()
    page = (folder / "report.html").read_text()
    assert len(again) == 2
    assert all(picture in page for picture in again)


@pytest.mark.parametrize("width", [80, 100, 160])
def test_terminal_fits_and_says_n_interval_and_note(report, width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(render_terminal(report[1]))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    words = " ".join(text.split())
    assert NOTE in words
    assert "3 systems on 50 questions of 2 unseen tasks" in words
    lora = report[1]["systems"]["lora"]
    low, high = (f"{100 * end:.1f}" for end in lora["accuracy_interval"])
    assert f"[{low}, {high}]" in text
    assert "…" not in text
    assert all(re.search(rf"^ *{name}", text, flags=re.MULTILINE) for name in ("uniform", "label_frequency", "lora"))


def test_markdown_table_is_a_table(report):
    text = (report[0] / "table.md").read_text()
    rows = text.split("\n\n")[1].splitlines()
    assert len(rows) == 2 + 3 + 2
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    assert "\\<script>" in text
    assert "| uniform" in text
    assert "| label_frequency \\*" in text


def test_one_seed_one_checkpoint_and_nothing_recorded(tmp_path):
    folder = make_folder(
        tmp_path, systems=("lora",), tasks=("science",), seeds=1, draws=1, questions=10, checkpoints=(60,), note=""
    )
    run = folder / "lora" / "seed-0"
    for name in ("cost.json", "environment.json", "journal.jsonl"):
        (run / name).unlink()
    shutil.rmtree(run / "predictions" / "before-adaptation")
    summary = write_report(folder)
    assert list(summary["systems"]) == ["lora", "uniform"]
    assert sorted(path.stem for path in (folder / "figures").iterdir()) == sorted(PICTURES[:3])
    assert "not recorded" in (folder / "report.html").read_text()
    console = Console(width=80)
    with console.capture() as capture:
        console.print(render_terminal(summary))
    assert "One seed, so no standard error" in capture.get()


def test_the_differences_of_one_seed_and_draw_fit_a_terminal(tmp_path):
    """Why there is no p is said in one word: two of them once pushed the systems' names off the screen."""
    folder = make_folder(tmp_path, systems=("pretrained", "lora", "abmll"), seeds=1, draws=1)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render_terminal(write_report(folder)))
    differences = console.export_text().split("Difference to lora", 1)[1]
    for system in ("pretrain", "abmll"):  # a name that is too long goes on in the next line
        (row,) = re.findall(rf"^ *{system}(?:ed)? .*$", differences, flags=re.MULTILINE)
        assert len(re.findall(r"[+-][\d.]+ \[[+-][\d.]+, [+-][\d.]+\] +one seed", row)) == 2, row


def test_the_page_says_on_a_phone_that_there_are_more_columns(report):
    page = (report[0] / "report.html").read_text()
    for table in re.findall(r'(?s)(.{0,200})<div class="scroll".*?<thead><tr>(.*?)</tr>', page):
        columns = table[1].count("<th ")
        assert (f"{columns - 1} columns: those that do not fit are to the right" in table[0]) == (columns > 3)
    assert re.search(r"@media\(max-width:\d+rem\)\{\.hint\{display:block\}\}", page)
    assert ".hint{display:none" in page


def test_the_learning_curve_says_why_systems_differ_before_training(report):
    assert "At 0 examples nothing is meta-trained yet" in (report[0] / "report.html").read_text()


def test_more_systems_than_colours_are_dealt_to_panels_on_one_scale(report):
    """Fifty-seven lines in one panel were no picture; rows of mean weights are those of other systems once more."""
    summary = copy.deepcopy(report[1])
    for table in (summary["curve"], summary["systems"]):
        for number in range(12):
            table[f"s{number:02}"] = table["lora"]
            table[f"s{number:02}_mean"] = table["lora"]
    assert not learning_curve(report[1]).panels[0].draw.keywords["apart"]
    picture = learning_curve(summary)
    drawn = [panel.draw.keywords["names"] for panel in picture.panels]
    assert drawn[::2] == drawn[1::2], "accuracy and ECE side by side"
    assert [name for names in drawn[::2] for name in names] == [*SYSTEMS, *(f"s{number:02}" for number in range(12))]
    assert all(len(names) <= 10 for names in drawn)
    scales = []
    for panel in picture.panels[::2]:
        panel.draw(figure := Figure())
        scales.append((figure.axes[0].get_xlim(), figure.axes[0].get_ylim()))
        assert len(figure.legends[0].get_texts()) == len(panel.draw.keywords["names"])
    assert len(set(scales)) == 1
    assert not picture.legend, "each pair of panels has its own"
