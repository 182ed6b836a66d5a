"""What the stds of theta learn: with known spreads between tasks, on one linear layer, and nothing else in the way."""

import torch
from scipy import stats
from torch import Tensor, nn

from abmll.adapters.attach import StdOptions, attach
from abmll.adapters.layer import AdapterSet
from abmll.kernels.noise import key_tensor, noise_key
from tests.dense import dense_variance

OUT, IN, TASKS, OFFSET, FLOOR = 5, 4, 6, 0.2, 1e-3


def full_rank_layer() -> AdapterSet:
    """One layer in float64 whose means and stds can be any matrix: A = A' = 1 to begin with."""
    model = nn.Sequential(nn.Linear(IN, OUT, bias=False)).double().requires_grad_(False)
    adapters = attach(model, ("0",), rank=IN, alpha=float(IN), std=StdOptions(init=OFFSET, floor=FLOOR))
    layer = adapters.layers["0"].double()
    with torch.no_grad():
        layer.shared.mean_a.copy_(torch.eye(IN))
        layer.shared.std_a.copy_(torch.eye(IN))
    return adapters


def variance_of(adapters: AdapterSet) -> Tensor:
    shared = adapters.layers["0"].shared
    return dense_variance(shared.std_b, shared.std_a, shared.variance).detach()


def kl_of_all_tasks(adapters: AdapterSet, distances: Tensor, std_start: str) -> Tensor:
    """The KL over tasks whose phi lie at these distances from theta; leaves its gradient on theta."""
    adapters.layers["0"].shared.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for distance in distances:
        adapters.begin_task(std_start)
        with torch.no_grad():
            adapters.layers["0"].task.mean_b.add_(distance)
        kl = adapters.kl(detach="task")
        kl.backward()
        total += kl.detach()
    return total


def distances_of_tasks() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    spread = torch.linspace(0.1, 1.0, OUT * IN, dtype=torch.float64).reshape(OUT, IN)
    return spread * torch.randn(TASKS, OUT, IN, generator=generator, dtype=torch.float64)


def test_with_init_var_theta_converges_to_var_phi_plus_the_mean_squared_distance():
    adapters, distances = full_rank_layer(), distances_of_tasks()
    stds = adapters.parameters("shared", "std")
    optimizer = torch.optim.LBFGS(stds, max_iter=100, line_search_fn="strong_wolfe")
    optimizer.step(lambda: kl_of_all_tasks(adapters, distances, "init"))
    expected = OFFSET**2 + FLOOR**2 + distances.square().mean(0)
    torch.testing.assert_close(variance_of(adapters), expected, rtol=1e-3, atol=0)


def test_with_copy_var_theta_has_no_fixed_point_and_only_rises():
    adapters, distances = full_rank_layer(), distances_of_tasks()
    optimizer = torch.optim.Adam(adapters.parameters("shared", "std"), lr=0.05)
    history = [variance_of(adapters).mean()]
    for _ in range(60):
        kl_of_all_tasks(adapters, distances, "copy")
        optimizer.step()
        history.append(variance_of(adapters).mean())
    assert (torch.stack(history).diff() > 0).all()
    assert float(history[-1]) > 2 * (OFFSET**2 + float(distances.square().mean()))


# -------------------- whole linear-Gaussian tasks

TRUE_SPREAD = torch.outer(torch.linspace(0.2, 1.0, 6), torch.linspace(0.2, 1.0, 5)).double()
NOISE, ROWS = 0.1, 20


def learn_from_tasks(adapters: AdapterSet, model: nn.Module, iterations: int) -> None:
    """Meta-train by the ELBO (beta = 1) with the `weight` sampler, `init`, and `displacement` as the outer step."""
    generator = torch.Generator().manual_seed(1)
    outer_stds = torch.optim.Adam(adapters.parameters("shared", "std"), lr=0.02)
    outer_means = torch.optim.SGD(adapters.parameters("shared", "mean"), lr=0.1)
    for iteration in range(iterations):
        weight = TRUE_SPREAD * torch.randn(TRUE_SPREAD.shape, generator=generator, dtype=torch.float64)
        x = torch.randn(ROWS, 5, generator=generator, dtype=torch.float64)
        y = x @ weight.T + NOISE * torch.randn(ROWS, 6, generator=generator, dtype=torch.float64)
        adapters.begin_task("init")
        inner = torch.optim.Adam(adapters.parameters("task"), lr=0.1)
        for step in range(15):
            inner.zero_grad()
            with adapters.drawing("weight", key_tensor(noise_key("weight", iteration, step))):
                nll = (model(x) - y).square().sum() / (2 * NOISE**2)
            (nll + adapters.kl(detach="shared")).backward()
            inner.step()
        outer_stds.zero_grad()
        outer_means.zero_grad()
        adapters.kl(detach="task").backward()
        for parameter in adapters.parameters("shared", "mean"):
            parameter.grad = None
        adapters.add_displacement("mean")
        outer_stds.step()
        outer_means.step()


def test_trust_25_learned_variances_rank_as_the_true_spread_between_tasks():
    model = nn.Sequential(nn.Linear(5, 6, bias=False)).double().requires_grad_(False)
    model[0].weight.zero_()
    adapters = attach(model, ("0",), rank=4, alpha=8.0, std=StdOptions(init=OFFSET, floor=FLOOR))
    adapters.layers["0"].double()
    learn_from_tasks(adapters, model, iterations=80)
    rank = stats.spearmanr(variance_of(adapters).flatten(), TRUE_SPREAD.square().flatten())
    assert rank.statistic > 0
    assert rank.pvalue < 0.01
