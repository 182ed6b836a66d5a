"""p(D | phi): a causal language model read as log-probabilities over a question's choices."""

import inspect
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from abmll.tasks.batches import ChoiceBatch
from abmll.tasks.prompts import LikelihoodKind


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

    `cloze`:  score_k = (sum of the choice's token log-probabilities) / length_k, softmax of scores / T over choices.
    `letter`: softmax of logits / T over the vocabulary at "Answer:", renormalised over the options' letters.

    The temperature T is `exp(log_temperature)`, fixed unless `learn_temperature` (method.md section 5).

    Args:
        model: a Hugging Face causal LM; its parameters are used, not registered here.
        kind: `cloze` or `letter`.
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
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def scores(self, batch: ChoiceBatch) -> ChoiceScores:
        """Choice log-probabilities of a batch; float32 whatever the model's dtype."""
        logits = self._logits(batch)
        temperature = self.log_temperature.exp()
        if self.kind == "letter":
            logits = logits / temperature
        rows, columns = batch.target_row, batch.target_column - (batch.prefix_columns - 1)
        normaliser = logits.logsumexp(-1)
        of_tokens = logits[rows, columns, batch.target_token] - normaliser[rows, columns]
        flat = of_tokens.new_zeros(batch.lengths.numel()).index_add(0, batch.target_choice, of_tokens)
        scores = flat.view_as(batch.lengths) / batch.lengths
        if self.kind == "cloze":
            scores = scores / temperature
        masked = scores.masked_fill(~batch.choice_mask, float("-inf"))
        return ChoiceScores(masked.log_softmax(-1), masked if self.kind == "letter" else None)

    def nll(self, batch: ChoiceBatch) -> Float[Tensor, ""]:
        """Mean over the questions of the training NLL, in nats.

        `cloze`: of the right choice among the choices; `letter`: of the right letter in the full vocabulary, as in
        the paper.
        """
        scores = self.scores(batch)
        table = scores.log_probabilities if scores.vocabulary is None else scores.vocabulary
        return -table.gather(1, batch.answers[:, None]).mean()

    def _logits(self, batch: ChoiceBatch) -> Float[Tensor, "N L V"]:
        """Logits from the prompts' last column on: the only ones an answer token is read from."""
        first = batch.prefix_columns - 1
        keep = batch.input_ids.shape[1] - first
        options = {"logits_to_keep": keep} if self._keeps_logits else {}
        out = self._model[0](
            input_ids=batch.input_ids,
            attention_mask=self._mask(batch),
            position_ids=batch.position_ids,
            use_cache=False,
            **options,
        )
        return out.logits[:, -keep:].float()

    def _mask(self, batch: ChoiceBatch) -> Tensor:
        """The block mask as an additive bias; where no row holds several choices, the ordinary padding mask."""
        if not batch.shared_prefix:
            return (batch.segment >= 0).long()
        allowed = batch.attention_mask()
        dtype = next(self._model[0].parameters()).dtype
        bias = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
        return bias.masked_fill_(~allowed, torch.finfo(dtype).min)
