"""No network, and a home that cannot be written: the quickstart's recipe runs all the same."""

import os
import subprocess
import sys
from pathlib import Path

SMALL = [
    "model.shape=tiny-llama",
    "model.source=null",
    "training.iterations=1",
    "method.inner_steps=1",
    "adaptation.test_questions=2",
    "adaptation.samples=1",
    "adaptation.steps=1",
    "seeds=[0]",
    "curve=1",
]
# Whatever opens a connection, or asks for a name, fails loudly; the process for templates has no need of either.
WITHOUT_NETWORK = """
import runpy, socket, sys
def refuse(*args, **options):
    raise AssertionError("network was used")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
sys.argv = ["abmll", *sys.argv[1:]]
runpy.run_module("abmll", run_name="__main__")
"""


def test_trust_51_the_quickstart_s_recipe_runs_offline_with_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    outside = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH") if name in os.environ}
    environment = {**outside, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HOME": "/dev/null/ann"}
    recipe = "quickstart"
    command = [sys.executable, "-c", WITHOUT_NETWORK, "compare", recipe, *SMALL, "-o", "out"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=240, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "report.html").stat().st_size > 1000
    assert "/dev/null" not in (tmp_path / "out" / "config.yaml").read_text()
