"""The summary of a comparison against numbers worked out here from the files, and what is missing or damaged."""

import copy
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss

from abmll.calibrators import calibrated, calibrator
from abmll.errors import AbmllError
from abmll.metrics.not_finite import END, NotFinite
from abmll.metrics.predictions import Prediction, Predictions, read_predictions
from abmll.report.evidence import question_values
from abmll.report.results import collect, summarise
from abmll.report.tables import difference_table, score_table
from abmll.report.words import advice, definitions, difference_note, footnotes, lede
from tests.report_folder import FIXED, SYSTEMS, TASKS, make_folder


def unsealed(text: str) -> str:
    """A predictions file without its SHA-256, as an edit that means it would leave it."""
    return re.sub(r', "sha256": "[0-9a-f]{64}"', "", text, count=1)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("report") / "toy")


@pytest.fixture(scope="module")
def summary(original):
    return summarise(collect(original))


@pytest.fixture(scope="module")
def one_seed(tmp_path_factory):
    return summarise(collect(make_folder(tmp_path_factory.mktemp("one") / "seed", seeds=1, checkpoints=(360,))))


@pytest.fixture
def small(tmp_path):
    """Two systems, one seed, two draws: enough to damage."""
    return make_folder(tmp_path / "small", systems=("lora", "abmll"), seeds=1, questions=8, checkpoints=(360,))


@pytest.fixture
def folder(original, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(original, tmp_path / "toy"))


def _file(folder, system="abmll", seed=0, draw=0, task=0, checkpoint="examples-00000360"):
    return folder / system / f"seed-{seed}" / "predictions" / checkpoint / f"draw-{draw}" / f"task{task}.jsonl"


def _rows(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    return [row for row in rows if row["split"] == "test"]


def _plain_scores(rows):
    """Accuracy, NLL, Brier and ECE, written the long way round."""
    width = max(len(row["probabilities"]) for row in rows)
    padded = np.array([row["probabilities"] + [0.0] * (width - len(row["probabilities"])) for row in rows])
    answers = [row["answer"] for row in rows]
    right = padded.argmax(axis=1) == answers
    ece = 0.0
    for low in range(15):
        inside = (padded.max(axis=1) > low / 15) & (padded.max(axis=1) <= (low + 1) / 15)
        if inside.any():
            ece += inside.mean() * abs(right[inside].mean() - padded.max(axis=1)[inside].mean())
    return {
        "accuracy": accuracy_score(answers, padded.argmax(axis=1)),
        "nll": log_loss(answers, padded, labels=range(width)),
        "brier": float(np.mean(np.sum((padded - np.eye(width)[answers]) ** 2, axis=1))),
        "ece": ece,
    }


def _plain_by_seed(folder, system, checkpoint="examples-00000360"):
    if system == "pretrained" and checkpoint != "before-adaptation":
        checkpoint = "examples-00000000"
    out = []
    for seed in range(2):
        cells = [(draw, task) for draw in range(2) for task in range(len(TASKS))]
        scores = [_plain_scores(_rows(_file(folder, system, seed, d, t, checkpoint))) for d, t in cells]
        out.append({metric: np.mean([score[metric] for score in scores]) for metric in scores[0]})
    return out


@pytest.mark.parametrize("system", SYSTEMS)
def test_means_and_errors_are_those_of_the_files(original, summary, system):
    entry, seeds = summary["systems"][system], _plain_by_seed(original, system)
    for metric in ("accuracy", "nll", "brier", "ece"):
        values = [seed[metric] for seed in seeds]
        assert entry[metric] == pytest.approx(np.mean(values), abs=1e-9)
        assert entry[f"{metric}_standard_error"] == pytest.approx(abs(values[0] - values[1]) / 2, abs=1e-9)
        low, high = entry[f"{metric}_interval"]
        assert low < entry[metric] < high
    assert (entry["n"], entry["n_tasks"], entry["n_seeds"], entry["n_draws"]) == (120, 3, 2, 2)


def test_interval_has_the_width_of_the_normal_one(original, summary):
    variance = 0.0
    for task in range(len(TASKS)):
        runs = [_rows(_file(original, "lora", seed, draw, task)) for seed in range(2) for draw in range(2)]
        nll = np.array([[-np.log(row["probabilities"][row["answer"]]) for row in rows] for rows in runs])
        variance += nll.mean(axis=0).var() / nll.shape[1] / len(TASKS) ** 2
    low, high = summary["systems"]["lora"]["nll_interval"]
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(variance), rel=0.1)


