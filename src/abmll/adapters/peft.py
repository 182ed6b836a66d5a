"""Stock PEFT LoRA folders: adapter_config.json and adapter_model.safetensors, written and read."""

import json
import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from peft import LoraConfig
from torch import Tensor

from abmll.adapters.layer import AdapterSet
from abmll.errors import AbmllError
from abmll.files import check_regular, strict_json, write_bytes, write_text
from abmll.tensors import portable, read_header, read_tensors, to_bytes

CONFIG_FILE = "adapter_config.json"
MODEL_FILE = "adapter_model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".metadata")
FACTORS = {"mean_a": "lora_A", "mean_b": "lora_B"}
MOST_NUMBERS = 1 << 31
"""Of all factors: on every linear layer of a model of 405 billion weights, a rank of 80."""
MOST_CONFIG = 4 << 20  # bytes of adapter_config.json
# What makes a LoRA more than s B A on linear layers, with the value that it has where it does not.
PLAIN: dict[str, Any] = {
    "use_dora": False,
    "bias": "none",
    "lora_bias": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layer_replication": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "use_qalora": False,
    "use_bdlora": None,
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "kasa_config": None,
    "monteclora_config": None,
}
ADDITIVE_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base alone; PiSSA, OLoRA, CorDA and LoftQ take their start from it."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlainLora:
    """A LoRA as stock PEFT saves one.

    Attributes:
        rank: of every layer.
        alpha: with which the scale is alpha / rank (so that of rsLoRA is alpha * sqrt(rank) of its file).
        factors: module path -> (B, A), float32.
        base_model: what its configuration says it is for.
    """

    rank: int
    alpha: float
    factors: dict[str, tuple[Float[Tensor, "O R"], Float[Tensor, "R I"]]]
    base_model: str


def write_peft(adapters: AdapterSet, folder: Path, base_model: str, alpha: float) -> None:
    """Write the means of the shared slot as a stock PEFT LoRA, and nothing else; see `write_adapter` for all of it.

    Args:
        adapters: the shared slot is written.
        folder: made if needed.
        base_model: what `base_model_name_or_path` says.
        alpha: LoRA's alpha; the scale is alpha / rank.
    """
    rank = next(iter(adapters.layers.values())).shared.rank
    config = peft_config(adapters.layers, rank, alpha, transposed=is_transposed(adapters), base_model=base_model)
    write_peft_files(folder, config, adapters.state_dict("shared"))


