"""A trained run as a model of EleutherAI's lm-evaluation-harness, for its multiple-choice tasks.

lm-eval asks for the log-likelihood of a continuation y = y_1 ... y_T after a context x, and takes the choice with the
largest one. By S posterior draws phi_s ~ q(phi | D) that is the posterior predictive of the whole sequence,

    log p(y | x, D) = log E_q[ prod_t p(y_t | x, y_<t, phi) ]  ~  log( 1/S sum_s exp(l_s(y)) ),
    l_s(y) = sum_t log p(y_t | x, y_<t, phi_s).

Probabilities of sequences are averaged: not logits, and not those of each token, as one draw makes all of a sequence.
The draws are 0 to S - 1 of `abmll.methods.noise`, the same for every request of every task, so the choices of a
document are compared under the same weights, and no score depends on what else is in its batch.

lm-eval has no plug-ins; `python -m abmll.lm_eval` is its command line with the model `abmll` added.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from abmll.config import merge, parse_overrides
from abmll.errors import AbmllError, NonFiniteError, unknown_name
from abmll.everyday.saved import read_posterior
from abmll.everyday.session import Session, open_run
from abmll.everyday.shipped import find_run
from abmll.files import seal, without_home
from abmll.methods.noise import drawn
from abmll.prompts.control import ControlTokens
from abmll.training.finite import SHOWN, dtype_advice


def end_with(message: object) -> NoReturn:
    """End the command line: one message, exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2) from None


try:
    from lm_eval.__main__ import cli_evaluate  # optional extra
    from lm_eval.api.registry import register_model  # optional extra
    from lm_eval.models.huggingface import HFLM  # optional extra
except ImportError as error:
    missing = f"abmll.lm_eval needs lm_eval: pip install lm_eval ({error})"
    if __name__ == "__main__":
        end_with(missing)
    raise AbmllError(missing) from error

OWN = ("run", "task", "samples", "settings", "device", "dtype")
HARNESS = (
    "add_bos_token",
    "batch_size",
    "logits_cache",
    "max_batch_size",
    "max_length",
    "prefix_token_id",
    "softmax_dtype",
)
"""Arguments of lm-eval's model `hf` that are handed on to it."""


