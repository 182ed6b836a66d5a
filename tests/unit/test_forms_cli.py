"""`abmll adapt`, `predict` and `tasks check` on one table in many forms, and on tables with one fault."""

import json
from pathlib import Path

from tests.everyday import texts, write_asked, write_csv
from tests.unit import test_everyday_cli
from tests.unit.test_everyday_cli import Command, read_csv

abmll, home = test_everyday_cli.abmll, test_everyday_cli.home  # fixtures

ROWS = [("Which is it?", "sun", "rain"), ("Which is hot?", "sun", "snow")]
NAMES = ("question", "choice_0", "choice_1")


def lines_of(
    separator: str, rows: list[tuple[str, ...]] = ROWS, names: tuple[str, ...] = NAMES, end: str = "\n"
) -> str:
    return end.join(map(separator.join, [names, *rows])) + end


FORMS_OF_A_TABLE = {
    "plain.csv": lines_of(",").encode(),
    "spaced.csv": lines_of(", ").encode(),
    "one-space.csv": lines_of(",").replace("hot?,sun", "hot?, sun").encode(),
    "quoted.csv": lines_of(", ", [tuple(f'" {cell} "' for cell in row) for row in ROWS]).encode(),
    "semicolons.csv": ("sep=;\r\n" + lines_of(";", end=";;\r\n") + ";;;;\r\n").encode(),
    "tabs.tsv": lines_of("\t").replace("Which is hot?", " Which is hot? ").encode(),
    "excel.csv": lines_of("\t", end="\r\n").encode("utf-16"),
    "marks.csv": lines_of(
        ",",
        [("Which is it?", "s\u200bun", "rain\ufeff"), ("Which is hot?", "\u2060sun", "snow\u00a0")],
        ("\ufeffquestion\u200b", "choice_0\u00a0", "choice_1"),
    ).encode(),
    "lines.jsonl": "".join(
        json.dumps({"question": q, "choices": [f" {a}", f"{b} "]}) + "\n" for q, a, b in ROWS
    ).encode(),
}


def test_the_same_rows_have_the_same_answers_however_they_were_written(abmll: Command, tmp_path: Path) -> None:
    found = {}
    for name, data in FORMS_OF_A_TABLE.items():
        (tmp_path / name).write_bytes(data)
        code, _, err = abmll(f"predict runs/mine {name} -o out.jsonl")
        assert code == 0, (name, err)
        lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
        found[name] = [(line["prediction"], line["probabilities"]) for line in lines]
    assert all(answers == found["plain.csv"] for answers in found.values()), found


def test_labels_in_several_forms_are_one_label(abmll: Command, tmp_path: Path) -> None:
    rows = [{"text": text, "label": label} for text, label in texts(12)]
    forms = [" good", "good\u200b", "\ufeffgood", "good\u00a0"]
    lines = [{**row, "label": forms[n % 4] if row["label"] == "good" else "bad"} for n, row in enumerate(rows)]
    (tmp_path / "forms.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "spaced.csv").write_text("text, label\n" + "".join(f'{r["text"]}, "{r["label"]}"\n' for r in rows))
    (tmp_path / "numbers.jsonl").write_text(
        "".join(json.dumps({**row, "label": [1, "1", 1.0, 0][n % 4]}) + "\n" for n, row in enumerate(rows))
    )
    for name, labels in (("forms.jsonl", "bad, good"), ("spaced.csv", "bad, good"), ("numbers.jsonl", "0, 1")):
        code, out, err = abmll(f"adapt runs/mine {name} --save {name[:3]} --no-check")
        assert code == 0, err
        assert f"labels: {labels})" in out


def test_labels_that_look_alike_are_remarked(abmll: Command, tmp_path: Path) -> None:
    rows = [[text, ["Gооd", "Good", "bad"][n % 3]] for n, (text, _) in enumerate(texts(12))]
    write_csv(tmp_path / "alike.csv", ["text", "label"], rows)
    code, _, err = abmll("adapt runs/mine alike.csv --save alike --no-check")
    assert code == 0
    assert "'Good' and 'Gооd' are two labels, and look alike" in err
    own = [{"question": f"q{n}", "choices": ["Yes", "yes", "no"], "answer": n % 3} for n in range(12)]
    write_asked(tmp_path / "own.jsonl", own)
    assert (
        "own.jsonl:1: 'Yes' and 'yes' are two choices, and look alike; so do choices of 11 more"
        in abmll("adapt runs/mine own.jsonl --save own --no-check")[2]
    )
    assert "In own 'Yes' and 'yes' are two choices, and look alike." in abmll("tasks check own.jsonl")[1]


def test_trust_46_no_header_is_a_formula_whatever_hides_its_sign(abmll: Command, tmp_path: Path) -> None:
    marks = ["\ufeff", "\u200b", "\u202e", "\u00a0", "\t", '"', "\u2066\u3000"]
    row = {f"{mark}=cmd|'/C calc'!A{n}": f"{mark}\uff1d1+1" for n, mark in enumerate(marks)}
    write_asked(tmp_path / "rows.jsonl", [{**row, "text": "hello"}])
    assert abmll("predict runs/mine rows.jsonl --task t -o out.csv")[0] == 0
    write_csv(tmp_path / "again.csv", [*row, "text"], [[*row.values(), "hello"]])
    assert abmll("predict runs/mine again.csv --task t -o again.out.csv")[0] == 0
    for name in ("out.csv", "again.out.csv"):
        (cells,) = read_csv(tmp_path / name)
        assert [key[0] for key in list(cells)[: len(marks)]] == ["'"] * len(marks)
        assert [value[0] for value in list(cells.values())[: len(marks)]] == ["'"] * len(marks)
    assert abmll("predict runs/mine out.csv --task t --prefix x_ -o twice.csv")[0] == 0
    (cells,) = read_csv(tmp_path / "twice.csv")
    assert not [key for key in cells if key.startswith("''")], "once is enough"


def test_one_fault_of_a_table_is_one_message(abmll: Command, tmp_path: Path) -> None:
    write_csv(tmp_path / "rows.csv", ["words", "n"], [[f"w{n}", n] for n in range(40)])
    for line in ("predict runs/mine rows.csv --task t -o o.csv", "adapt runs/mine rows.csv --save x --no-check"):
        code, _, err = abmll(line)
        assert code == 2
        assert "40 bad rows; nothing was loaded" in err
        assert "rows.csv:2: text is missing (found: 'words', 'n'); another column is named by --text" in err
        assert "in 39 more rows too" in err
    assert abmll("predict runs/mine rows.csv --labels a,b --text words -o o.csv")[0] == 0


def test_a_control_token_of_the_model_in_a_row_is_text(abmll: Command, tmp_path: Path) -> None:
    rows = [{"question": "Which is it?", "choices": ["sun", "sun<|eos|>", "rain"]}]
    write_asked(tmp_path / "rows.jsonl", rows)
    assert abmll("predict runs/mine rows.jsonl -o out.jsonl")[0] == 0
    (found,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    first, second, _ = found["probabilities"]
    assert first != second