def write_peft_files(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a PEFT configuration, and of the tensors, named `layer.factor`, the means."""
    means = {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[2] in FACTORS}
    write_text(folder / CONFIG_FILE, json.dumps(config, indent=1) + "\n")
    data = to_bytes({peft_name(name): portable(tensor) for name, tensor in means.items()}, {"format": "pt"})
    write_bytes(folder / MODEL_FILE, data)


def peft_name(name: str) -> str:
    """PEFT's name of a mean factor.

    >>> peft_name("model.layers.0.self_attn.q_proj.mean_a")
    'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight'
    """
    path, _, factor = name.rpartition(".")
    return f"base_model.model.{path}.{FACTORS[factor]}.weight"


def peft_config(
    layers: Iterable[str], rank: int, alpha: float, *, transposed: bool, base_model: str, revision: str | None = None
) -> dict[str, Any]:
    """adapter_config.json of the adapted layers, each named by its whole path."""
    config = LoraConfig(
        r=rank,
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,
        target_modules=sorted(layers),
        lora_dropout=0.0,
        bias="none",
        fan_in_fan_out=transposed,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_model,
        revision=revision,
        inference_mode=True,
    )
    values = config.to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}


def is_transposed(adapters: AdapterSet) -> bool:
    """Whether the base layers are GPT-2's, whose weights lie the other way round."""
    return any(type(layer.base).__name__ == "Conv1D" for layer in adapters.layers.values())


def read_peft(folder: Path) -> PlainLora:
    """Read a LoRA that stock PEFT saved; its pickled forms are never opened.

    Raises:
        AbmllError: it is no LoRA, is more than a LoRA (DoRA, biases, saved modules, ranks by layer), or a file is
            damaged; names the file.
    """
    config = read_config(folder)
    model = folder / MODEL_FILE
    if not model.is_file() and (pickles := find_pickles(folder)):
        raise AbmllError(f"{folder / pickles[0]}: a pickle, which can run code, is never read; save as safetensors")
    _check_plain(folder / CONFIG_FILE, config)
    rank = int(config["r"])
    _check_size(model)
    tensors = read_tensors(model, dtypes=("F32", "F16", "BF16"))
    factors = _pair(model, {name: tensor.float() for name, tensor in tensors.items()}, rank)
    alpha = float(config["lora_alpha"]) * (rank**0.5 if config.get("use_rslora") else 1.0)
    return PlainLora(rank, alpha, factors, str(config.get("base_model_name_or_path") or ""))


def _check_size(file: Path) -> None:
    """Refuse what is no LoRA by its header, before any of its data takes memory."""
    entries = read_header(file).entries
    numbers = sum(math.prod(entry.shape) for entry in entries.values())
    if numbers > MOST_NUMBERS:
        raise AbmllError(f"{file}: announces {numbers:,} numbers; a LoRA has at most {MOST_NUMBERS:,}")


def read_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json, as values.

    Raises:
        AbmllError: there is none, or it is no JSON object of a size that a configuration has.
    """
    file = folder / CONFIG_FILE
    if not folder.is_dir():
        raise AbmllError(f"{folder}: no such folder")
    if file.exists():
        check_regular(file)
    try:
        if file.stat().st_size > MOST_CONFIG:
            raise AbmllError(f"{file}: {file.stat().st_size:,} bytes are too many for a configuration")
        config = strict_json(file.read_bytes())
    except AbmllError:
        raise
    except OSError as error:
        raise AbmllError(f"{file}: cannot be read ({error.strerror}); an adapter's folder holds one") from error
    except ValueError as error:
        raise AbmllError(f"{file}: not JSON ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(config, dict):
        raise AbmllError(f"{file}: not a JSON object")
    return config


def find_pickles(folder: Path) -> list[str]:
    """Names of the files in a folder that could be pickles; they are never opened."""
    return sorted(file.name for file in folder.iterdir() if file.name.endswith(PICKLES))


@torch.no_grad()
def start_from(adapters: AdapterSet, alpha: float, folder: Path, base_model: str = "") -> None:
    """Load an ordinary PEFT LoRA into the shared means, from which training then starts.

    Args:
        adapters: attached, with the same rank and target layers.
        alpha: of the run; the scale is alpha / rank.
        folder: of the LoRA.
        base_model: the run's; a LoRA that was made for one of another name is worth a warning.

    Raises:
        AbmllError: the folder holds no plain LoRA, or its rank, alpha or targets are not the run's; says which differ.
    """
    lora = read_peft(folder)
    if faults := _differences(adapters, alpha, lora):
        raise AbmllError(f"adapter.start: {folder} does not fit this run: {'; '.join(faults)}")
    if base_model and lora.base_model and Path(lora.base_model).name != Path(base_model).name:
        logger.warning("adapter.start: %s was made for %r, this run is of %r", folder, lora.base_model, base_model)
    for path, layer in adapters.layers.items():
        b, a = lora.factors[path]
        layer.shared.mean_b.copy_(b)
        layer.shared.mean_a.copy_(a)
    adapters.begin_task()


def _differences(adapters: AdapterSet, alpha: float, lora: PlainLora) -> list[str]:
    rank, faults = next(iter(adapters.layers.values())).shared.rank, []
    if lora.rank != rank:
        faults.append(f"its rank is {lora.rank}, adapter.rank is {rank}")
    if abs(lora.alpha - alpha) > 1e-6 * alpha:
        faults.append(f"its alpha is {lora.alpha:g}, adapter.alpha is {alpha:g}")
    for what, paths in (
        ("it adapts", lora.factors.keys() - adapters.layers.keys()),
        ("adapter.targets adapts", adapters.layers.keys() - lora.factors.keys()),
    ):
        if paths:
            faults.append(f"only {what} {', '.join(sorted(paths)[:3])}{' ...' if len(paths) > 3 else ''}")
    for path in lora.factors.keys() & adapters.layers.keys() if not faults else ():
        mine = (tuple(adapters.layers[path].shared.mean_b.shape), tuple(adapters.layers[path].shared.mean_a.shape))
        theirs = tuple(tuple(factor.shape) for factor in lora.factors[path])
        if mine != theirs:
            faults.append(f"{path} is {theirs[0][0]} x {theirs[1][1]} there and {mine[0][0]} x {mine[1][1]} here")
    return faults[:4]


def _check_plain(file: Path, config: dict[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise AbmllError(f"{file}: peft_type is {config.get('peft_type')!r}; only LORA can be read")
    for name, kind in (("r", int), ("lora_alpha", (int, float))):
        value = config.get(name)
        if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value < 1e9:
            raise AbmllError(f"{file}: {name} is {value!r}, expected a positive number")
    strange = [f"{n}={config[n]!r}" for n, plain in PLAIN.items() if config.get(n) not in (plain, None, False, {}, [])]
    if config.get("init_lora_weights") not in ADDITIVE_STARTS:
        strange.append(f"init_lora_weights={config['init_lora_weights']!r}, which changes the base weights")
    if strange:
        raise AbmllError(f"{file}: more than a plain LoRA ({', '.join(strange)[:200]}); only s B A can be read")


def _pair(file: Path, tensors: dict[str, Tensor], rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Factors by module path; every tensor must be one of a pair of the rank."""
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        path, _, factor = name.removesuffix(".weight").rpartition(".")
        known = name.startswith("base_model.model.") and name.endswith(".weight") and factor in FACTORS.values()
        if not known or tensor.dim() != 2:
            raise AbmllError(f"{file}: {name} is no lora_A or lora_B of a linear layer")
        if tensor.shape[0 if factor == "lora_A" else 1] != rank:
            raise AbmllError(f"{file}: {name} has the shape {list(tensor.shape)}, but {CONFIG_FILE} says r={rank}")
        pairs.setdefault(path.removeprefix("base_model.model."), {})[factor] = tensor
    for path, pair in pairs.items():
        if len(pair) != 2:
            raise AbmllError(f"{file}: {path} has only {next(iter(pair))} of its two factors")
    if not pairs:
        raise AbmllError(f"{file}: holds no tensor")
    return {path: (pair["lora_B"], pair["lora_A"]) for path, pair in pairs.items()}