@register_model("abmll")
class AbmllLM(HFLM):
    """A run on its base model: lm-eval's model `hf`, whose forward passes use the mean weights or posterior draws.

    So prompts, the seam of context and continuation, truncation and batches are lm-eval's own; the run's template,
    normalisation, premise and temperature play no part.

    Args:
        run: a run directory of `abmll train`, or "smollm2", the adapter that comes with abmll.
        task: a task saved by `abmll adapt --save`; None: the shared weights, as trained.
        samples: posterior draws S; None: the mean weights.
        settings: further values of the run's configuration, as ("model.attention=eager",).
        device: the same as the setting `model.device`.
        dtype: the same as the setting `model.dtype`.
        harness: see `HARNESS`. Log-probabilities are float32 unless `softmax_dtype` says otherwise.

    Raises:
        AbmllError: there is no such run, task or argument, the base model cannot be had, or nothing to draw by.

    >>> model = AbmllLM("smollm2", samples=3, batch_size=8)  # doctest: +SKIP
    >>> lm_eval.simple_evaluate(model=model, tasks=["arc_easy"])["results"]  # doctest: +SKIP
    """

    def __init__(
        self,
        run: Any,
        task: Any = None,
        samples: Any = None,
        settings: Sequence[str] = (),
        device: str | None = None,
        dtype: str | None = None,
        **harness: Any,
    ) -> None:
        if unknown := [name for name in harness if name not in HARNESS]:
            raise unknown_name("argument of the lm-eval model abmll", unknown[0], (*OWN, *HARNESS))
        self.draws = _draws(samples)
        self.session = _opened(run, task, merge(parse_overrides(_listed(settings)), _placed(device, dtype)))
        self._about_run = {"run": without_home(str(run)), "task": task, "samples": self.draws}
        if self.draws and not self.session.system.method.adapters.has_std:
            self.session.system.close()
            raise AbmllError(f"{run}: its system holds no stds, so there is nothing to draw: leave samples out")
        base = self.session.base
        self._control = ControlTokens(base.tokenizer)
        # What begins like this is a chat that was rendered here; the texts of no task can know it.
        self._rendered = f"<{seal(f'{base.fingerprint} {self.session.folder.resolve()}')[:16]}>"
        super().__init__(base.model, tokenizer=base.tokenizer, **{"softmax_dtype": "float32", **harness})

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """log p(continuation | context, D), and whether greedy decoding gives the continuation under every draw.

        Then it does so under their mixture too; the reverse need not hold.

        Raises:
            NonFiniteError: a log-likelihood is NaN or infinite; names the documents and the dtype.
        """
        found = self._by_draw(partial(super().loglikelihood, self._marked(requests), disable_tqdm))
        values = self._averaged(requests, [[value for value, _ in scores] for scores in found])
        greedy = [all(flags) for flags in zip(*([flag for _, flag in scores] for scores in found), strict=True)]
        return list(zip(values.tolist(), greedy, strict=True))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """log p(text | D) of whole texts: one draw makes all windows of a text.

        Raises:
            NonFiniteError: as `loglikelihood`.
        """
        found = self._by_draw(partial(super().loglikelihood_rolling, self._marked(requests), disable_tqdm))
        return self._averaged(requests, found).tolist()

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> NoReturn:
        """Refused: averaged draws have probabilities of texts, but no one model that writes them.

        Raises:
            AbmllError: always; says what to do instead.
        """
        raise AbmllError(
            "the lm-eval model abmll scores continuations (multiple-choice and perplexity tasks), it does not generate "
            "text. For generation merge the mean or one draw (abmll export RUN -o DIR --merge) and evaluate that "
            "folder with --model hf"
        )

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A chat, in which what a task's texts hold is text: its names of control tokens are marked."""
        marked = [{**turn, "content": self._control.mark(turn["content"])} for turn in chat_history]
        return self._rendered + super().apply_chat_template(marked, add_generation_prompt)

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's cache of requests: marked chats are this run's alone."""
        return f"{super().tokenizer_name}__abmll{self._rendered}"

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """As lm-eval's own, but for names of control tokens that are marked: these are text."""
        if not self._control.is_marked(string):
            return super().tok_encode(string, add_special_tokens, left_truncate_len, **kwargs)
        begins = string.startswith(self.tokenizer.decode(self.prefix_token_id))
        usual = not begins and self.add_bos_token is not False
        ids = self._control.ids(string, usual if add_special_tokens is None else add_special_tokens)
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def _marked(self, requests: Sequence[Any]) -> list[Any]:
        """Requests in which the texts of a task are marked; chats were, when they were rendered."""
        found = []
        for request in requests:
            texts = tuple(
                text.removeprefix(self._rendered) if text.startswith(self._rendered) else self._control.mark(text)
                for text in request.args
            )
            found.append(request if texts == request.args else replace(request, arguments=texts))
        return found

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Let lm-eval cache finite scores as they come; none of single draws: averaged ones it caches at the end."""
        if not self.draws:
            super().set_cache_hook(_FiniteScores(cache_hook))

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes beside the scores: its own facts, and which run, task and draws."""
        return {**super().get_model_info(), **self._about_run, "base_fingerprint": self.session.base.fingerprint}

    def _averaged(self, requests: Sequence[Any], draws: Sequence[Sequence[float]]) -> Float[np.ndarray, " N"]:
        """The log-likelihoods of each draw, averaged; what is not finite is no score."""
        values = np.array(draws, dtype=np.float64)
        bad = [requests[int(i)] for i in np.flatnonzero(~np.isfinite(values).all(axis=0))]
        if bad:
            names = ", ".join(f"{request.task_name} document {request.doc_id}" for request in bad[:SHOWN])
            more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
            advice = dtype_advice(self.session.system.method.adapters.base_dtype)
            raise NonFiniteError(f"{names}{more}: the log-likelihood is NaN or infinite, which is no score; {advice}")
        return log_mean_exp(values)

    def _by_draw(self, score: Callable[[], list[Any]]) -> list[list[Any]]:
        """What `score` gives under each draw, or by the mean weights."""
        if not self.draws:
            return [score()]
        found = []
        for number in range(self.draws):
            with drawn(self.session.system.method.adapters, number):
                found.append(score())
        return found


class _FiniteScores:
    """lm-eval's cache, which is never handed a score that is not finite: it would give that out the next time."""

    def __init__(self, hook: Any) -> None:
        self._hook = hook

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        """As lm-eval's `CacheHook`."""
        if math.isfinite(res[0] if isinstance(res, tuple) else res):
            self._hook.add_partial(attr, req, res)


def log_mean_exp(values: Float[np.ndarray, "S N"]) -> Float[np.ndarray, " N"]:
    """The logarithm of the mean over S of exp(values).

    >>> log_mean_exp(np.log([[0.2, 0.5], [0.4, 0.5]])).round(4)  # log 0.3, log 0.5
    array([-1.204 , -0.6931])
    """
    found: Float[np.ndarray, " N"] = logsumexp(values, axis=0) - np.log(len(values))
    return found


def _draws(samples: Any) -> int:
    """The number of draws; 0 for the mean weights."""
    if samples is None:
        return 0
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise AbmllError(f"samples={samples!r}: a number of posterior draws from 1 on, or nothing for the mean weights")
    return samples


def _opened(run: Any, task: Any, overrides: Mapping[str, Any]) -> Session:
    """A run, with a saved task if one is named. lm-eval makes numbers of names that look like some."""
    folder = find_run(str(run), copy=task is not None)
    saved = None if task is None else read_posterior(folder, str(task))
    if saved is not None:
        saved.check_adapted("lm-eval")
    return open_run(folder, overrides, saved)


def _listed(settings: Sequence[str]) -> list[str]:
    """Settings as a list; on lm-eval's command line there is room for one."""
    return [settings] if isinstance(settings, str) else list(settings)


def _placed(device: str | None, dtype: str | None) -> dict[str, Any]:
    """lm-eval's own names of two settings."""
    return {"model": {name: value for name, value in (("device", device), ("dtype", dtype)) if value is not None}}


def main() -> None:
    """lm-eval's command line, which knows the model `abmll` here."""
    try:
        cli_evaluate()
    except AbmllError as error:
        end_with(error)


if __name__ == "__main__":
    main()
