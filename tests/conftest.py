"""What every test runs under: no network, one thread per worker, no waiting for disks, annotations enforced."""

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before the first import of huggingface_hub, which reads it then
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of numpy's and scikit-learn's libraries, too: they spin while they wait
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run on the CPU; read where a kernel is defined

from collections.abc import Iterator

import pytest
import torch

from tests.annotations import enforce
from tests.rounding import OtherRounding
from tests.syncing import without_waiting

torch.set_num_threads(1)  # whatever the environment says: tiny tensors gain nothing from more, and workers would fight

os.fsync = without_waiting
enforce("abmll")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rounding", type=float, default=0.0, help="imitate another processor: see tests/rounding.py")
    parser.addoption("--rounding-seed", type=int, default=0, help="which of all the possible errors")


def pytest_collection() -> None:
    gc.disable()  # what is imported stays: there is nothing to collect


def pytest_collection_finish() -> None:
    gc.enable()
    gc.freeze()  # modules and 9,000 items are not looked through again in each full collection


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # what is left at the end is taken down in order


@pytest.fixture(autouse=True, scope="session")
def _rounding(request: pytest.FixtureRequest) -> Iterator[None]:
    size = request.config.getoption("--rounding")
    if not size:
        yield
        return
    with OtherRounding(size, request.config.getoption("--rounding-seed")):
        yield
