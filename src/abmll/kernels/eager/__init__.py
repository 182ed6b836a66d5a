"""Every op in plain PyTorch: the definition of truth that a faster kernel is tested against."""

from abmll.kernels.eager.divergence import (
    difference_of_products,
    first_row,
    gamma_constant,
    kl_entries,
    layer_kl,
    layer_precision_penalty,
    penalty_entries,
    precision_penalty,
    squared_norm,
    strided_rows,
    task_kl,
)
from abmll.kernels.eager.output import (
    activation_noise,
    activation_output,
    activation_variance,
    frozen_linear,
    mean,
    mean_output,
    rows_per_key,
    std_and_noise,
    weight_noise,
    weight_output,
)
from abmll.kernels.eager.tiles import row_blocks

__all__ = [
    "activation_noise",
    "activation_output",
    "activation_variance",
    "difference_of_products",
    "first_row",
    "frozen_linear",
    "gamma_constant",
    "kl_entries",
    "layer_kl",
    "layer_precision_penalty",
    "mean",
    "mean_output",
    "penalty_entries",
    "precision_penalty",
    "row_blocks",
    "rows_per_key",
    "squared_norm",
    "std_and_noise",
    "strided_rows",
    "task_kl",
    "weight_noise",
    "weight_output",
]