def test_the_primary_score_is_at_the_posterior_of_the_held_out_rows(original, summary):
    entry = summary["systems"]["abmll"]
    files = [read_predictions(_file(original, "abmll", s, d, t)) for s, d, t in np.ndindex(2, 2, len(TASKS))]
    made = [calibrated(found, calibrator("posterior_temperature")) for found in files]
    nll = [np.mean([-np.log(row.probabilities[row.answer]) for row in one.rows]) for one in made]
    assert entry["nll_posterior"] == pytest.approx(np.mean(nll), abs=1e-9)
    assert entry["nll_posterior_interval"][0] < entry["nll_posterior"] < entry["nll_posterior_interval"][1]
    assert entry["before_adaptation"]["nll_posterior"] is not None  # none of the examples was learned by then
    assert summary["primary"] == "nll_posterior"
    guess = summary["systems"]["uniform"]
    assert guess["nll_posterior"] == pytest.approx(guess["nll"], abs=1e-9)
    assert entry["nll_posterior_over_uniform"] == pytest.approx(guess["nll"] - entry["nll_posterior"], abs=1e-9)


def test_without_held_out_rows_tables_fall_back_and_say_how_to_get_it(tmp_path):
    summary = summarise(collect(make_folder(tmp_path, systems=("lora", "abmll"), questions=9, held_out=False)))
    assert summary["primary"] == "nll"
    assert summary["systems"]["abmll"]["nll_posterior"] is None
    assert summary["systems"]["abmll"]["nll_posterior_interval"] is None
    assert "nll_posterior" not in summary["systems"]["abmll"]["against_reference"]
    assert summary["systems"]["abmll"]["nll_scaled"] is not None  # the key stays
    assert [title for title in score_table(summary).header if "NLL" in title or "ECE" in title] == ["NLL", "ECE"]
    assert [title for title in difference_table(summary).header if "NLL" in title] == ["NLL, nats"]
    assert any("adaptation.folds=5" in line for line in footnotes(summary))
    assert any(line.startswith("Lowest negative log-likelihood: ") for line in lede(summary))


def test_the_ece_of_the_raw_letter_stands_beside_the_other_where_there_are_letters(summary):
    """By it the paper's numbers are compared; answers by `cloze` have none, and no column of dashes."""
    assert "ECE letter" not in score_table(summary).header
    letters = copy.deepcopy(summary)
    for entry in letters["systems"].values():
        if entry["kind"] == "system":
            entry |= {"ece_vocabulary": 0.25, "ece_vocabulary_standard_error": None}
    table = score_table(letters)
    column = table.header.index("ECE letter")
    assert table.header[column - 1] == "ECE"
    assert {row[0]: row[column] for row in table.rows}.items() >= {"abmll": "0.250", "uniform": "-"}.items()
    assert any(line.startswith("ECE letter: ") for line in footnotes(letters))
    assert "ECE letter" in dict(definitions(letters))


def test_the_posterior_is_first_after_accuracy_and_the_plain_nll_beside_it(summary):
    header = score_table(summary).header
    assert header[:6] == ("System", "Accuracy %", "95 %", "NLL posterior", "Gain", "NLL")
    assert difference_table(summary).header[::2] == ("System", "p", "p", "p")
    assert difference_table(summary).header[1::2] == ("Accuracy, points", "NLL posterior, nats", "NLL, nats")
    row = next(row for row in score_table(summary).rows if row[0] == "abmll")
    assert row[3].startswith(f"{summary['systems']['abmll']['nll_posterior']:.3f} ± ")
    assert row[5] == f"{summary['systems']['abmll']['nll']:.3f}"
    assert any("at the posterior temperature: abmll" in line for line in lede(summary))


def test_a_system_without_held_out_rows_beside_others_is_named(tmp_path):
    folder = make_folder(tmp_path, systems=("lora", "abmll"), seeds=1, questions=9)
    for path in (folder / "abmll").rglob("*.jsonl"):
        if path.parent.parent.name == "examples-00000360":
            replace(read_predictions(path), held_out_rows=()).write(path)
    summary = summarise(collect(folder))
    assert summary["primary"] == "nll"
    assert "NLL posterior" in score_table(summary).header
    (line,) = [line for line in footnotes(summary) if line.startswith("NLL posterior")]
    assert line.endswith("so none of it: abmll.")


