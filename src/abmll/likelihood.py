"""p(D | phi): a causal language model read as log-probabilities over a question's choices."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel, masking_utils

from abmll.adapters.layer import AdaptedLinear
from abmll.errors import AbmllError
from abmll.process import passes
from abmll.prompts.batches import ChoiceBatch
from abmll.prompts.encode import LikelihoodKind


class ChoiceScores(NamedTuple):
    """What the model says of a batch.

    Attributes:
        log_probabilities: over the choices, normalised; -inf where a question has fewer choices.
        vocabulary: for `letter`, the log-probability of each choice's letter in the full vocabulary; else None.
    """

    log_probabilities: Float[Tensor, "B K"]
    vocabulary: Float[Tensor, "B K"] | None


class ChoiceLikelihood(nn.Module):
    """A causal LM as p(choice | question).

    `cloze`: score_k = (sum of the choice's token log-probabilities) / length_k, softmax of scores / T over choices.
    With a premise (docs/method.md, section 5), what the choice scores after the premise is subtracted first.

    `letter`: softmax of logits / T over the vocabulary at "Answer:", renormalised over the options' letters.

    `channel` (Min et al. 2022): score_k = (sum of the log-probabilities of the question's text after choice k) /
    length_k, softmax of scores / T over choices, which is p(choice | question) by Bayes' rule at equal priors.

    The temperature T is `exp(log_temperature)`, fixed unless `learn_temperature` (docs/method.md, section 5).

    Nothing here waits for the device or looks at a tensor's values, so a pass can be captured as a CUDA graph.

    Args:
        model: a Hugging Face causal LM; its parameters are used, not registered here.
        kind: `cloze`, `letter` or `channel`.
        temperature: T to start from.
        learn_temperature: let training move it.
    """

    def __init__(
        self,
        model: nn.Module,
        kind: LikelihoodKind = "cloze",
        temperature: float = 1.0,
        learn_temperature: bool = False,
    ) -> None:
        super().__init__()
        self._model = [model]  # in a list: the base model is not part of this module's state
        self.kind = kind
        device = next(model.parameters()).device
        start = torch.tensor(temperature, dtype=torch.float32, device=device).log()
        self.log_temperature = nn.Parameter(start, requires_grad=learn_temperature)
        self._window, self._mixed = _sliding_window(model)

    def scores(self, batch: ChoiceBatch) -> ChoiceScores:
        """Choice log-probabilities of a batch; float32 whatever the model's dtype.

        Raises:
            AbmllError: rows hold several choices, and the model cannot keep them apart.
        """
        scores = self._scores(batch, self.log_temperature.exp())
        return ChoiceScores(scores.log_softmax(-1), scores if self.kind == "letter" else None)

    def nll(self, batch: ChoiceBatch) -> Float[Tensor, ""]:
        """Mean over the questions of the training NLL, in nats.

        `cloze`: of the right choice among the choices; `letter`: of the right letter in the full vocabulary, as in
        the paper; `channel`: of the question's text after the right choice, a token or as `normalisation` says, as in
        MetaICL: T has no part in it.
        """
        if self.kind == "channel":
            table = self._scores(batch, None)
        else:
            scores = self.scores(batch)
            table = scores.log_probabilities if scores.vocabulary is None else scores.vocabulary
        return -table.gather(1, batch.answers[:, None]).mean()

    def _scores(self, batch: ChoiceBatch, temperature: Tensor | None) -> Float[Tensor, "B K"]:
        """What each choice scores, by a temperature if there is one; -inf where a question has fewer choices."""
        logits = self._logits(batch)
        if temperature is not None and self.kind == "letter":
            logits = logits / temperature
        of_tokens = logits.log_softmax(-1)[batch.target_read, batch.target_token]
        # index_put, not index_add: on CUDA it sorts, so that sums are the same each time
        slots = of_tokens.new_zeros(batch.slots + 1)  # the last one takes the padding's
        flat = slots.index_put((batch.target_choice,), of_tokens, accumulate=True)[:-1]
        asked, premises = flat.split([batch.lengths.numel(), batch.premise_lengths.numel()])
        scores = asked.view_as(batch.lengths) / batch.lengths
        if batch.premises:
            scores = scores - (premises.view_as(batch.premise_lengths) / batch.premise_lengths)[batch.premise_of]
        if temperature is not None and self.kind != "letter":
            scores = scores / temperature
        return scores.masked_fill(~batch.choice_mask, float("-inf"))

    def _logits(self, batch: ChoiceBatch) -> Float[Tensor, "P V"]:
        """Logits at the positions that answer tokens are read from, float32."""
        positions = {} if batch.causal else {"position_ids": batch.position_ids}
        mask = self._mask(batch)
        model = self._model[0]

        def compute() -> Tensor:
            out = model(input_ids=batch.input_ids, attention_mask=mask, use_cache=False, **positions)
            return read(out.logits)

        with _reading(model, batch) as read, _plain_rows(batch.causal), _without_cudnn(not batch.causal):
            logits = passes.forward(model, compute)
        return logits.float()

    def _mask(self, batch: ChoiceBatch) -> Tensor | dict[str, Tensor] | None:
        """The block mask as an additive bias, with the model's window where it is shorter than the rows.

        None where each row is one sequence: a model that masks nothing is causal, and padding comes last.
        """
        if batch.causal:
            return None
        _check_block_masks(self._model[0])
        if self._window is None or batch.input_ids.shape[1] <= self._window:
            return self._bias(batch.attention_mask())
        near = self._bias(batch.attention_mask(self._window))
        if not self._mixed:
            return near
        return {"full_attention": self._bias(batch.attention_mask()), "sliding_attention": near}

    def _bias(self, allowed: Tensor) -> Float[Tensor, "N 1 T T"]:
        dtype = next(self._model[0].parameters()).dtype
        bias = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
        return bias.masked_fill_(~allowed, torch.finfo(dtype).min)


def _sliding_window(model: nn.Module) -> tuple[int | None, bool]:
    """Positions that layers look back over, if any of them slides, and whether others look at everything."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    return (window if "sliding_attention" in kinds else None), len(kinds) > 1


def _check_block_masks(model: nn.Module) -> None:
    """Refuse models that count positions by columns, or whose attention takes no mask."""
    if not isinstance(model, PreTrainedModel):
        return
    reason = None
    if "position_ids" not in inspect.signature(model.forward).parameters or getattr(model.config, "alibi", False):
        reason = "takes a token's column for its position"
    if "flash" in str(model.config._attn_implementation):
        reason = "has an attention without masks"
    if reason is not None:
        raise AbmllError(
            f"{type(model).__name__} {reason}, so the choices of a question cannot share a row; "
            "set likelihood.share_prefix=false"
        )


@contextmanager
def _reading(model: nn.Module, batch: ChoiceBatch) -> Iterator[Callable[[Tensor], Float[Tensor, "P V"]]]:
    """Let the output embedding see the P positions of a batch alone, as one row of P tokens.

    At a vocabulary of 50,000 or more the other logits would cost more than a layer. What a model does to its logits
    (scaling, soft caps) it does as ever. Models that do not show their output embedding compute all the logits.

    Yields:
        What turns the model's logits into those of the P positions.
    """
    narrowed: list[bool] = []

    def narrow(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not inputs or inputs[0].shape[:-1] != batch.input_ids.shape:
            return None
        narrowed.append(True)
        return (_at_reads(inputs[0], batch)[None], *inputs[1:])

    head = _output_embedding(model)
    hook = head.register_forward_pre_hook(narrow) if head is not None else None
    try:
        yield lambda logits: logits[0] if narrowed else _at_reads(logits, batch)
    finally:
        if hook is not None:
            hook.remove()


def _output_embedding(model: nn.Module) -> nn.Module | None:
    """None if it is not shown, or adapted itself: its noise goes by rows and columns, which reads do not have."""
    try:
        head: nn.Module | None = model.get_output_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    return None if isinstance(head, AdaptedLinear) else head


def _at_reads(values: Float[Tensor, "N T D"], batch: ChoiceBatch) -> Float[Tensor, "P D"]:
    positions = batch.read_row * values.shape[1] + batch.read_column
    return values.flatten(0, 1).index_select(0, positions.to(values.device))


@contextmanager
def _without_cudnn(masked: bool) -> Iterator[None]:
    """Keep cuDNN's attention from rows with a mask; PyTorch takes another that is allowed.

    On an H100 or H200 its gradient is NaN where the width of a batch is 64 more than a multiple of 128 and a token's
    scores are all far below 0, as some heads of Qwen2.5 have them (PyTorch issue 196678, releases from 2.11 on). Our
    buckets have such widths.
    """
    allowed = torch.backends.cuda.cudnn_sdp_enabled()
    if masked:
        torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(allowed)


@contextmanager
def _plain_rows(plain: bool) -> Iterator[None]:
    """Tell transformers that rows of positions 0, 1, ... are no packed sequences and need no mask.

    It would look for packed sequences in the positions itself, which waits for the device, and while a graph is
    captured, where it may not look, it would build a mask in any case and so lose the causal attention kernels
    (releases before 5.23 do so even where there are no positions to look at).
    """
    if not plain:
        yield
        return
    find: Any = getattr(masking_utils, "find_packed_sequence_indices", None)
    tracing: Any = getattr(masking_utils, "is_tracing", None)
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    masking_utils.is_tracing = lambda tensor=None: tensor is not None and tracing(tensor)
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices, masking_utils.is_tracing = find, tracing
