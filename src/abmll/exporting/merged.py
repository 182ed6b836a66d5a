"""A whole model with the mean, or one posterior draw, merged into its weights."""

from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor

from abmll.adapters.attach import detach
from abmll.errors import AbmllError, NonFiniteError
from abmll.exporting.merge import Rounding, check_mergeable, merge
from abmll.exporting.size import REPORT_FILE, check_size
from abmll.files import folder_beside, write_sealed_json
from abmll.methods.noise import drawn
from abmll.models import LanguageModel, weight_bytes
from abmll.models.pretrained import read_pretrained, without_bars
from abmll.runs.card import About, write_card
from abmll.systems.system import System, base_facts
from abmll.training.finite import dtype_advice

PROBES, PROBE_TOKENS = 8, 16
PROBE_TEXT = "Answer: A) 12, B) naïve; 漢"


@dataclass(frozen=True)
class MergeReport:
    """What a merge did, as `export.json` keeps it.

    Attributes:
        kind: `merged mean` or `merged draw`.
        draw: its number; None for the mean.
        rounding: what the dtype left of the update.
        largest_logit_change: over random tokens, the largest difference between logits of the merged model and of the
            adapters on the base.
        logit_scale: the largest of those logits, to hold it against.
        top_token_agreement: share of the tokens whose most probable next token is the same.
        probes: random tokens.
    """

    kind: str
    draw: int | None
    rounding: Rounding
    largest_logit_change: float
    logit_scale: float
    top_token_agreement: float
    probes: int = PROBES * PROBE_TOKENS


def export_merged(
    system: System,
    out: Path | str,
    *,
    draw: int | None = None,
    force: bool = False,
    confirmed: bool = False,
    about: About | None = None,
) -> MergeReport:
    """Merge phi into the base weights and write the model and its tokenizer with `save_pretrained`.

    What was written is loaded again, by transformers on the CPU, and compared weight by weight before the folder gets
    its name. The system is used up, also by a refusal: its base model has other weights and no adapters any more.

    Args:
        system: its task slot is merged.
        out: a folder that is new or empty.
        draw: number of a posterior draw; None for the mean.
        force: write it even if the dtype swallows the update.
        confirmed: whether more than a gigabyte is meant.
        about: for its model card; None: none is written.

    Raises:
        NonFiniteError: a merged weight, or a logit before or after, is NaN or infinite; names the dtype.
        AbmllError: the base is quantised, the dtype would swallow the update, the folder is in use, or what was read
            again is not what was written.
        OSError: the disk is full, ...; nothing is left then.
    """
    out = Path(out)
    base, adapters = system.language_model, system.method.adapters
    check_mergeable(adapters)
    check_size(weight_bytes(base.model), out, confirmed)
    tokens = _probe_tokens(base)
    with nullcontext() if draw is None else drawn(adapters, draw):
        expected = _logits(base, tokens, "the adapters on their base")
    rounding = merge(adapters, draw)
    detach(base.model, adapters)
    if rounding.swallowed and not force:
        raise AbmllError(
            f"{rounding.dtype} would swallow the {rounding.part}: {rounding.describe()}. Merge in a wider dtype "
            "(model.dtype=float32), or write it as it is with --force"
        )
    report = _report(draw, rounding, expected, _logits(base, tokens, "the merged model"))
    with folder_beside(out) as beside:
        _save(base, beside)
        _check_again(base, beside, out)
        write_sealed_json(beside / REPORT_FILE, {**asdict(report), "base": base_facts(base).model_dump()})
        if about is not None:
            write_card(beside, about, "merged")
    return report


def _report(draw: int | None, rounding: Rounding, expected: Tensor, found: Tensor) -> MergeReport:
    return MergeReport(
        kind="merged mean" if draw is None else "merged draw",
        draw=draw,
        rounding=rounding,
        largest_logit_change=float((found - expected).abs().max()),
        logit_scale=float(expected.abs().max()),
        top_token_agreement=float((found.argmax(-1) == expected.argmax(-1)).float().mean()),
    )


def _probe_tokens(base: LanguageModel) -> Int[Tensor, "B T"]:
    """Random tokens, the same at each call."""
    vocabulary = min(len(base.tokenizer), base.model.config.vocab_size)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (PROBES, PROBE_TOKENS), generator=generator).to(base.device)


@torch.no_grad()
def _logits(base: LanguageModel, tokens: Int[Tensor, "B T"], what: str) -> Float[Tensor, "B T V"]:
    found: Tensor = base.model(input_ids=tokens, use_cache=False).logits
    if not bool(found.isfinite().all()):
        dtype = str(base.dtype).removeprefix("torch.")
        raise NonFiniteError(f"logits of {what} are NaN or infinite; nothing was written; {dtype_advice(dtype)}")
    return found.float()


def _save(base: LanguageModel, folder: Path) -> None:
    try:
        with without_bars():
            base.model.save_pretrained(folder)
            base.tokenizer.save_pretrained(folder)
    except (SafetensorError, ValueError) as error:
        raise AbmllError(f"{folder.parent}: transformers cannot save this model ({error})") from error


def _check_again(base: LanguageModel, folder: Path, out: Path) -> None:
    """Load what was written as anybody would, and compare all of it with what is in memory."""
    model, tokenizer = read_pretrained(str(folder), dtype=base.dtype, device=torch.device("cpu"))
    expected: dict[str, Any] = base.model.state_dict()
    found = model.state_dict()
    other = [name for name in expected if name not in found or not _same(expected[name], found[name])]
    if other or found.keys() != expected.keys():
        names = other or sorted(found.keys() ^ expected.keys())
        raise AbmllError(f"{out}: {names[0]} is not what was written ({len(names)} weights differ); nothing was kept")
    if tokenizer(PROBE_TEXT)["input_ids"] != base.tokenizer(PROBE_TEXT)["input_ids"]:
        raise AbmllError(f"{out}: the tokenizer that was written splits texts otherwise; nothing was kept")


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.cpu(), other.cpu())
