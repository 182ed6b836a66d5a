"""The KL kernel that waits for a GPU, held to what the one in use is held to, at fewer shapes."""

import pytest

pytest.importorskip("triton")

from benchmarks import kernel_kl_next
from tests.unit import test_triton_kl as kl
from tests.unit.test_kernels import far_pair, near_pair


@pytest.fixture(autouse=True)
def _in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kl, "triton_kl", kernel_kl_next)


@pytest.mark.parametrize(("shape", "std"), [((1, 1, 1), 4.5e-5), ((70, 90, 8), 2e-9), ((65, 70, 16), 10.0)])
@pytest.mark.parametrize("make", [far_pair, near_pair])
def test_kl_and_its_eight_gradients(make, shape, std):
    kl.test_kl_and_its_eight_gradients_equal_torch_distributions(make, shape, std)


@pytest.mark.parametrize("size", [1e-8, 1e8])
def test_factors_of_any_size(size):
    kl.test_factors_of_any_size_keep_their_digits("mean", size)


def test_the_rest():
    kl.test_layers_of_several_shapes_and_scales_add_up()
    kl.test_the_smaller_of_two_halves_keeps_its_share_of_the_digits()
    kl.test_what_is_not_a_number_stays_visible(2, float("nan"))