def test_a_guess_is_scored_by_what_it_is_expected_to_score(original, summary):
    shares = [np.mean([1 / len(r["probabilities"]) for r in _rows(_file(original, task=t))]) for t in range(3)]
    assert summary["systems"]["uniform"]["accuracy"] == pytest.approx(np.mean(shares), abs=1e-12)
    assert summary["systems"]["uniform"]["ece"] == pytest.approx(0, abs=1e-12)
    assert summary["tasks"]["boolean"]["uniform"]["auroc"] == pytest.approx(0.5)


def test_baselines(original, summary):
    uniform, frequency = summary["systems"]["uniform"], summary["systems"]["label_frequency"]
    logs = [np.mean([np.log(len(r["probabilities"])) for r in _rows(_file(original, task=t))]) for t in range(3)]
    assert uniform["nll"] == pytest.approx(np.mean(logs))
    assert uniform["nll_over_uniform"] == pytest.approx(0)
    assert summary["systems"]["abmll"]["nll_over_uniform"] == pytest.approx(
        uniform["nll"] - summary["systems"]["abmll"]["nll"]
    )
    expected = []
    for seed, draw, task in np.ndindex(2, 2, len(FIXED)):
        path = _file(original, "lora", seed, draw, task)
        counts = np.array(json.loads(path.read_text().splitlines()[0])["label_counts"]) + 1
        expected.append(np.mean([-np.log(counts[row["answer"]] / counts.sum()) for row in _rows(path)]))
    assert frequency["nll"] == pytest.approx(np.mean(expected))
    assert (frequency["n_tasks"], frequency["n"]) == (2, 80)
    assert {uniform["kind"], frequency["kind"]} == {"baseline"}
    assert uniform["nll_standard_error"] is None
    assert "label_frequency" not in summary["tasks"]["science"]


def test_paired_tests_agree_with_the_table(summary):
    systems = summary["systems"]
    assert systems["lora"]["against_reference"] is None
    for metric in ("accuracy", "nll_posterior", "nll", "nll_scaled"):
        tests = {name: systems[name]["against_reference"][metric] for name in ("pretrained", "abmll", "abmll_mean")}
        for name, test in tests.items():
            assert test["difference"] == pytest.approx(systems[name][metric] - systems["lora"][metric], abs=1e-9)
            assert test["interval"][0] < test["difference"] < test["interval"][1]
            assert test["p"] <= test["p_holm"] <= 1
            assert (test["n"], test["seeds"], test["draws"]) == (120, 2, 2)
        smallest = min(tests.values(), key=lambda test: test["p"])
        assert smallest["p_holm"] == pytest.approx(min(1, 3 * smallest["p"]))


def test_curve_before_adaptation_cost_and_environment(original, summary):
    points = summary["curve"]["abmll"]
    assert [point["examples_consumed"] for point in points] == [120, 360]
    assert [point["examples_consumed"] for point in summary["curve"]["pretrained"]] == [0]
    early = _plain_by_seed(original, "abmll", "examples-00000120")
    assert points[0]["ece"] == pytest.approx(np.mean([seed["ece"] for seed in early]))
    assert points[1]["accuracy"] == summary["systems"]["abmll"]["accuracy"]
    before = _plain_by_seed(original, "abmll", "before-adaptation")
    entry = summary["systems"]["abmll"]
    assert entry["before_adaptation"]["nll"] == pytest.approx(np.mean([seed["nll"] for seed in before]))
    assert entry["cost"]["train_seconds"] == pytest.approx(36.5)
    assert entry["cost"]["peak_memory_bytes"] == 1_500_000_001
    assert summary["systems"]["abmll_mean"]["cost"] is None
    assert summary["environment"]["commit"] == "abc1234"


def test_reliability_and_risk(summary):
    bins = summary["reliability"]["abmll"]
    assert sum(bins["count"]) == 120 * 2 * 2
    full = [i for i, count in enumerate(bins["count"]) if count]
    assert all(bins["edges"][i] < bins["mean_confidence"][i] <= bins["edges"][i + 1] for i in full)
    risk = summary["risk_coverage"]["abmll"]
    assert risk["coverage"][-1] == 1
    assert risk["risk"][-1] == pytest.approx(1 - summary["systems"]["abmll"]["accuracy"])


def test_summary_is_json_and_says_what_was_asked(summary):
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert (summary["name"], summary["reference"], summary["missing"]) == ("toy", "lora", [])
    assert set(summary["tasks"]) == set(TASKS)


