"""Two processes that share a meta-batch through gloo get what one process gets."""

import json
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file

from abmll.adapters.folder import read_adapter
from abmll.process.world import World
from abmll.training.checkpoints import RunDirectory
from tests.distributed.worker import CASES, every_case, run_case
from tests.survival.ranks import start_ranks
from tests.systems import largest_difference, same


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks left: one start of two forks for all tests."""
    out = tmp_path_factory.mktemp("two-ranks")
    ranks = start_ranks(partial(every_case, out), out / "said")
    assert [rank.wait(120) for rank in ranks] == [0, 0], "\n".join(rank.text() for rank in ranks)
    return out


@pytest.mark.parametrize("case", CASES)
def test_trust_26_two_ranks_equal_one(case: str, folder: Path, tmp_path: Path) -> None:
    alone = run_case(case, tmp_path, World())
    ranks = [load_file(folder / f"{case}-{rank}.safetensors") for rank in (0, 1)]
    assert same(*ranks), "the ranks went apart"
    assert largest_difference(alone, ranks[0]) < 1e-5
    start = RunDirectory(tmp_path).load(0).shared
    assert largest_difference(alone, start) > 1e-4, "nothing was learned, so nothing was compared"


@pytest.mark.parametrize("case", CASES)
def test_trust_26_only_the_first_rank_writes(case: str, folder: Path) -> None:
    assert RunDirectory(folder / f"{case}-run-0").load(4).step == 4
    assert not (folder / f"{case}-run-1").exists()


def test_trust_28_an_adapter_saved_by_two_ranks_is_every_rank_s_theta(folder: Path) -> None:
    stored = read_adapter(folder / "adapter")
    ranks = [load_file(folder / f"adapter-{rank}.safetensors") for rank in (0, 1)]
    assert same(stored.tensors, ranks[0])
    assert same(stored.tensors, ranks[1])
    assert all(tensor.numel() and tensor.any() for tensor in stored.tensors.values()), "none is empty or all zero"


def test_trust_19_a_nonfinite_loss_on_one_rank_stops_both_before_the_update(folder: Path) -> None:
    outcomes = [json.loads((folder / f"outcome-{rank}.json").read_text()) for rank in (0, 1)]
    assert [o["error"] for o in outcomes] == ["NonFiniteError", "NonFiniteError"]
    assert [(o["rank"], o["size"]) for o in outcomes] == [(0, 2), (1, 2)]
    assert RunDirectory(folder / "bad-run-0").steps() == [0, 1]


def test_ranks_share_a_meta_batch_without_overlap() -> None:
    for size in (1, 2, 3, 5):
        shares = [list(World(rank, size).share(4)) for rank in range(size)]
        assert sorted(position for share in shares for position in share) == [0, 1, 2, 3]
