"""A run as a model of lm-evaluation-harness, against the harness's own scores of the same weights."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from abmll.errors import AbmllError, NonFiniteError
from abmll.everyday.saved import read_posterior, save_posterior
from abmll.everyday.session import open_run
from abmll.exporting import export_merged
from abmll.files import write_text
from abmll.systems import build
from abmll.systems.plans import adaptation_plan
from abmll.systems.predict import adapt
from tests.poison import poisoned_load
from tests.runs import UNSEEN, config_in, train_run
from tests.tiny import Kind, save_tiny, tiny_tasks, write_tasks

lm_eval = pytest.importorskip("lm_eval", reason="needs pip install lm_eval, 160 MB")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from abmll import lm_eval as ours  # noqa: E402
from abmll.lm_eval import AbmllLM  # noqa: E402

ROOT = Path(__file__).parents[2]
DRAWS = 3
CLOSE = 3e-4
"""Log-likelihoods of several tokens, in float32: about 1e-5 is seen."""
PAIRS = (  # no context; a space that the harness moves over the seam; one token; several; a shared context
    ("", "The sun is over the river."),
    ("Question: is it rain or snow? Answer: ", "snow"),
    ("Choices: A, B, C. The right answer is", " B"),
    ("Choices: A, B, C. The right answer is", " C"),
    ("Choices: A, B, C. The right answer is", " mountain bread, ünknown"),
)
TEXTS = ("The horse walked past the window.", "sun moon rain snow " * 40)


def place(folder: Path, kind: Kind) -> Path:
    """A model, tasks, and the runs `untrained` and `trained`, this one with a saved task."""
    save_tiny(folder / "model", kind)
    write_tasks(folder / "train", tiny_tasks(3, n_rows=16))
    for name, method in (("untrained", "pretrained"), ("trained", "abmll"), ("reptile", "reptile")):
        config = config_in(folder, method)
        write_text(folder / name / "config.yaml", config.to_yaml())
        system = train_run(config, folder / name)
        if name == "trained":
            adapt(system.method, system.batcher, UNSEEN, adaptation_plan(config), 0)
            save_posterior(folder / name, "mine", config, system)
    return folder


@pytest.fixture(scope="module", params=get_args(Kind))
def either(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return place(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return place(tmp_path_factory.mktemp("runs"), "bpe")


def theirs(folder: Path, **arguments: Any) -> HFLM:
    """The harness's own model of a folder."""
    return HFLM(str(folder), device="cpu", dtype="float32", **arguments)


def instances(arguments: Sequence[tuple[str, ...]], kind: str = "loglikelihood") -> list[Instance]:
    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


def evaluated(model: Any, folder: Path) -> tuple[np.ndarray, dict[str, float]]:
    """The harness's evaluation of a local task: every choice's log-likelihood, and the scores."""
    nouns, letters = tiny_tasks(3, n_rows=0, n_test=12, seed=3)[2].test, tiny_tasks(2, n_rows=0, n_test=12)[1].test
    rows = [{"question": q.question, "choices": q.choices, "answer": q.answer} for q in nouns]
    rows += [{"question": f"{q.question}: A or B?", "choices": ["A", "B"], "answer": q.answer} for q in letters]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {
        "task": "local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": name} for name in ("acc", "acc_norm")],
    }
    loaded = TaskManager(include_defaults=False).load([task])
    found = lm_eval.evaluate(lm=model, task_dict=loaded, bootstrap_iters=0)
    values = [float(value) for row in found["samples"]["local"] for ((value, _),) in row["resps"]]
    assert len(values) == 12 * 4 + 12 * 2
    return np.array(values), {name: found["results"]["local"][f"{name},none"] for name in ("acc", "acc_norm")}