def test_one_seed_has_no_standard_error(tmp_path):
    found = summarise(collect(make_folder(tmp_path, seeds=1, draws=1, questions=20, systems=("lora", "abmll"))))
    entry = found["systems"]["abmll"]
    assert entry["accuracy_standard_error"] is None
    assert entry["against_reference"]["nll"]["levels"] == ["questions"]


def test_what_is_missing_is_said_and_not_averaged(folder):
    shutil.rmtree(folder / "pretrained")
    shutil.rmtree(folder / "lora" / "seed-1" / "predictions" / "examples-00000360")
    _file(folder, "abmll", 1, 1, 2).unlink()
    (folder / "abmll_mean" / "seed-0" / "journal.jsonl").write_text('{"event": "step"}\n{"event": "st')
    found = summarise(collect(folder))
    assert found["missing"] == [
        "pretrained seed 0: no predictions yet",
        "pretrained seed 1: no predictions yet",
        "lora seed 1: stands at 120 examples where another seed reached 360; not counted",
        "abmll seed 1: 1 of 6 predictions files are missing (science draw 1); not counted",
        "abmll_mean seed 0: training has not ended; its last checkpoint so far is shown",
    ]
    assert list(found["systems"]) == ["lora", "abmll", "abmll_mean", "uniform", "label_frequency"]
    assert [found["systems"][name]["n_seeds"] for name in ("lora", "abmll", "abmll_mean")] == [1, 1, 2]
    assert found["systems"]["abmll_mean"]["against_reference"]["nll"]["seeds"] == 1


def test_nothing_to_report_is_an_error(small):
    for system in ("lora", "abmll"):
        shutil.rmtree(small / system)
    with pytest.raises(AbmllError, match=r"nothing to report.*abmll seed 0: no predictions yet"):
        summarise(collect(small))


def test_without_the_reference_there_are_no_tests(small):
    shutil.rmtree(small / "lora")
    found = summarise(collect(small))
    assert found["systems"]["abmll"]["against_reference"] is None
    assert found["systems"]["uniform"]["n"] == 24


def test_draws_that_share_no_question_have_scores_but_no_interval(small):
    path = _file(small, "abmll", 0, 1)
    path.write_text(unsealed(path.read_text()).replace('"q0-', '"other-'))
    entry = summarise(collect(small))["systems"]["abmll"]
    assert entry["nll_interval"] is None
    assert entry["against_reference"] is None
    assert 0 < entry["nll"] < 2


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("comparison.json", lambda text: text[:-20], "cannot be read"),
        ("comparison.json", lambda text: text.replace('"lora",', '"gone",', 1), "reference 'lora' is not among"),
        ("comparison.json", lambda text: text.replace('"draws": 2', '"draws": "2"'), "'draws' is '2', expected int"),
        ("abmll/seed-0/cost.json", lambda text: "[1]", "expected an object, found list"),
        ("abmll/seed-0/journal.jsonl", lambda text: "?" + text, "journal.jsonl:1"),
        ("abmll/seed-0/predictions/examples-00000360/draw-0/task1.jsonl", lambda text: text[:-30], "not JSON"),
        (
            "abmll/seed-0/predictions/examples-00000360/draw-0/task1.jsonl",
            lambda text: unsealed(text).replace('"abmll"', '"lora"'),
            "its system is 'lora', but it lies where 'abmll' belongs",
        ),
        (
            "abmll/seed-0/predictions/examples-00000360/draw-0/task1.jsonl",
            lambda text: unsealed(text).replace("passages", "poems"),
            "task 'poems' is not in comparison.json",
        ),
        (
            "abmll/seed-0/predictions/examples-00000360/draw-0/task1.jsonl",
            lambda text: text.splitlines()[0],
            "task1.jsonl:1: .* the file was cut",
        ),
    ],
)
def test_a_damaged_file_is_named(small, name, damage, message):
    path = small / name
    path.write_text(damage(path.read_text()))
    with pytest.raises(AbmllError, match=message) as caught:
        collect(small)
    assert str(path) in str(caught.value) or str(path.parent.parent) in str(caught.value)


def test_predictions_of_no_question_are_named(small):
    path = _file(small)
    replace(read_predictions(path), rows=()).write(path)
    with pytest.raises(AbmllError, match=r"examples-00000360, draw 0, task 'boolean': no questions to score"):
        collect(small)


