"""The harness of experiments/unseen, end to end on the tiny model, and its statistics where the truth is known."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml
from scipy.stats import spearmanr, ttest_1samp

from abmll.adapters.facts import AdapterFacts, BaseFacts, LayerFacts, StoredAdapter
from abmll.adapters.folder import write_adapter
from abmll.adapters.gaussian import LowRankGaussian
from abmll.config import ModelConfig, RunConfig
from abmll.errors import AbmllError
from abmll.files import append_line, write_text
from abmll.kernels import Variance
from abmll.methods import resolve_settings
from abmll.metrics.ensemble import ensemble
from abmll.metrics.predictions import Prediction, Predictions
from abmll.metrics.statistics import holm
from abmll.question import Question, Task
from abmll.runs.roles import RunTasks
from abmll.scoring.scores import score
from abmll.systems.build import load_base
from abmll.systems.plans import method_settings
from abmll.systems.system import System
from experiments.short_json import read_gzipped, short_json
from experiments.unseen.__main__ import main
from experiments.unseen.bundles import Bundles, read_bundle, unpack
from experiments.unseen.cells import BEFORE, STEP, names_in, read_cells, read_targets, write_cells
from experiments.unseen.evidence import Values, against, entry, paired
from experiments.unseen.forgetting import chunks_of, forgetting
from experiments.unseen.groups import groups_in, with_groups
from experiments.unseen.packing import Packed, read_packed, write_packed
from experiments.unseen.pool import Job, exit_code, is_made, jobs, run_jobs
from experiments.unseen.protocol import load_protocol
from experiments.unseen.questions import read_points
from experiments.unseen.rank import gains
from experiments.unseen.report import BEFORE_TESTS, difference_tables
from experiments.unseen.results import ENSEMBLE, of_tasks, read_results
from experiments.unseen.run import Renewing, failures, told_seconds
from experiments.unseen.search import Search, best, join, search, trials
from tests.tiny import save_tiny, tiny_tasks, write_tasks

HARNESS = Path(__file__).parents[2] / "experiments/unseen"
NOTHING = Path("nowhere.yaml")
SMALL = (
    *("training.iterations=1", "adaptation.steps=1", "adaptation.test_questions=4", "adaptation.samples=2"),
    *("adaptation.draws=2", "adaptation.examples=4", "adaptation.folds=2", "model.dtype=float32", "adapter.rank=2"),
    "systems.in_context.likelihood.max_tokens=300",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and tiny tasks in three roles."""
    folder = tmp_path_factory.mktemp("unseen")
    save_tiny(folder / "model")
    for number, (role, count) in enumerate((("train", 2), ("validation", 2), ("unseen", 2))):
        tasks = tiny_tasks(count, n_rows=30, n_test=8, seed=number)
        write_tasks(folder / "raw" / role, tuple(replace(t, name=f"{role}{i}") for i, t in enumerate(tasks)))
    return folder


def call(place: Path, verb: str, *more: str, tasks: str = "raw") -> int:
    overrides = [part for text in (f"model.source={place / 'model'}", *SMALL) for part in ("--set", text)]
    return main([verb, "--tasks", str(place / tasks), *overrides, *more])


@pytest.mark.parametrize("name", ["protocol.yaml", "second.yaml", "defaults.yaml", "core-1.5b.yaml"])
def test_the_real_protocols_are_valid(name: str) -> None:
    protocol = load_protocol(HARNESS / name)
    for system, seed in protocol.order:
        config = protocol.run(system, seed)
        assert method_settings(config).model_dump()
    left_out = set(protocol.config.systems) - {s for s, _ in protocol.order}
    if name == "protocol.yaml":
        assert not left_out
    if name == "second.yaml":
        assert all(n.startswith("abmll_") for n in left_out)
    search = protocol.search
    assert set(search["spaces"]) <= set(protocol.config.systems)
    for system, spaces in search["spaces"].items():
        name = protocol.config.systems[system]["method"]["name"]
        tried = trials(system, spaces, search["trials"], search["seed"])
        assert len(tried) == search["trials"]
        assert tried[0] == {}
        assert len({json.dumps(t) for t in tried}) == len(tried)
        for settings in tried:
            resolve_settings(name, given=settings)


def test_a_control_takes_what_was_chosen_for_its_parent(tmp_path: Path) -> None:
    chosen = tmp_path / "chosen.yaml"
    chosen.write_text("reptile: {inner_lr: 0.001, outer_lr: 0.7}\nabmll: {std_lr: 0.002}\n")
    protocol = load_protocol(chosen=chosen)
    rank32, adam = (protocol.run(name, 0) for name in ("reptile_rank32", "reptile_adam"))
    assert (rank32.method.settings(), rank32.adapter.rank) == ({"inner_lr": 0.001, "outer_lr": 0.7}, 32)
    assert method_settings(adam).outer_lr == 3e-4  # its own, as an AdamW rate is another thing
    assert method_settings(adam).inner_lr == 0.001
    frozen = method_settings(protocol.run("abmll_frozen", 0))
    assert (frozen.std_lr, frozen.train_stds) == (0.002, False)
    fresh = {"inner_optimizer_state": "fresh"}
    assert method_settings(protocol.run("structured", 0)) == resolve_settings("structured", given=fresh)


@pytest.mark.parametrize("name", ["protocol.yaml", "second.yaml"])
def test_structured_is_what_the_committed_results_are_of(name: str, tmp_path: Path) -> None:
    protocol = load_protocol(HARNESS / name)
    ours = [s for s in protocol.config.systems if s.startswith("structured")]
    assert len(ours) == 3
    for config in [protocol.run(system, 0) for system in ours]:
        assert method_settings(config).inner_optimizer_state == "fresh"
    trial = Search(protocol, RunTasks((), (), ()), tmp_path).config(
        "structured", {"inner_lr": 1e-3}, protocol.search["rungs"][0], seed=100
    )
    assert trial.method.settings() == {"inner_optimizer_state": "fresh", "inner_lr": 1e-3}
    default = Search(protocol, RunTasks((), (), ()), tmp_path).config(
        "structured", {}, protocol.search["rungs"][0], seed=100
    )
    assert default.method.settings() == {"inner_optimizer_state": "fresh"}, "what was chosen before is no default"


@pytest.mark.parametrize("folder", ["", "letter", "in_domain", "curve"])
def test_tables_say_whose_moments_begin_anew(folder: str) -> None:
    summary = read_gzipped(HARNESS / "results/smollm2" / folder / "summary.json.gz")
    fresh = [name for name in summary["systems"] if name.startswith("structured")]
    assert summary["fresh_moments"] == sorted(fresh) != []
    sentence = f"(`inner_optimizer_state: fresh`) in {', '.join(sorted(fresh))};"
    assert sentence in (HARNESS / "results/smollm2" / folder / "tables.md").read_text()