def assert_same(one: Any, other: Any, tolerance: float = CLOSE) -> None:
    """Log-likelihoods and greedy flags of the pairs, and log-likelihoods of the texts."""
    mine, yours = one.loglikelihood(instances(PAIRS)), other.loglikelihood(instances(PAIRS))
    np.testing.assert_allclose([v for v, _ in mine], [v for v, _ in yours], rtol=0, atol=tolerance)
    assert [flag for _, flag in mine] == [flag for _, flag in yours]
    rolling = [model.loglikelihood_rolling(instances([(t,) for t in TEXTS])) for model in (one, other)]
    np.testing.assert_allclose(*rolling, rtol=1e-5)


def test_an_untrained_run_has_the_harness_s_own_scores(either: Path, tmp_path: Path) -> None:
    one, other = AbmllLM(either / "untrained", batch_size=4), theirs(either / "model", batch_size=1)
    (mine, scores), (yours, wanted) = evaluated(one, tmp_path), evaluated(other, tmp_path)
    np.testing.assert_allclose(mine, yours, rtol=0, atol=CLOSE)
    assert scores == wanted
    assert_same(one, other)


@pytest.mark.parametrize("task", [None, "mine"])
def test_mean_weights_have_the_harness_s_scores_of_stock_peft(either: Path, task: str | None, tmp_path: Path) -> None:
    adapter = either / "trained" / ("adapter" if task is None else "tasks/mine")
    one, plain = AbmllLM(either / "trained", task), theirs(either / "model")
    # not by the argument peft=, with which the harness cuts the vocabulary of the model to the tokenizer's length
    lora = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(either / "model"), adapter)
    other = HFLM(lora, tokenizer=plain.tokenizer)
    (mine, scores), (yours, wanted) = evaluated(one, tmp_path), evaluated(other, tmp_path)
    np.testing.assert_allclose(mine, yours, rtol=0, atol=CLOSE)
    assert scores == wanted
    assert np.abs(mine - evaluated(plain, tmp_path)[0]).max() > 1e-2
    assert_same(one, other)


@pytest.fixture(scope="module")
def merged(bpe: Path) -> list[HFLM]:
    """The harness's own models of the first draws, which `abmll export --merge --draw` writes."""
    for draw in range(DRAWS):
        session = open_run(bpe / "trained", saved=read_posterior(bpe / "trained", "mine"))
        export_merged(session.system, bpe / f"draw-{draw}", draw=draw)
    return [theirs(bpe / f"draw-{draw}", batch_size=3) for draw in range(DRAWS)]


def mean_of(draws: torch.Tensor) -> torch.Tensor:
    """The logarithm of averaged probabilities, by torch."""
    return draws.logsumexp(0) - np.log(len(draws))


def test_draws_average_the_probabilities_of_merged_draws(bpe: Path, merged: list[HFLM], tmp_path: Path) -> None:
    found = torch.tensor(np.array([evaluated(model, tmp_path)[0] for model in merged]))
    wanted = mean_of(found)
    for batch_size in (1, 64):
        one = AbmllLM(bpe / "trained", "mine", DRAWS, batch_size=batch_size)
        np.testing.assert_allclose(evaluated(one, tmp_path)[0], wanted, rtol=0, atol=CLOSE)
    assert float((found.mean(0) - wanted).abs().max()) > 1e-3, "the draws differ too little to tell means apart"


def test_scores_by_draws_are_those_of_the_mixture(bpe: Path, merged: list[HFLM]) -> None:
    one = AbmllLM(bpe / "trained", "mine", DRAWS)
    texts = instances([(text,) for text in TEXTS])
    whole = torch.tensor([model.loglikelihood_rolling(texts) for model in merged], dtype=torch.float64)
    np.testing.assert_allclose(one.loglikelihood_rolling(texts), mean_of(whole), rtol=1e-5)

    context = "Choices: A, B, C. The right answer is"
    starts = instances([(context, token) for token in one.tokenizer.get_vocab() if token.startswith("Ġ")])
    flags = [[flag for _, flag in model.loglikelihood(starts)] for model in merged]
    assert [flag for _, flag in one.loglikelihood(starts)] == [all(each) for each in zip(*flags, strict=True)]


