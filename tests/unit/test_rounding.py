"""The imitated processor of `--rounding`: as far off as it says, and the same each time."""

import pytest
import torch

from tests.rounding import OtherRounding


def product(size: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(40, 40, generator=generator) for _ in range(2))
    with OtherRounding(size, seed):
        return a @ b, (a.abs() @ b.abs()) * 2.0**-24


@pytest.mark.parametrize("size", [1.0, 10.0])
def test_a_product_is_off_by_no_more_than_it_says_and_by_not_much_less(size: float) -> None:
    (plain, unit), (found, _) = product(0.0), product(size)
    assert 0.5 * size < float(((found - plain).abs() / unit).max()) < 1.1 * size + 1


def test_errors_are_the_same_each_time_and_others_for_another_seed() -> None:
    assert torch.equal(product(1.0)[0], product(1.0)[0])
    assert not torch.equal(product(1.0)[0], product(1.0, seed=1)[0])


def test_what_is_exact_everywhere_stays() -> None:
    x = torch.arange(12.0).view(3, 4)
    with OtherRounding(10.0):
        assert torch.equal(x @ x.T, torch.tensor([[14.0, 38, 62], [38, 126, 214], [62, 214, 366]]))
        assert torch.equal(x.sqrt() / 3, torch.stack([row.sqrt() for row in x]) / 3)
        assert torch.zeros(2).exp().tolist() == [1.0, 1.0]


def test_gradients_and_optimizers_are_off_as_well() -> None:
    def step() -> torch.Tensor:
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 5))
        optimizer = torch.optim.AdamW([weight], lr=0.1)
        for _ in range(2):
            weight.sin().square().sum().backward()
            optimizer.step()
        return weight.detach()

    plain = step()
    with OtherRounding(10.0):
        shaken = step()
    assert not torch.equal(plain, shaken)
    torch.testing.assert_close(plain, shaken, rtol=1e-3, atol=1e-3)