def test_a_folder_that_is_no_comparison(tmp_path):
    with pytest.raises(AbmllError, match=r"not found; is .* the folder of a comparison"):
        collect(tmp_path)


def test_the_held_out_score_goes_by_the_temperature_of_the_held_out_rows():
    """At T = 2, (0.9, 0.1) is (0.75, 0.25); what was learned by heart asks for the lowest temperature there is."""
    rows = (Prediction("a", 0, (0.9, 0.1)), Prediction("b", 1, (0.9, 0.1)))
    held = tuple(Prediction(str(i), int(i == 3), (0.9, 0.1)) for i in range(4))  # right 3 times in 4
    learned = (Prediction("x", 0, (0.9, 0.1)),)
    found = question_values(Predictions("s", "t", 0, 0, 0, rows, learned, held_out_rows=held))
    truth = {"a": -np.log(0.75), "b": -np.log(0.25)}
    assert found["nll_scaled_cv"] == pytest.approx(truth, rel=1e-3)
    assert found["nll_scaled"]["b"] > 20
    without = question_values(Predictions("s", "t", 0, 0, 0, rows, learned))
    assert "nll_scaled_cv" not in without
    assert without["nll_scaled"] == found["nll_scaled"]


def test_one_training_seed_gives_no_p_and_no_verdict(one_seed):
    for system in ("pretrained", "abmll", "abmll_mean"):
        for metric in ("accuracy", "nll_posterior", "nll", "nll_scaled"):
            test = one_seed["systems"][system]["against_reference"][metric]
            assert (test["p"], test["p_holm"], test["measured_once"]) == (None, None, ["seeds"])
            assert test["interval"][0] < test["difference"] < test["interval"][1]
    cells = [cell for row in difference_table(one_seed).rows for cell in row]
    assert cells.count("one seed") == 9
    told = " ".join(lede(one_seed))
    assert "Accuracy: one seed, so nothing is said of which system is better." in told
    assert not re.search(r"\b(better|worse):|told apart|p <", told)
    assert "No p where there is one seed" in difference_note(one_seed)


def advised(**systems):
    """The advice on systems that are given as (gain, difference of the NLL to `pretrained`, p, seconds)."""
    entries = {
        name: {
            "kind": "system",
            "not_finite": gain is None,
            "nll": None if gain is None else 1 - gain,
            "nll_over_uniform": gain,
            "against_reference": None if name == "pretrained" else {"nll": {"difference": difference, "p_holm": p}},
            "cost": None if seconds is None else {"train_seconds": seconds, "adapt_seconds": 1.0, "device": "cpu"},
        }
        for name, (gain, difference, p, seconds) in systems.items()
    }
    entries["uniform"] = {"kind": "baseline", "not_finite": False, "against_reference": None}
    return advice({"reference": "pretrained", "primary": "nll", "systems": entries})


@pytest.mark.parametrize(
    ("systems", "said"),
    [
        ({"a": (0.3, -0.2, 0.01, 90.0), "b": (0.4, -0.3, 0.04, 99.0), "c": (0.5, -0.4, 0.2, 9.0)}, "Choose b: of the"),
        ({"a": (0.3, -0.2, 0.0, 90.0)}, "Choose a: of the"),
        ({"a": (0.3, -0.2, 0.2, 90.0), "b": (0.3, -0.2, None, 3.0)}, "do not decide.*; the cheapest is b \\(4 s\\)"),
        ({"a": (0.0, 0.2, 0.01, 0.1)}, "do not decide.*; the cheapest is pretrained \\(6 s\\)"),
        ({"a": (None, 0.0, None, 0.1)}, "the cheapest is pretrained"),
    ],
)
def test_one_line_says_what_to_choose(systems, said):
    told = advised(pretrained=(0.1, None, None, 5.0), **systems)
    assert re.search(said, told), told
    assert told.count(".") == 1


def test_nothing_is_chosen_where_nothing_is_better_than_a_guess():
    assert "Choose none of them" in advised(pretrained=(-0.1, None, None, 5.0), a=(0.0, -0.1, 0.01, 3.0))
    assert "what each costs was not recorded" in advised(pretrained=(0.1, None, None, None), a=(0.2, 0.0, 1.0, None))


def test_the_advice_is_the_last_line_of_the_verdict(one_seed):
    assert lede(one_seed)[-1] == advice(one_seed)
    assert lede(one_seed)[-1].startswith("These rows do not decide which system to choose")