def test_a_long_text_is_one_sequence_of_one_draw(bpe: Path, merged: list[HFLM]) -> None:
    """Windows of 32 tokens; were each window's mean taken, the sum would be another one."""
    text = instances([(TEXTS[1],)])
    one = AbmllLM(bpe / "trained", "mine", DRAWS, max_length=32)
    for model in merged:
        model._max_length = 32
    try:
        whole = torch.tensor([model.loglikelihood_rolling(text)[0] for model in merged], dtype=torch.float64)
    finally:
        for model in merged:
            model._max_length = None
    assert one.loglikelihood_rolling(text)[0] == pytest.approx(float(mean_of(whole)), rel=1e-5)
    assert float(whole.max() - whole.min()) > 0.1


def test_log_mean_exp() -> None:
    values = np.random.default_rng(0).normal(-800.0, 30.0, (5, 7))  # exp of these is 0 in float64
    np.testing.assert_allclose(ours.log_mean_exp(values), mean_of(torch.tensor(values)), rtol=1e-12)
    assert ours.log_mean_exp(np.array([[-np.inf, -1.0]])).tolist() == [-np.inf, -1.0]


def test_single_draws_are_not_cached_and_the_results_say_what_was_run(bpe: Path, tmp_path: Path) -> None:
    one = AbmllLM(bpe / "trained", "mine", DRAWS)
    cached = lm_eval.api.model.CachingLM(one, str(tmp_path / "cache.db"))
    found = one.loglikelihood(instances(PAIRS))
    assert not list(cached.dbdict.values())
    assert cached.loglikelihood(instances(PAIRS)) == found
    assert sorted(cached.dbdict.values()) == sorted(found)
    told = one.get_model_info()
    assert (told["task"], told["samples"]) == ("mine", DRAWS)
    assert Path(told["run"]).name == "trained"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"run": "nowhere"}, "no run directory"),
        ({"task": "mien"}, "Did you mean 'mine'"),
        ({"samples": 0}, "from 1 on"),
        ({"samples": 2.5}, "from 1 on"),
        ({"sample": 3}, "Did you mean 'samples'"),
        ({"peft": "lora"}, "unknown argument of the lm-eval model abmll 'peft'"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"settings": "model.dtype=float3"}, "float32"),
    ],
)
def test_mistakes_are_told(bpe: Path, arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(AbmllError, match=told):
        AbmllLM(**{"run": bpe / "trained", **arguments})


def test_without_stds_there_is_nothing_to_draw(bpe: Path) -> None:
    with pytest.raises(AbmllError, match="holds no stds"):
        AbmllLM(bpe / "reptile", samples=2)
    assert AbmllLM(bpe / "reptile").draws == 0


def test_names_of_control_tokens_in_a_task_are_text(bpe: Path) -> None:
    one = AbmllLM(bpe / "untrained")
    tokenizer, context = one.tokenizer, "Is it <|eos|> or"
    whole = [tokenizer(context + end, split_special_tokens=True)["input_ids"] for end in (" sun", " sun<|eos|>")]
    start = len(tokenizer(context, split_special_tokens=True)["input_ids"])
    wanted = []
    for ids in whole:
        assert tokenizer.eos_token_id not in ids
        with torch.no_grad():
            logs = one.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        wanted.append(float(sum(logs[n - 1, ids[n]] for n in range(start, len(ids)))))
    pairs = instances([(context, " sun"), (context, " sun<|eos|>")])
    assert [value for value, _ in one.loglikelihood(pairs)] == pytest.approx(wanted, abs=1e-4)
    assert wanted[0] != pytest.approx(wanted[1], abs=1e-2)


def test_a_task_s_text_does_not_close_the_user_s_turn_of_a_chat(bpe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = AbmllLM(bpe / "untrained")
    template = "<|bos|>{{ messages[0]['content'] }}<|eos|>{% if add_generation_prompt %} Answer:{% endif %}"
    monkeypatch.setattr(one.tokenizer, "chat_template", template)
    asked = [one.apply_chat_template([{"role": "user", "content": text}]) for text in ("the sun", "the<|eos|> sun")]
    (plain,), (hostile,) = (one._marked(instances([(text, " A<|eos|>")]))[0].args[:1] for text in asked)
    bos, eos = one.tokenizer.bos_token_id, one.tokenizer.eos_token_id
    assert one.tok_encode(plain) == one.tokenizer.encode("<|bos|>the sun<|eos|> Answer:")
    for text in (plain, hostile):
        context, answer = one._encode_pair(text, one._control.mark(" A<|eos|>"))
        assert [context.count(eos), context.count(bos), answer.count(eos)] == [1, 1, 0]
        assert one.tokenizer.decode(answer) == " A<|eos|>"
    assert "the<|eos|> sun" in one.tokenizer.decode(one.tok_encode(hostile))


def test_nothing_is_generated(bpe: Path) -> None:
    with pytest.raises(AbmllError, match="does not generate text"):
        AbmllLM(bpe / "trained").generate_until(instances([("Question:", {})], "generate_until"))


def test_the_command_line_knows_the_model(bpe: Path, tmp_path: Path) -> None:
    write_text(tmp_path / "rows.jsonl", '{"question": "sun or rain?", "answer": 0}\n' * 3)
    write_text(
        tmp_path / "local.yaml",
        "task: local\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: rows.jsonl\ntest_split: test\n"
        'output_type: multiple_choice\ndoc_to_text: "{{question}} Answer:"\ndoc_to_choice: [sun, rain]\n'
        "doc_to_target: answer\nmetric_list:\n  - metric: acc\n",
    )
    line = [sys.executable, "-m", "abmll.lm_eval", "run", "--model", "abmll", "--tasks", "local.yaml"]
    line += ["--model_args", f"run={bpe / 'trained'},samples=2", "--device", "cpu", "--output_path", "out"]
    paths = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = {"HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": paths}
    done = subprocess.run(
        line, cwd=tmp_path, env={**os.environ, **settings}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (written,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(written.read_text(encoding="utf-8"))
    assert found["config"]["samples"] == 2
    assert found["results"]["local"]["acc,none"] in (0.0, 1.0)


def test_mistakes_on_the_command_line_are_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ours, "cli_evaluate", lambda: AbmllLM("nowhere"))
    with pytest.raises(SystemExit, match="2"):
        ours.main()
    assert capsys.readouterr().err.startswith("error: nowhere: no run directory")


def test_a_generating_task_is_one_message_too(
    bpe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = instances([("Question:", {})], "generate_until")
    monkeypatch.setattr(ours, "cli_evaluate", lambda: AbmllLM(bpe / "trained").generate_until(asked))
    with pytest.raises(SystemExit, match="2"):
        ours.main()
    assert "it does not generate text" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("samples", [None, DRAWS])
def test_trust_19_a_log_likelihood_that_is_not_finite_is_no_score(
    samples: int | None, bpe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of three documents is poison: it is named, and no cache ever gives it out."""
    monkeypatch.setattr(build, "load_model", poisoned_load)
    one = AbmllLM(bpe / "trained", task="mine", samples=samples, batch_size=1)
    asked = [
        Instance("loglikelihood", {}, (f"is it {sign}?", "snow"), n, ("mine", n, 1)) for n, sign in enumerate("a~b")
    ]
    with pytest.raises(NonFiniteError, match=r"mine document 1: the log-likelihood is NaN .*computed in float32"):
        one.loglikelihood(asked)
    with pytest.raises(NonFiniteError, match="mine document 1: the log-likelihood"):
        one.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("it ~ rains",), 0, ("mine", 1, 1))])
    cached = lm_eval.api.model.CachingLM(one, str(tmp_path / "cache.db"))
    with pytest.raises(NonFiniteError):
        cached.loglikelihood(asked)
    assert all(np.isfinite(value) for value, _ in cached.dbdict.values())
    assert np.isfinite([value for value, _ in one.loglikelihood([asked[0], asked[2]])]).all()
