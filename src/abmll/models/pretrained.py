"""Weights and tokenizer through transformers, with every way in which that fails said in words."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import find_adapter_config_file
from transformers.utils import logging as transformers_logging

from abmll.errors import AbmllError
from abmll.hub import UNREACHABLE, caused_by, first_line, hub_failure

FAILURES = (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError)
COMMIT = re.compile(r"[0-9a-f]{40}")


def read_pretrained(
    source: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    attention: str = "sdpa",
    revision: str | None = None,
    trust_remote_code: bool = False,
    more: Mapping[str, Any] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a hub id or a folder; safetensors only, straight onto the device in the dtype.

    Args:
        source: hub id or folder.
        dtype, device, attention: of the model.
        revision, trust_remote_code: of a hub id.
        more: what else `from_pretrained` takes: how weights are packed, or spread over processes.

    Raises:
        AbmllError: whatever went wrong, and what to do.
    """
    try:
        _check_config(source, revision, trust_remote_code)
        options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        return _read(source, dtype, device, attention, **options, **(more or {}))
    except AbmllError:
        raise
    except Exception as error:  # damaged files fail anywhere in configuration, tokenizer and model, with any error
        raise explain(source, error) from error


def read_gguf(
    path: Path, *, dtype: torch.dtype, device: torch.device, attention: str = "sdpa"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a GGUF file, every weight dequantised; slow.

    Raises:
        AbmllError: the file is damaged, or of an architecture that transformers cannot read from GGUF.
    """
    # Else the weights stay packed where the `kernels` package is installed, and kernels come from the hub.
    unpack = GgufConfig(dequantize=True)
    try:
        folder = str(path.parent)
        return _read(folder, dtype, device, attention, gguf_file=path.name, quantization_config=unpack)
    except AbmllError:
        raise
    except Exception as error:  # a damaged file fails anywhere in the reader, with any error
        raise AbmllError(f"{path}: cannot be read as a GGUF model ({first_line(error)})") from error


def explain(source: str, error: Exception, download: str | None = None) -> AbmllError:
    """What a failed load means for the user: the cause, and what to do about it.

    Args:
        source: the model.
        error: as it was raised.
        download: what `hf download` is to be given, where that is not the model itself.
    """
    advice = hub_failure(error, "model")
    if advice is not None:
        advice += "; for a folder, check the path" if advice.startswith("no such") else ""
    elif caused_by(error, *UNREACHABLE):
        advice = (
            "it is not in the local cache and the hub cannot be reached, or HF_HUB_OFFLINE is set. Download it once "
            f"with network (`hf download {download or source}`), give a local folder, or use 'smollm2-135m-instruct', "
            "which needs no network"
        )
    elif caused_by(error, torch.OutOfMemoryError):
        advice = "it does not fit into the device's memory: choose a smaller model, a smaller dtype or the CPU"
    elif "safetensors" in str(error) and "does not appear to have" in str(error):
        advice = "it has no safetensors weights, and pickle files are never read: convert it, or take another copy"
    else:
        advice = first_line(error)
    return AbmllError(f"model {source!r} cannot be loaded: {advice}")


@contextmanager
def without_bars() -> Iterator[None]:
    """No progress bars of transformers for loading and writing weights; those of the hub's downloads stay."""
    before = transformers_logging.set_tqdm_hook(_silent)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(before)


def _silent(bar: Callable[..., Any], arguments: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
    return bar(*arguments, **{**options, "disable": True})


def _read(
    source: str, dtype: torch.dtype, device: torch.device, attention: str, **options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    with without_bars():
        model, report = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            device_map={"": device},  # a single device: no hooks are put into the model
            attn_implementation=attention,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    if report["missing_keys"]:  # transformers would only warn, and go on with random ones
        names = sorted(report["missing_keys"])
        raise AbmllError(f"model {source!r}: {len(names)} weights are not in its files, the first is {names[0]}")
    for of_weights in ("quantization_config", "distributed_config"):
        options.pop(of_weights, None)
    return model, AutoTokenizer.from_pretrained(source, **options)


def _check_config(source: str, revision: str | None, trust_remote_code: bool) -> None:
    """Refuse what the configuration could lead `from_pretrained` to besides safetensors of this very model."""
    if find_adapter_config_file(source, revision=revision) is not None:
        raise AbmllError(f"model {source!r} is an adapter (it has adapter_config.json); give the base model here")
    config, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
    weights = str(config.get("transformers_weights") or ".safetensors")
    if not weights.endswith((".safetensors", ".safetensors.index.json")):
        raise AbmllError(f"model {source!r}: its config names {weights!r} as weights; only safetensors are read")
    elsewhere = [str(v) for v in (config.get("auto_map") or {}).values() if "--" in str(v)]
    if trust_remote_code and elsewhere:
        raise AbmllError(
            f"model {source!r} takes code from another repository ({elsewhere[0]}), which a revision does not pin"
        )
