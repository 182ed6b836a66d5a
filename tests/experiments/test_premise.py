"""What a premise gives: the numbers are those of the system's own predictions, and the cost is that of its passes."""

import json
from pathlib import Path

import numpy as np
import pytest

from abmll.models import load_model
from abmll.systems.build import build_system
from experiments.calibrators.premise import LIKELIHOODS, main, markdown
from tests.tiny import save_tiny, tiny_tasks, write_tasks

TASKS = tiny_tasks(3)


def test_end_to_end(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model")
    write_tasks(tmp_path / "one", TASKS[:2])
    write_tasks(tmp_path / "other", TASKS[2:])
    names = [task.name for task in TASKS]
    folders = [str(tmp_path / folder) for folder in ("one", "other")]
    main(["--tasks", *folders, "--model", str(tmp_path / "model"), "--names", *names, "--out", str(tmp_path)])
    results = json.loads((tmp_path / "premise.json").read_text(encoding="utf-8"))
    assert results["tasks"] == {"fixed labels": names[:2], "choices of each question": names[2:]}
    base = load_model(str(tmp_path / "model"), device="cpu", dtype="float32")
    for name, likelihood in LIKELIHOODS.items():
        system = build_system({"method": {"name": "pretrained"}, "likelihood": likelihood}, base)
        for task in TASKS:
            of_kind = results["scores"]["fixed labels" if task.fixed_labels else "choices of each question"]
            expected = -np.mean([np.log(p.probabilities[p.answer]) for p in system.predict(task.test)])
            assert of_kind[f"{name} | none"]["by_task"][task.name] == pytest.approx(expected, abs=1e-4)
        system.close()
    plain, pmi = (results["cost"][name] for name in ("per token", "per token, premise ''"))
    for kind, rows in (("fixed labels", 9 / 8), ("choices of each question", 2.0)):
        assert pmi[kind]["passes"] == plain[kind]["passes"] == 1 / 8
        assert pmi[kind]["tokens"] == pytest.approx(rows * plain[kind]["tokens"])
    assert (tmp_path / "premise.md").read_text(encoding="utf-8") == markdown(results)