def test_two_systems_that_were_not_meta_trained_are_tested_at_one_seed(tmp_path):
    """A training seed decides nothing about them. Beside a meta-trained one there is still no p."""
    systems = ("pretrained", "in_context", "abmll")
    size = {"seeds": 1, "draws": 6, "questions": 100, "checkpoints": (360,)}
    folder = make_folder(tmp_path, systems=systems, reference="pretrained", **size)
    summary = summarise(collect(folder))
    plain, trained = (summary["systems"][name]["against_reference"]["accuracy"] for name in systems[1:])
    assert (trained["p"], trained["measured_once"]) == (None, ["seeds"])
    assert plain["p"] == plain["p_holm"] < 0.05  # one test: Holm's correction does not count what is none
    assert plain["measured_once"] == []
    told = " ".join(lede(summary))
    assert "better: in_context" in told
    assert "Not tested: abmll." in told


def test_one_draw_of_examples_gives_no_p_either(tmp_path):
    summary = summarise(collect(make_folder(tmp_path, systems=("lora", "abmll"), draws=1, checkpoints=(360,))))
    test = summary["systems"]["abmll"]["against_reference"]["accuracy"]
    assert (test["p"], test["measured_once"]) == (None, ["draws"])
    assert "one draw" in {cell for row in difference_table(summary).rows for cell in row}


def test_questions_of_a_group_are_resampled_together(tmp_path):
    """Five alike know no more than one: intervals are those of a fifth of the questions, sqrt(5) as wide."""
    size = {"systems": ("lora", "abmll"), "questions": 100, "checkpoints": (360,)}
    apart = summarise(collect(make_folder(tmp_path / "a", **size)))
    grouped = summarise(collect(make_folder(tmp_path / "b", **size, group=5)))
    assert (apart["n_groups"], grouped["n_groups"]) == (300, 60)
    widths = [np.ptp(found["systems"]["lora"]["nll_interval"]) for found in (apart, grouped)]
    assert widths[1] / widths[0] == pytest.approx(np.sqrt(5), rel=0.3)
    assert grouped["systems"]["abmll"]["against_reference"]["nll"]["groups"] == 60
    assert "300 questions in 60 groups of 3 unseen tasks" in lede(grouped)[0]
    assert "interval over groups of questions" in " ".join(footnotes(grouped))
    assert "groups" not in lede(apart)[0]


def break_cells(folder, system, grouped=True):
    """Put markers in the place of a system's last predictions, as early versions did: without groups."""
    for path in (folder / system).glob("seed-*/predictions/examples-00000360/draw-*/*.jsonl"):
        asked = read_predictions(path)
        asked = asked if grouped else replace(asked, rows=tuple(replace(row, group=None) for row in asked.rows))
        NotFinite(replace(asked, adapted=True), "adapting", "overflow").write(path.with_name(f"{path.stem}{END}"))
        path.unlink()


def test_groups_are_counted_where_the_reference_is_not_finite(tmp_path):
    """By the questions of a system that is finite; and, where none is, by what its markers say."""
    options = {"systems": ("lora", "abmll"), "tasks": ("science",), "questions": 20, "group": 5}
    folder = make_folder(tmp_path / "a", **options)
    assert summarise(collect(folder))["n_groups"] == 4
    break_cells(folder, "lora", grouped=False)
    found = summarise(collect(folder))
    assert (found["n_groups"], found["systems"]["lora"]["nll"]) == (4, None)
    folder = make_folder(tmp_path / "b", **options)
    break_cells(folder, "lora")
    break_cells(folder, "abmll")
    assert summarise(collect(folder))["n_groups"] == 4


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes by name here")
@pytest.mark.parametrize("name", ["comparison.json", "lora/seed-0/cost.json", "lora/seed-0/journal.jsonl"])
def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(name, tmp_path):
    folder = make_folder(tmp_path / "a", systems=("lora",), seeds=1, questions=4)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(AbmllError, match=f"{Path(name).name}: a named pipe"):
        collect(folder)


def test_questions_that_are_all_of_one_group_have_no_interval(tmp_path):
    size = {"systems": ("lora", "abmll"), "questions": 20, "checkpoints": (360,)}
    summary = summarise(collect(make_folder(tmp_path, **size, group=20)))
    assert summary["systems"]["abmll"]["nll_interval"] is None
    assert summary["systems"]["abmll"]["against_reference"]["nll"]["measured_once"] == ["questions"]
