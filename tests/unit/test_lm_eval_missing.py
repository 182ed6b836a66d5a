"""`python -m abmll.lm_eval` where the harness is not installed."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HIDE = "import sys, runpy; sys.modules['lm_eval'] = None; "


def test_without_the_harness_it_is_one_message_and_an_import_is_an_error() -> None:
    paths = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    for code, line in (
        ("runpy.run_module('abmll.lm_eval', run_name='__main__')", "error: abmll.lm_eval needs lm_eval: pip install"),
        ("import abmll.lm_eval", "abmll.errors.AbmllError: abmll.lm_eval needs lm_eval: pip install lm_eval"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", HIDE + code],
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            check=False,
        )
        last = done.stderr.splitlines()[-1]
        assert last.startswith(line), done.stderr
        ours = code.startswith("runpy")
        assert (done.returncode, "Traceback" in done.stderr) == ((2, False) if ours else (1, True))