def test_prepare_caps_and_drops_leaks(place: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for role in ("train", "validation", "unseen"):
        tasks = tiny_tasks(1, n_rows=20, n_test=8, seed=5 + len(role))
        write_tasks(raw / role, (replace(tasks[0], name=role),))
    lines = (raw / "unseen" / "unseen.test.jsonl").read_text().splitlines()
    with (raw / "train" / "train.train.jsonl").open("a") as file:
        file.write(json.dumps({**json.loads(lines[0]), "id": "leak"}) + "\n")
        tests = (raw / "train" / "train.test.jsonl").read_text().splitlines()
        row = json.loads(tests[0])  # in other letters, which the reader lets pass
        file.write(json.dumps({**row, "question": row["question"].upper(), "id": "trained on"}) + "\n")
    assert (
        main(
            [
                "prepare",
                "--tasks",
                str(raw),
                "--out",
                str(tmp_path / "out"),
                "--set",
                "adaptation.examples=4",
                "--set",
                "adaptation.test_questions=5",
            ]
        )
        == 0
    )
    told = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert any("train.train.jsonl:21" in leak for leak in told["leaks"])
    kept = (tmp_path / "out" / "train" / "train.train.jsonl").read_text()
    assert '"leak"' not in kept
    assert len((tmp_path / "out" / "unseen" / "unseen.test.jsonl").read_text().splitlines()) <= 5
    learned, asked = (
        {json.loads(line)["question"] for line in (tmp_path / f"out/in_domain/train.{split}.jsonl").open()}
        for split in ("train", "test")
    )
    assert asked == {json.loads(line)["question"] for line in tests[1:]}, "its own tests, but for what is trained on"
    assert not learned & asked


@pytest.fixture(scope="module")
def measured(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few targets, run in one process."""
    out = tmp_path_factory.mktemp("out")
    only = (
        "abmll.seed-[01],structured.seed-[01],reptile.seed-?,in_context.seed-0,reptile_dropout.seed-0,pretrained.seed-0"
    )
    assert call(place, "run", "--out", str(out), "--packed", str(out / "none"), "--only", only, "--commit", "abc") == 0
    return out


def test_run_packs_every_target_once(place: Path, measured: Path, capsys) -> None:
    packed = measured / "packed"
    unpack(Bundles(measured).paths(), packed)
    names = {path.name for path in packed.glob("*")}
    assert {"abmll.cloze.seed-0.parquet", "reptile.cloze.seed-4.parquet", "in_context.cloze.seed-0.parquet"} <= names
    assert not list((measured / "work").glob("*/seed-*"))
    assert len(told_seconds(measured / "log.jsonl")) == len(names) == 12
    out = measured / "again"
    assert call(place, "run", "--out", str(out), "--packed", str(packed), "--only", "abmll.seed-[01]") == 0
    assert "0 targets to run, 2 done" in capsys.readouterr().out
    assert not Bundles(out).paths()


def test_packed_predictions_are_those_that_were_made(place: Path, measured: Path, tmp_path: Path) -> None:
    unpack(Bundles(measured).paths(), tmp_path)
    found = read_packed(tmp_path / "abmll.cloze.seed-1.parquet")
    assert set(found.found) == {"abmll", "abmll_mean"}
    assert {d for _, d, _ in found.found["abmll"]} == {0, 1}
    cell = next(f for (p, d, t), f in found.found["abmll"].items() if p != "before-adaptation")
    assert (len(cell.rows), len(cell.adaptation_rows), len(cell.held_out_rows)) == (4, 4, 4)
    assert found.about["commit"] == "abc"
    write_packed(found, tmp_path / "copy.parquet")
    again = read_packed(tmp_path / "copy.parquet")
    assert again.about == found.about
    for row, files in found.found.items():
        for key, one in files.items():
            for a, b in zip(one.rows, again.found[row][key].rows, strict=True):
                assert (a.id, a.answer) == (b.id, b.answer)
                assert a.probabilities == pytest.approx(b.probabilities, rel=3e-6)
    table = pyarrow.parquet.read_table(tmp_path / "copy.parquet")
    logs = [[float("nan")] * len(row) for row in table.column("log_probabilities").to_pylist()]
    column = pyarrow.array(logs, table.schema.field("log_probabilities").type)
    broken = table.set_column(table.schema.get_field_index("log_probabilities"), "log_probabilities", column)
    pyarrow.parquet.write_table(broken, tmp_path / "broken.parquet")
    with pytest.raises(AbmllError, match=r"broken\.parquet: question .* is nan, which is no prediction"):
        read_packed(tmp_path / "broken.parquet")
    (tmp_path / "copy.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(AbmllError, match="damaged"):
        read_packed(tmp_path / "copy.parquet")


def test_cells_are_the_answers_to_half_a_step(measured: Path, tmp_path: Path) -> None:
    unpack(Bundles(measured).paths(), tmp_path / "full")
    full = {(one.about["system"], one.about["seed"]): one for one in read_targets(tmp_path / "full")}
    write_cells(full.values(), tmp_path, means=("abmll",))
    assert names_in(tmp_path) == {path.name for path in (tmp_path / "full").iterdir()}
    again = read_targets(tmp_path)
    systems = {one.about["system"] for one in full.values()}
    assert {system for one in again for system in one.found} == systems | {"abmll_mean"}
    for one in again:
        whole = full[one.about["system"], one.about["seed"]]
        assert {name: one.about[name] for name in ("config", "cost", "commit")} == {
            name: whole.about[name] for name in ("config", "cost", "commit")
        }
        for system, files in one.found.items():
            assert {place != BEFORE for place, _, _ in files} == ({True, False} if system == "pretrained" else {True})
            for key, cells in files.items():
                _same_answers(cells, whole.found[system][key])
    assert {system for one in read_cells(tmp_path, ["reptile"]) for system in one.found} == {"reptile"}
    (tmp_path / "cells.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(AbmllError, match="cannot be read"):
        read_targets(tmp_path)


def test_a_report_can_be_of_some_tasks(measured: Path, tmp_path: Path) -> None:
    unpack(Bundles(measured).paths(), tmp_path)
    targets = read_targets(tmp_path)
    assert of_tasks(targets, None) == targets
    name = next(task for _, _, task in targets[0].found["abmll"])
    assert {t for one in of_tasks(targets, [name]) for files in one.found.values() for _, _, t in files} == {name}
    with pytest.raises(AbmllError, match=r"no answers to nothing"):
        of_tasks(targets, [name, "nothing"])


def test_the_cells_of_the_larger_base_give_its_scores() -> None:
    """Of both roles: the sheet of systems that were run once, and one seed of the summary of each role."""
    once = json.loads((HARNESS / "results/first_draw.json").read_text())
    for role, summary_file in (("unseen", "summary.json"), ("validation", "validation/summary.json.gz")):
        file = HARNESS / "results" / summary_file
        summary = (read_gzipped(file) if file.suffix == ".gz" else json.loads(file.read_text()))["systems"]
        for one in of_tasks(read_cells(HARNESS / "results/packed", ["abmll", "ensemble"]), once["tasks"][role]):
            system, seed = one.about["system"], one.about["seed"]
            scores = {key: score(found).to_dict() for key, found in one.found[system].items() if key[0] != BEFORE}
            mean = np.mean([found["nll_posterior"] for found in scores.values()])
            assert mean == pytest.approx(summary[system]["by_seed"][str(seed)]["nll_posterior"], abs=3e-4)
            if seed == 0:
                first = [found["nll_posterior"] for (_, draw, _), found in scores.items() if draw == 0]
                assert np.mean(first) == pytest.approx(once["systems"][system][role]["nll_posterior"], abs=3e-4)


def _same_answers(cells: Predictions, whole: Predictions) -> None:
    assert cells.label_counts == whole.label_counts
    assert cells.examples_consumed == whole.examples_consumed
    for mine, theirs in ((cells.rows, whole.rows), (cells.held_out_rows, whole.held_out_rows)):
        for a, b in zip(mine, theirs, strict=True):
            assert (a.id, a.answer) == (b.id, b.answer)
            assert np.argmax(a.probabilities) == np.argmax(b.probabilities)
            odds = [np.log(np.array(row.probabilities) / row.probabilities[0]) for row in (a, b)]
            assert odds[0] == pytest.approx(odds[1], abs=1.5 / STEP + 1e-6)


def test_the_committed_cells_give_the_committed_scores() -> None:
    """Two systems, all draws: accuracy as it was, the NLL to 3e-4.

    The NLL at the posterior temperature was computed from these cells.
    """
    summary = read_gzipped(HARNESS / "results/smollm2/in_domain/summary.json.gz")["systems"]
    for system in ("abmll", "pretrained"):
        by_task: dict[str, list[list[float]]] = {}
        for one in read_cells(HARNESS / "results/smollm2/in_domain/packed", [system]):
            for (place, _, task), cells in one.found[system].items():
                if place != BEFORE:
                    prior = summary[system]["scale_prior"]
                    scores = score(replace(cells, scale_prior=None if prior is None else tuple(prior))).to_dict()
                    metrics = ("nll", "nll_scaled_cv", "accuracy", "nll_posterior")
                    by_task.setdefault(task, []).append([scores[m] for m in metrics])
        nll, scaled, accuracy, posterior = np.mean([np.mean(rows, axis=0) for rows in by_task.values()], axis=0)
        assert nll == pytest.approx(summary[system]["nll"], abs=3e-4)
        assert scaled == pytest.approx(summary[system]["nll_scaled"], abs=3e-4)
        assert accuracy == pytest.approx(summary[system]["accuracy"], abs=1e-6)
        assert posterior == pytest.approx(summary[system]["nll_posterior"], abs=1e-5)
        assert summary[system]["scale_prior"] is None


def test_renewed_seeds_are_those_of_separate_processes(place: Path, measured: Path, tmp_path: Path) -> None:
    assert call(place, "run", "--out", str(tmp_path), "--packed", str(tmp_path / "none"), "--only", "abmll.seed-1") == 0
    for folder, bundles in ((tmp_path / "one", Bundles(tmp_path)), (tmp_path / "many", Bundles(measured))):
        unpack(bundles.paths(), folder)
    alone, together = (read_packed(tmp_path / f / "abmll.cloze.seed-1.parquet").found for f in ("one", "many"))
    assert alone == together


def test_validation_tasks_choose_the_weights_where_they_are_asked(place: Path, tmp_path: Path) -> None:
    arguments = ("--out", str(tmp_path), "--packed", str(tmp_path / "none"), "--only", "structured.seed-0")
    asked = [f"training.{text}" for text in ("iterations=3", "validate_every=1", "validate_by=nll_scaled")]
    assert call(place, "run", *arguments, *(part for text in asked for part in ("--set", text))) == 0
    unpack(Bundles(tmp_path).paths(), tmp_path)
    found = read_packed(tmp_path / "structured.cloze.seed-0.parquet")
    scores = [line["validation_nll"] for line in found.about["journal"] if "validation_nll" in line]
    assert len(scores) == 3
    assert found.about["cost"]["final_step"] == scores.index(min(scores)) + 1


def make_not_finite(monkeypatch: pytest.MonkeyPatch, concerned: Callable[[RunConfig], bool]) -> None:
    """From here on the losses of systems of some configurations are NaN."""
    get = Renewing.get

    def poisoned(self: Renewing, config: RunConfig) -> System:
        system = get(self, config)
        if concerned(config):
            nll = system.method.nll
            system.method.nll = lambda batch: nll(batch) * float("nan")
        return system

    monkeypatch.setattr(Renewing, "get", poisoned)


def test_a_target_that_is_not_finite_does_not_end_the_run(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_not_finite(monkeypatch, lambda config: config.method.name == "structured")
    arguments = ("--out", str(tmp_path), "--packed", str(tmp_path / "none"))
    only = ("--only", "structured.seed-0,reptile.seed-0")
    assert call(place, "run", *arguments, *only, "--set", "training.iterations=2") == 0
    assert Bundles(tmp_path).names() == {"reptile.cloze.seed-0.parquet"}
    assert list(failures(tmp_path / "log.jsonl")) == ["structured.cloze.seed-0.parquet"]


def test_forgetting_is_the_next_token_loss_of_transformers(place: Path, tmp_path: Path) -> None:
    only = ("--only", "structured.seed-0,pretrained.seed-0", "--set", "systems.structured.method.inner_lr=0.1")
    assert call(place, "run", "--out", str(tmp_path), "--packed", str(tmp_path / "none"), *only, "--keep") == 0
    base = load_base(ModelConfig(source=str(place / "model"), dtype="float32"))
    chunks = chunks_of(base, "the river runs to the lake and the lake to the sea " * 40, chunks=5, tokens=16)
    folders = {name: tmp_path / "work" / name / "seed-0" / "adapter" for name in ("structured", "pretrained")}
    told = forgetting(base, folders, chunks)
    losses = [float(base.model(input_ids=c[None], labels=c[None]).loss.detach()) for c in chunks]
    assert told["base"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert told["adapters"]["pretrained"]["more"] == pytest.approx(0, abs=1e-6)
    assert abs(told["adapters"]["structured"]["more"]) > 1e-3
    assert float(base.model(input_ids=chunks, labels=chunks).loss.detach()) == pytest.approx(told["base"], rel=1e-5)


def test_stds_are_those_of_the_dense_form_and_seeds_that_agree_correlate(tmp_path: Path) -> None:
    layer = LowRankGaussian(40, 30, 2, Variance("square", 0.1, 1e-6, 2.0), with_std=True)
    torch.nn.init.normal_(layer.std_b, std=0.01)
    torch.nn.init.normal_(layer.mean_b, std=0.01)
    tensors = {f"layer.{name}": p.detach() for name, p in layer.named_parameters()}
    facts = AdapterFacts(
        rank=2,
        alpha=4.0,
        std_form="square",
        std_floor=1e-6,
        layers={"layer": LayerFacts(out_features=40, in_features=30, std_init=0.1)},
        base=BaseFacts(name="none"),
    )
    for name, change in (("a", 0.0), ("b", 0.0), ("c", 1.0)):
        other = {**tensors, "layer.std_a": tensors["layer.std_a"] + change * torch.randn(2, 30)}
        write_adapter(StoredAdapter(facts, other, torch.zeros(8, 256)), tmp_path / name)
    adapters = [f"{name}={tmp_path / name}" for name in "abc"]
    assert main(["stds", *adapters, "--place", str(tmp_path)]) == 0
    told = json.loads((tmp_path / "stds.json").read_text())
    dense = layer.dense_std().detach() / 0.1
    exact = [float(q) for q in dense.flatten().quantile(torch.tensor([0.05, 0.5, 0.95]))]
    assert told["layers"]["layer"]["a"] == pytest.approx(exact, rel=1e-5)
    assert told["with_mean"]["a"] == pytest.approx(
        spearmanr(dense.flatten().numpy(), layer.dense_mean().abs().detach().flatten().numpy()).statistic, abs=1e-4
    )
    assert told["between"]["a, b"]["stds"] == pytest.approx(1)
    assert told["between"]["a, c"]["stds"] < 0.9
    assert (tmp_path / "figures/stds.png").stat().st_size > 1000


def test_a_run_stops_by_itself_and_goes_on(place: Path, tmp_path: Path) -> None:
    arguments = ("--out", str(tmp_path), "--packed", str(tmp_path / "none"), "--only", "fomaml.seed-0")
    assert call(place, "run", *arguments, "--minutes", "0") == 75
    assert not Bundles(tmp_path).paths()
    assert call(place, "run", *arguments) == 0
    assert Bundles(tmp_path).names() == {"fomaml.cloze.seed-0.parquet"}


def test_search_gives_every_system_the_same_and_goes_on(place: Path, tmp_path: Path) -> None:
    protocol = yaml.safe_load((Path(__file__).parents[2] / "experiments/unseen/protocol.yaml").read_text())
    protocol["search"] |= {"trials": 3}
    protocol["search"]["rungs"] = [
        {"iterations": 1, "draws": 1, "test_questions": 4, "keep": 2},
        {"iterations": 2, "draws": 1, "test_questions": 4, "keep": 1},
    ]
    file = tmp_path / "protocol.yaml"
    file.write_text(yaml.safe_dump(protocol))
    arguments = ("--protocol", str(file), "--out", str(tmp_path), "--only", "structured,reptile")
    assert call(place, "search", *arguments) == 0
    log = json.loads((tmp_path / "search.json").read_text())
    counts = {
        s: [sum(e["system"] == s and e["rung"] == r for e in log["trials"]) for r in (0, 1)]
        for s in ("structured", "reptile")
    }
    assert counts == {"structured": [3, 2], "reptile": [3, 2]}
    first = [e for e in log["trials"] if e["system"] == "reptile" and e["rung"] == 0]
    assert {e["trial"] for e in log["trials"] if e["system"] == "reptile" and e["rung"] == 1} == {
        e["trial"] for e in sorted(first, key=lambda e: e["score"])[:2]
    }
    for e in log["trials"]:
        assert set(e["tasks"]) == {"validation0", "validation1"}
        assert e["score"] == pytest.approx(np.mean(list(e["tasks"].values())))
    chosen = yaml.safe_load((tmp_path / "chosen.yaml").read_text())
    last = [e for e in log["trials"] if e["system"] == "reptile" and e["rung"] == 1]
    assert chosen["reptile"] == min(last, key=lambda e: e["score"])["settings"]
    before = (tmp_path / "search.json").read_text()
    assert call(place, "search", *arguments) == 0
    assert (tmp_path / "search.json").read_text() == before


def test_shares_of_a_search_join_to_the_whole(place: Path, tmp_path: Path) -> None:
    protocol = yaml.safe_load((Path(__file__).parents[2] / "experiments/unseen/protocol.yaml").read_text())
    rung = {"iterations": 1, "draws": 1, "test_questions": 4}
    seeded = {**rung, "keep": 1, "seeds": [100, 101]}
    protocol["search"] |= {"trials": 3, "rungs": [{**rung, "keep": 2}, seeded]}
    file = tmp_path / "protocol.yaml"
    file.write_text(yaml.safe_dump(protocol))

    def searched(name: str, *more: str, logs: Sequence[str] = (), code: int = 0) -> dict:
        out = tmp_path / name
        known = [str(tmp_path / log / "search.json") for log in logs]
        arguments = ("--protocol", str(file), "--out", str(out), "--only", "structured", *more, "--logs", *known)
        assert call(place, "search", *arguments) == code
        return json.loads((out / "search.json").read_text()) if code == 0 else {}

    def scores(log: dict) -> dict:
        return {(e["rung"], e["trial"], e["seed"]): e["score"] for e in log["trials"]}

    searched("too-early", "--part", "1:1/2", code=1)
    searched("no-such-rung", "--part", "2:1/2", code=1)
    shares = [f"share-{i}" for i in (1, 2)]
    first = [searched(name, "--part", f"0:{i}/2") for i, name in enumerate(shares, start=1)]
    assert [len(log["trials"]) for log in first] == [1, 2]
    assert {(0, i, 100) for i in range(3)} == {key for log in first for key in scores(log)}
    later = [f"later-{i}" for i in (1, 2)]
    second = [searched(name, "--part", f"1:{i}/2", logs=shares) for i, name in enumerate(later, start=1)]
    trial = [{t for rung, t, _ in scores(log) if rung == 1} for log in second]
    assert [len(one) for one in trial] == [1, 1]  # a trial each, with both seeds
    assert not trial[0] & trial[1]
    joined = searched("joined", logs=[*shares, *later])
    assert scores(joined) == scores(searched("whole"))
    assert (tmp_path / "joined/chosen.yaml").read_text() == (tmp_path / "whole/chosen.yaml").read_text()


def test_nothing_is_chosen_before_a_search_is_finished(tmp_path: Path) -> None:
    here = Path(__file__).parents[2] / "experiments/unseen"
    folder = tmp_path / "log"
    folder.mkdir()
    log = json.loads((here / "results/smollm2/search.json").read_text())
    last = next(e for e in log["trials"] if (e["system"], e["rung"]) == ("reptile", 1))
    log["trials"].remove(last)
    (folder / "search.json").write_text(json.dumps(log))
    join(load_protocol(here / "second.yaml"), [folder], tmp_path)
    chosen = yaml.safe_load((tmp_path / "chosen.yaml").read_text())
    assert set(chosen) == {"abmll", "fomaml", "lora", "pretrained", "structured"}


def test_failed_trials_never_win() -> None:
    log = [{"system": "a", "rung": 0, "trial": i, "score": s} for i, s in enumerate((None, 2.0, 1.0))]
    assert best(log, "a", 0, 3) == [2, 1]
    again = [{**log[2], "score": None}, {**log[1], "score": 0.5}]
    assert best([*log, *again], "a", 0, 3) == [1]


def test_a_search_in_which_every_trial_fails_chooses_nothing_and_says_so(tmp_path: Path) -> None:
    protocol = load_protocol()
    spaces, given = protocol.search["spaces"]["lora"], protocol.search
    about = {k: v for k, v in given["rungs"][0].items() if k != "keep"}
    about |= {"system": "lora", "rung": 0, "seed": given["seed"], "score": None, "seconds": 1}
    tried = trials("lora", spaces, given["trials"], given["seed"])
    lost = [{"trial": number, "settings": settings, **about} for number, settings in enumerate(tried)]
    (tmp_path / "log.json").write_text(json.dumps({"criterion": protocol.search["criterion"], "trials": lost}))
    files = tmp_path / "search.json", tmp_path / "chosen.yaml"
    options = {"work": tmp_path, "systems": ["lora"], "others": [tmp_path / "log.json"]}
    with pytest.raises(AbmllError, match="every trial of rung 0 failed"):
        search(protocol, None, lambda: pytest.fail("nothing is left to train"), *files, **options)
    assert not files[1].exists()


def test_trials_are_judged_by_their_mean_over_seeds() -> None:
    scores = {0: (1.0, 3.0), 1: (1.5, 1.5)}
    log = [{"system": "a", "rung": 0, "trial": t, "score": s} for t, each in scores.items() for s in each]
    assert best(log, "a", 0, 1) == [1]


def test_report_of_what_was_measured(place: Path, measured: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("experiments.unseen.evidence.REPEATS", 199)
    unpack(Bundles(measured).paths(), tmp_path / "packed")
    assert call(place, "rank", "--ranking", str(tmp_path / "ranking.json")) == 0
    ranking = json.loads((tmp_path / "ranking.json").read_text())["tasks"]
    assert [e["gain"] for e in ranking] == sorted((e["gain"] for e in ranking), reverse=True)
    ranking[0]["signal"] = True
    (tmp_path / "ranking.json").write_text(json.dumps({"tasks": ranking}))
    arguments = ["report", "--packed", str(tmp_path / "packed"), "--ranking", str(tmp_path / "ranking.json")]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    systems = summary["systems"]
    assert {"uniform", "label_frequency", ENSEMBLE, "reptile_dropout_mean", "in_context"} <= set(systems)
    for metrics in systems.values():
        assert {"accuracy", "nll", "brier", "ece_choices", "ece_vocabulary", "nll_scaled"} <= set(metrics)
        assert list(metrics)[2:4] == ["accuracy", "nll_posterior"]
    assert systems["uniform"]["nll_over_uniform"] == pytest.approx(0, abs=1e-9)
    assert systems["uniform"]["nll_scaled"] == pytest.approx(systems["uniform"]["nll"])
    assert systems["uniform"]["nll_posterior"] == pytest.approx(systems["uniform"]["nll"], abs=2e-5)
    assert summary["primary"]["outcome"].startswith("nll_posterior")
    tests = summary["against_abmll"]
    assert "abmll" not in tests
    for name, found in tests.items():
        for metric, key in (("accuracy", "accuracy"), ("nll", "nll")):
            if systems[name]["n_seeds"] == systems["abmll"]["n_seeds"] == 2:
                assert found[metric]["difference"] == pytest.approx(
                    systems[name][key] - systems["abmll"][key], abs=2e-5
                )
        test = found["nll_scaled"]
        assert (test["p"] is None) == (test["p_unadjusted"] is None) == bool(test["measured_once"])
        assert test["p"] is None or test["p"] >= test["p_unadjusted"]
        assert found["nll_scaled"]["with_signal"] is not None
    assert summary["primary"]["best_other"] in systems
    before = summary["before_adaptation_against_pretrained"]
    assert set(before) == {"reptile"}, "abmll has two seeds of five; a prompt has examples"
    found = read_results(read_targets(tmp_path / "packed", "cloze")).before
    ours, base = (
        np.mean([[-np.log(row.probabilities[row.answer]) for row in cell.rows] for cell in found[name][0].values()])
        for name in ("reptile", "pretrained")
    )
    assert before["reptile"]["nll"]["difference"] == pytest.approx(ours - base, abs=1e-6)
    assert (before["reptile"]["nll"]["seeds"], before["reptile"]["nll"]["draws"]) == (1, 1)
    tables = (tmp_path / "tables.md").read_text()
    rows = tables.split("## Before adapting")[1].splitlines()
    header = [cell.strip() for cell in rows[2].split("|")]
    assert (header[2], header[5], header[8]) == ("Accuracy", "NLL", "NLL scaled")
    cells = [cell.strip() for cell in next(row for row in rows if "| reptile" in row).split("|")]
    assert cells[5:8] == [f"{ours - base:+.3f}", "-", "-"], "one shared seed has no p"
    assert "Nats over uniform" in tables
    names = {path.name for path in (tmp_path / "figures").glob("*.png")}
    assert {"controls.png", "reliability.png", "reliability_scaled.png", "risk_coverage.png"} <= names


def test_questions_are_points_of_the_same_harness(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_not_finite(monkeypatch, lambda config: config.method.settings().get("std_init") == 0.5)
    asked = {
        "set": ["adaptation.draws=1"],
        "seed": 0,
        "questions": {
            "steps": {"systems": ["abmll", "structured"], "values": [0, 2], "set": ["adaptation.steps={}"]},
            "std_init": {"systems": ["abmll"], "values": [0.5], "set": ["systems.abmll.method.std_init={}"]},
        },
    }
    file = tmp_path / "questions.yaml"
    file.write_text(yaml.safe_dump(asked))
    arguments = ("--questions", str(file), "--out", str(tmp_path / "out"))
    assert call(place, "questions", *arguments) == 0
    chosen = ("--out", str(tmp_path / "chosen"), "--packed", str(tmp_path / "nothing"), "--only", "structured.seed-0")
    assert call(place, "run", *chosen, "--set", "adaptation.steps=2") == 0
    unpack(Bundles(tmp_path / "chosen").paths(), tmp_path / "packed")
    answered = ["answers", *arguments, "--place", str(tmp_path)]
    assert main(answered) == 0
    found = read_gzipped(tmp_path / "questions.json.gz")
    assert [e["value"] for e in found["steps"]["structured"]] == [0, 2]
    assert {"abmll", "abmll_mean", "structured", "uniform"} <= set(found["steps"])
    assert [e["value"] for e in found["steps"]["uniform"]] == [0, 2], "once, though it stands beside each system"
    assert found["std_init"]["abmll"] == [{"value": 0.5, "failed": True}]
    none, same = (one["minus_chosen"] for one in found["steps"]["structured"])
    assert (same["nll_scaled"]["difference"], same["accuracy"]["difference"]) == (0, 0), (
        "the chosen settings themselves"
    )
    read = read_results(read_targets(tmp_path / "packed"), reference="structured").final["structured"][0]
    cells = [cell for cell in read if cell[0] == 0]  # the question has one draw
    exact = np.mean([Values({"a": {0: read}}, (), 1).of("a", 0, cell)["nll_scaled_cv"].mean() for cell in cells])
    assert found["steps"]["structured"][0]["nll_scaled"] - exact == pytest.approx(
        none["nll_scaled"]["difference"], abs=2e-5
    )
    table = (tmp_path / "questions.md").read_text()
    assert "not finite" in table
    assert "uniform" not in table
    bundle = (tmp_path / "out/steps-2.structured/results-1.tar").read_bytes()
    assert call(place, "questions", *arguments, "--only", "steps-*") == 0
    assert (tmp_path / "out/steps-2.structured/results-1.tar").read_bytes() == bundle
    log = (tmp_path / "out/std_init-0.5.abmll/log.jsonl").read_text()
    assert call(place, "questions", *arguments, "--only", "std_init-*") == 0
    assert (tmp_path / "out/std_init-0.5.abmll/log.jsonl").read_text() == log, "what failed is not run again"
    assert main(["answers", "--questions", str(file), "--out", str(tmp_path / "empty"), "--place", str(tmp_path)]) == 1
    assert (tmp_path / "figures/questions.png").stat().st_size > 1000


class Ended:
    """A process that ends with a code after so many looks."""

    def __init__(self, code: int, looks: int) -> None:
        self.code, self.looks = code, looks

    def poll(self) -> int | None:
        self.looks -= 1
        return self.code if self.looks < 0 else None

    def terminate(self) -> None:
        self.ended = True


def test_jobs_wait_for_what_they_need_and_are_skipped_where_it_failed() -> None:
    todo = [Job("a", ()), Job("b", (), ("a",)), Job("c", (), ("b",)), Job("d", ()), Job("e", (), ("d",)), Job("f", ())]
    started: list[tuple[str, str]] = []
    at_once: list[int] = []

    def start(job: Job, gpu: str) -> Ended:
        started.append((job.name, gpu))
        return Ended(1 if job.name == "b" else 0, looks=len(started) % 3)

    state = run_jobs(
        todo,
        start,
        ["0", "1"],
        1,
        tell=lambda s: at_once.append(list(s.values()).count("running")),
        pause=0,
    )
    assert state == {"a": "done", "b": "exit 1", "c": "skipped", "d": "done", "e": "done", "f": "done"}
    order = [name for name, _ in started]
    assert order.index("a") < order.index("b")
    assert order.index("d") < order.index("e")
    assert started[:2] == [("a", "0"), ("d", "1")]
    assert max(at_once) == 2


def test_what_was_started_is_ended_with_the_one_that_started_it() -> None:
    process = Ended(0, looks=10**9)

    def fail(state: dict[str, str]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs([Job("a", ())], lambda job, gpu: process, [""], 1, tell=fail, pause=0)
    assert process.ended


@pytest.mark.parametrize(
    ("states", "code"),
    [
        (["done", "done"], 0),
        (["done", "exit 75", "skipped", "waiting"], 75),
        (["done", "exit 1", "skipped"], 1),
        (["exit 75", "exit -9"], 1),
    ],
)
def test_the_exit_code_says_whether_going_on_helps(states: list[str], code: int) -> None:
    assert exit_code(dict(enumerate(states))) == code


def test_no_job_begins_when_time_is_over() -> None:
    state = run_jobs([Job("a", ())], lambda job, gpu: Ended(0, 0), [""], 1, over=lambda: True, pause=0)
    assert state == {"a": "waiting"}


def test_what_an_earlier_call_made_is_not_started_again(tmp_path: Path) -> None:
    protocol = load_protocol(HARNESS / "qwen-1.5b.yaml", NOTHING)
    todo = list(jobs(protocol, (), tmp_path, ["--protocol", "p.yaml"], (), shares=2, packed=tmp_path / "packed"))

    def made() -> set[str]:
        return {job.name for job in todo if is_made(job, tmp_path)}

    assert made() == set()
    write_text(tmp_path / "search-lora" / "chosen.yaml", "# not finished\n{}\n")
    assert made() == set()
    write_text(tmp_path / "ranking.json", "{}")
    write_text(tmp_path / "search-lora" / "chosen.yaml", "lora: {inner_lr: 1.0e-3}\n")
    Bundles(tmp_path / "run-lora.seed-1").add("lora.letter.seed-1.parquet", b"")
    append_line(tmp_path / "run-maml.seed-0" / "log.jsonl", json.dumps({"target": "maml", "why": "not finite"}))
    searched = {f"search-lora-{rung}-{share}" for rung in (0, 1) for share in (1, 2)} | {"search-lora"}
    assert made() == {"rank", "run-lora.seed-1", "run-maml.seed-0", *searched}


def test_every_target_is_a_job_after_the_search_that_it_takes_its_settings_from(tmp_path: Path) -> None:
    protocol = load_protocol()
    common = ["--protocol", "p.yaml"]
    todo = list(
        jobs(protocol, read_points(), tmp_path, common, [Path("known.json")], shares=2, packed=Path("r/packed"))
    )
    by_name = {job.name: job for job in todo}
    assert {name.removeprefix("run-") for name in by_name if name.startswith("run-")} == {
        f"{system}.seed-{seed}" for system, seed in protocol.order
    }
    assert by_name["run-abmll_frozen.seed-0"].needs == ("search-abmll",)
    assert str(tmp_path / "search-abmll" / "chosen.yaml") in by_name["run-abmll_frozen.seed-0"].arguments
    assert by_name["run-abmll_paper.seed-0"].needs == ("rank",)
    assert by_name["search-lora-0-1"].needs == ("rank",)
    assert by_name["search-lora-1-1"].needs == ("rank", "search-lora-0-1", "search-lora-0-2")
    assert by_name["search-lora"].needs == ("rank", *(f"search-lora-1-{i}" for i in (1, 2, 3)))
    assert str(tmp_path / "search-lora-0-2" / "search.json") in by_name["search-lora-1-3"].arguments
    assert set(by_name["join"].needs) == {f"search-{system}" for system in protocol.search["spaces"]}
    assert {job.name for job in todo if job.needs == ("join",)} == {f"question-{point.name}" for point in read_points()}
    assert by_name["run-lora.seed-0"].arguments[-2:] == ("--packed", "r/packed")
    few = jobs(
        protocol, (), tmp_path, common, [], shares=1, packed=Path("p"), chosen=Path("c"), only="lora.*,abmll.seed-1"
    )
    assert {job.name for job in few} == {"rank", "run-abmll.seed-1", *(f"run-lora.seed-{seed}" for seed in range(5))}
    options = {"shares": 2, "packed": Path("r/packed"), "chosen": Path("found.yaml")}
    after = list(jobs(protocol, read_points(), tmp_path, common, [], **options))
    assert {job.name for job in after} == {n for n in by_name if not n.startswith("search-") and n != "join"}
    assert all(job.needs == ("rank",) and "found.yaml" in job.arguments for job in after[1:]), "there is no search"
    names = [job.name for job in todo]
    assert all(names.index(need) < names.index(job.name) for job in todo for need in job.needs)


def test_further_results_have_settings_and_a_folder_of_their_own(tmp_path: Path) -> None:
    protocol = load_protocol(HARNESS / "second.yaml")
    common, known = ["--protocol", "p.yaml"], [Path("known.json")]
    todo = jobs(protocol, (), tmp_path, common, known, shares=2, packed=Path("r/packed"), tasks=Path("clean"))
    by_name = {job.name: job for job in todo}
    letters = {name for name in by_name if name.startswith("letter-")}
    assert letters == {f"letter-{system}.seed-0" for system in dict(protocol.order)}
    job = by_name["in_domain-abmll_frozen.seed-0"]
    assert job.needs == ("search-abmll",)
    assert {"tasks.unseen.source=clean/in_domain", "r/in_domain/packed"} <= set(job.arguments)
    for asked in protocol.further.values():
        laid = load_protocol(HARNESS / "second.yaml", overrides=[text.format(tasks="clean") for text in asked["set"]])
        assert [laid.run(*target) for target in laid.selected(asked["targets"])]


def test_a_log_counts_only_for_the_settings_and_rungs_that_it_was_made_with(tmp_path: Path) -> None:
    """Trials of one protocol serve another one where nothing about them changed."""
    here = Path(__file__).parents[2] / "experiments/unseen"
    folder = tmp_path / "log"
    folder.mkdir()
    (folder / "search.json").write_text((here / "results/smollm2/search.json").read_text())
    first, second = load_protocol(), load_protocol(here / "second.yaml")
    other = replace(second, search={**second.search, "criterion": "nll_posterior"})
    join(other, [folder], tmp_path / "other")
    assert json.loads((tmp_path / "other/search.json").read_text())["trials"] == [], "judged by another score"
    join(second, [folder], tmp_path / "second")
    assert yaml.safe_load((tmp_path / "second/chosen.yaml").read_text()) == yaml.safe_load(
        (here / "results/smollm2/chosen.yaml").read_text()
    )
    join(first, [folder], tmp_path / "first")
    kept = json.loads((tmp_path / "first/search.json").read_text())["trials"]
    assert {e["rung"] for e in kept} == {0}
    assert sum(e["system"] == "reptile" for e in kept) == 12
    assert [e["trial"] for e in kept if e["system"] == "abmll"] == [0]  # the defaults: the others have another space


def made(system: str, seed: int, draw: int, task: str, p: np.ndarray) -> Predictions:
    """A file whose right answer is always the first of two, with these probabilities."""
    rows = tuple(Prediction(str(i), 0, (float(v), float(1 - v))) for i, v in enumerate(p))
    return Predictions(system, task, seed, draw, 0, rows, adaptation_rows=rows[:20])


def table_of(shift: float, rng: np.random.Generator, noise: float = 0.3, seeds: int = 5, draws: int = 5) -> dict:
    """Two systems on three tasks: shared question difficulty, effects of seed and of draw, and a true shift in NLL."""
    final: dict = {"a": {}, "b": {}}
    hard = {t: rng.gamma(4, 0.15, 60) for t in ("x", "y", "z")}
    for name, move in (("a", shift), ("b", 0.0)):
        by_seed, by_draw = rng.normal(0, 0.02, seeds), {t: rng.normal(0, 0.02, draws) for t in hard}
        for s in range(seeds):
            final[name][s] = {}
            for d in range(draws):
                for t, base in hard.items():
                    own = rng.normal(0, noise, 60)
                    nll = np.abs(base + move + by_seed[s] + by_draw[t][d] + own) + 1e-3
                    final[name][s][d, t] = made(name, s, d, t, np.exp(-nll))
    return final


def test_the_difference_and_its_p_are_those_of_hand_and_scipy() -> None:
    """Two systems without meta-training, before they adapt: questions alone scatter, so it is a paired t-test."""
    rng = np.random.default_rng(0)
    p = {t: (np.exp(-rng.gamma(4, 0.2, 300)), np.exp(-rng.gamma(4, 0.2, 300))) for t in ("x",)}
    names = ("pretrained", "in_context")
    final = {n: {0: {(0, t): made(n, 0, 0, t, p[t][i]) for t in p}} for i, n in enumerate(names)}
    values = Values(final, ("x",), 1)
    test = paired(values, *names, "nll", ("x",), adapted=False)
    nll = -np.log(p["x"][0]) + np.log(p["x"][1])
    assert test.difference == pytest.approx(nll.mean())
    assert test.p_value == pytest.approx(ttest_1samp(nll, 0).pvalue, rel=1e-6)
    assert paired(values, *names, "nll_scaled", ("x",), adapted=False).measured_once == ("draws",), "of the temperature"


def test_one_training_seed_has_no_p_and_neither_has_an_ensemble() -> None:
    final = table_of(0.0, np.random.default_rng(4), seeds=5)
    values = Values(final, ("x", "y", "z"), 5)
    assert paired(values, "a", "b", "nll", values.tasks).p_value is not None
    one = Values({name: {0: cells[0]} for name, cells in final.items()}, values.tasks, 5)
    test = paired(one, "a", "b", "nll", one.tasks)
    assert (test.p_value, test.measured_once) == (None, ("seeds",))
    shared = Values({"a": final["a"], ENSEMBLE: final["b"]}, values.tasks, 5)
    assert paired(shared, "a", ENSEMBLE, "nll", values.tasks).measured_once == ("members",)
    tests = against(one, "b", one.tasks, ("x",))
    assert tests["a"]["nll"]["p"] is None
    assert tests["a"]["nll"]["tasks_resampled"]["p"] is None
    told = {"systems": {}, "against_abmll": tests, "against_pretrained": {}, BEFORE_TESTS: {}}
    (table,) = difference_tables(told)
    assert table.rows[0][-2:] == ("one seed", "5")
    assert table.rows[0][2:4] == ("-", "-")


def test_stored_questions_of_one_passage_are_one_group(tmp_path: Path) -> None:
    stories = [Question(f"q{i}", f"{i}?", ("a", "b"), 0, f"story {i // 4}") for i in range(60)]
    about = {"system": "abmll", "seed": 0, "cost": {}, "environment": {}, "config": "", "journal": []}
    file = made("abmll", 0, 0, "x", np.full(60, 0.5))
    file = replace(file, rows=tuple(replace(row, id=f"q{row.id}") for row in file.rows))
    packed = Packed(about, {"abmll": {("examples-00000000", 0, "x"): file}})
    found = groups_in([Task("x", (), tuple(stories)), Task("y", (), tuple(stories))], [packed])
    assert set(found) == {"x"}
    assert [found["x"][f"q{i}"] for i in (0, 3, 4, 59)] == [0, 0, 1, 14]
    known = with_groups(packed, found)
    values = Values({"abmll": {0: {(0, "x"): known.found["abmll"]["examples-00000000", 0, "x"]}}}, ("x",), 1)
    assert len(set(values.groups("abmll", ("x",))["x"])) == 15
    write_packed(known, tmp_path / "x.parquet")
    assert read_packed(tmp_path / "x.parquet").found == known.found


def test_a_true_difference_is_found_and_holm_is_applied() -> None:
    rng = np.random.default_rng(3)
    final = table_of(0.15, rng)
    final["abmll"] = {
        s: {c: replace(f, system="abmll") for c, f in cells.items()} for s, cells in final.pop("b").items()
    }
    final["same"] = final["abmll"]
    tests = against(Values(final, ("x", "y", "z"), 5), "abmll", ("x", "y", "z"), ("x",))
    assert tests["a"]["nll"]["difference"] > 0.05
    assert tests["a"]["nll"]["p"] < 0.05
    assert tests["same"]["nll"]["p"] == 1.0
    raw = {n: tests[n]["nll"]["p_unadjusted"] for n in tests}
    assert {n: tests[n]["nll"]["p"] for n in tests} == holm(raw)
    assert 0 < tests["a"]["nll"]["tasks_resampled"]["p"] <= 1
    assert tests["a"]["nll"]["with_signal"]["difference"] != tests["a"]["nll"]["difference"]


def test_flattening_is_not_calibration() -> None:
    rng = np.random.default_rng(0)
    right, sure = rng.random((2, 3, 2, 400)) < np.array([0.5, 0.85])[:, None, None, None]
    places = [(seed, draw) for seed in range(3) for draw in range(2)]
    chances = {
        "flat": np.where(right, 0.51, 0.49),
        "good": np.where(sure, 0.85, 0.15),
        "uniform": np.full(sure.shape, 0.5),
    }
    final: dict = {name: {seed: {} for seed in range(3)} for name in chances}
    for name, p in chances.items():
        for seed, draw in places:
            final[name][seed][draw, "x"] = made(name, seed, draw, "x", p[seed, draw])
    values = Values(final, ("x",), 2)
    assert entry(values, "flat", {})["ece_counts"]["nll"] is False
    assert entry(values, "good", {})["ece_counts"]["nll"] is True
    one = Values({name: {0: cells[0]} for name, cells in final.items()}, ("x",), 2)
    assert entry(one, "good", {})["ece_counts"]["nll"] is None, "one seed: nothing is said"


def test_an_ensemble_is_the_mean_of_probabilities_and_beats_its_members_in_brier() -> None:
    rng = np.random.default_rng(0)
    members = [made("r", s, 0, "x", rng.beta(3, 2, 50)) for s in range(4)]
    found = ensemble(members, "e", 7)
    assert found.rows[3].probabilities == pytest.approx(np.mean([m.rows[3].probabilities for m in members], axis=0))
    assert found.rows[3].spread[0] == pytest.approx(np.std([m.rows[3].probabilities[0] for m in members]))
    brier = [float(np.mean([2 * (1 - r.probabilities[0]) ** 2 for r in m.rows])) for m in (found, *members)]
    assert brier[0] < np.mean(brier[1:])  # Jensen
    with pytest.raises(AbmllError, match="other questions"):
        ensemble([members[0], replace(members[1], rows=members[1].rows[1:])], "e")
    with pytest.raises(AbmllError, match="no ensemble"):
        ensemble([members[0], replace(members[1], task="y")], "e")


def test_gains_are_cross_fitted() -> None:
    rng = np.random.default_rng(0)
    noise = tuple(Prediction(str(i), int(rng.integers(2)), (p, 1 - p)) for i, p in enumerate(rng.random(400)))
    signal = tuple(Prediction(str(i), int(rng.random() > p), (p, 1 - p)) for i, p in enumerate(rng.random(400)))
    assert gains(noise).mean() < 0.01
    assert gains(signal).mean() > 0.1


def test_bundles_are_small_and_few(tmp_path: Path) -> None:
    bundles = Bundles(tmp_path, largest=30_000)
    for i in range(5):
        bundles.add(f"f{i}", bytes([i]) * 10_000)
    bundles.add("f1", b"again")
    assert bundles.names() == {f"f{i}" for i in range(5)}
    assert all(path.stat().st_size <= 40_000 for path in bundles.paths())
    assert len(bundles.paths()) > 1
    unpack(bundles.paths(), tmp_path / "files")
    assert (tmp_path / "files" / "f1").read_bytes() == b"again"
    bundles.paths()[0].write_bytes(b"no tar")
    with pytest.raises(AbmllError, match="cannot be read"):
        read_bundle(bundles.paths()[0])


def test_short_json_is_the_same_to_six_digits() -> None:
    value = {"a": {"b": [1 / 3, None, "x"], "c": {}}, "rows": [{"d": 2e-7}, {"d": True}], "n": 5}
    assert json.loads(short_json(value)) == {
        "a": {"b": [0.333333, None, "x"], "c": {}},
        "rows": [{"d": 2e-7}, {"d": True}],
        "n": 5,
    }


def test_results_want_the_reference(tmp_path: Path) -> None:
    about = {"system": "lora", "seed": 0, "cost": {}, "environment": {}, "config": "", "journal": []}
    found = {"lora": {("examples-00000000", 0, "x"): made("lora", 0, 0, "x", np.array([0.5]))}}
    write_packed(Packed(about, found), tmp_path / "lora.cloze.seed-0.parquet")
    with pytest.raises(AbmllError, match="abmll"):
        read_results(read_targets(tmp_path))
