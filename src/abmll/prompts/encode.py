"""Question -> prompt -> token ids -> ChoiceBatch.

A question becomes one row: its prompt once, then its choices side by side, each seeing the prompt and itself alone
(a block mask), with positions that go on from the prompt. So a prompt is computed once, not once per choice, in one
forward pass. Models whose attention takes no such mask get one row per choice instead (`share_prefix=False`).
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal

from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PreTrainedTokenizerBase

from abmll.errors import AbmllError
from abmll.prompts.branches import fed_tokens
from abmll.prompts.control import ControlTokens, NoOtherWay
from abmll.prompts.cutting import Cut, longest_fitting
from abmll.prompts.rendering import TemplateError, check_template, render, render_chat
from abmll.prompts.seam import common_length, ids_of_all, split_at_seam
from abmll.question import Question, QuestionWithExamples, without_content

LikelihoodKind = Literal["letter", "cloze", "channel"]
Normalisation = Literal["sum", "token", "byte"]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

TEMPLATES: dict[LikelihoodKind, str] = {
    "cloze": "{% if context %}{{ context }}\n\n{% endif %}Question: {{ question }}\nAnswer:",
    "letter": (
        "{% if context %}{{ context }}\n\n{% endif %}Question: {{ question }}\n"
        "{% for choice in choices %}{{ letters[loop.index0] }}) {{ choice }}\n{% endfor %}Answer:"
    ),
    "channel": "{% if context %}{{ context }}\n\n{% endif %}Question: {{ question }}",
}
CHANNEL_PROMPT = "Answer:"
"""Stands before the choice, and that before the text, where `channel` reads the other way round."""


_SANDBOX = ImmutableSandboxedEnvironment(keep_trailing_newline=True, undefined=StrictUndefined)


@dataclass(frozen=True, slots=True)
class EncodedQuestion:
    """A question as token ids.

    Attributes:
        prefix: ids that all choices share: the prompt.
        continuations: ids of each choice, from the seam on; one letter token each for `letter`.
        lengths: what each choice's log-probability is divided by (1, its tokens, or its bytes).
        answer: index of the right choice, -1 if unknown.
        key: 32 bits that name the question in noise counters.
        truncated: whether the context was cut.
        premise: the same choices after a prompt without content, whose scores are subtracted; None: nothing is.
        given: how many tokens each continuation begins with that are read but not scored: the choice itself, where
            `channel` scores the text behind it; (): none.
        tree: whether choices share the tokens that they begin with (`abmll.prompts.branches.tree`), which changes no
            score, only how much is computed.
    """

    prefix: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]
    lengths: tuple[float, ...]
    answer: int
    key: int
    truncated: bool
    premise: "EncodedQuestion | None" = None
    given: tuple[int, ...] = ()
    tree: bool = False

    @property
    def tokens(self) -> int:
        """Length of the packed row, and of the last tokens, which are read alone."""
        return len(self.prefix) + len(self.continuations) + fed_tokens(self.continuations, self.tree)

    @property
    def lengths_in_tokens(self) -> tuple[int, int]:
        """Of the prompt, and of all that goes on from it."""
        return len(self.prefix), sum(len(c) for c in self.continuations)


SEPARATOR = "\n\n"
"""After each example in a prompt."""
MOST_REMEMBERED = 1 << 17
"""Tokens of encoded questions that are kept, about 5 MB: memory must not grow with the number of tasks or rows."""


LETTER_PREMISE = (
    "likelihood.premise with likelihood.kind=letter: without a question a letter says nothing of the choice behind it; "
    "use likelihood.kind=cloze, or likelihood.premise=null"
)


CHANNEL = "likelihood.kind=channel puts the choice before the text and scores the text: {}"
PLAIN_CHANNEL = "it has a template of its own, likelihood.template=plain"
PREMISED_CHANNEL = "a premise would be taken from all choices alike; use likelihood.premise=null"


def check_kind(kind: LikelihoodKind, template: str, premise: str | None) -> None:
    """Refuse a way of reading that a template or a premise does not go with.

    Raises:
        AbmllError: says what to use.
    """
    if premise is not None and kind == "letter":
        raise AbmllError(LETTER_PREMISE)
    if kind == "channel" and template != "plain":
        raise AbmllError(CHANNEL.format(PLAIN_CHANNEL))
    if kind == "channel" and premise is not None:
        raise AbmllError(CHANNEL.format(PREMISED_CHANNEL))


class MarkedText(str):
    """A text in which what a user wrote is marked already, so that the control tokens of a template stay: examples."""

    __slots__ = ()


class Encoder:
    """Turns questions into token ids, remembers the latest ones, and counts what it had to cut.

    Args:
        tokenizer: a Hugging Face tokenizer.
        kind: `cloze` (each choice is a continuation), `letter` (options listed, the letter is the answer) or `channel`
            (the context and the stem are a continuation of each choice).
        normalisation: what a score is divided by, but for `letter`: nothing (`sum`), its tokens, or its UTF-8 bytes.
        template: "plain", "chat" (the tokenizer's own chat template around the plain prompt), or a Jinja template
            over `context`, `question`, `choices`, `letters`. Those of the user and of the tokenizer are rendered in
            Jinja's sandbox and in a process of their own, with limits (`abmll.prompts.rendering`). A space goes between
            prompt and answer, but not after a chat template or a prompt that ends in white space by itself.
        max_tokens: longest prompt plus choice. A longer question loses a part of its context, see `cut`, never its
            stem or its choices: these are kept whole even where they alone are longer.
        limit: the model's own number of positions, which `max_tokens` cannot exceed; a question whose stem and
            choices do not fit is an error. None: no limit.
        premise: what stands where a question's own text would, in the prompt whose scores are subtracted from those of
            every choice (`EncodedQuestion.premise`); None: nothing is subtracted.

    Attributes:
        truncated: the questions whose context was cut.
        cut: which part of a long context is left out; of its middle, so that as many words stay before it as after.
    """

    cut: Cut = "start"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        kind: LikelihoodKind = "cloze",
        normalisation: Normalisation = "token",
        template: str = "plain",
        max_tokens: int = 512,
        limit: int | None = None,
        *,
        premise: str | None = None,
    ) -> None:
        check_kind(kind, template, premise)
        self.premise = premise
        self.tokenizer, self.kind, self.normalisation = tokenizer, kind, normalisation
        self.chat, self.limit = template == "chat", limit
        self.max_tokens = max_tokens if limit is None else min(max_tokens, limit)
        self.truncated: set[Question] = set()
        self._cache: OrderedDict[Question, EncodedQuestion] = OrderedDict()
        self._remembered = 0
        self._own = None if template in ("plain", "chat") else template
        self._plain = _SANDBOX.from_string(TEMPLATES[kind])
        self._control = ControlTokens(tokenizer)
        if self._own is not None:
            try:
                check_template(self._own)
            except TemplateError as error:
                raise AbmllError(f"likelihood.template is not a valid template: {error}") from error

    def __call__(self, question: Question) -> EncodedQuestion:
        """Token ids of a question; of one with examples, with those that fit before it.

        Raises:
            AbmllError: more options than letters, a letter that is no single token, an answer without a token, or a
                question that does not fit the model; or a text holds the name of a control token, which the tokenizer
                cannot write as text.
        """
        encoded = self._remember(question)
        if self.premise is None:
            return encoded
        return replace(encoded, premise=self._remember(without_content(question.choices, self.premise)))

    def _remember(self, question: Question) -> EncodedQuestion:
        found = self._cache.get(question)
        if found is None:
            try:
                found = self._cache[question] = self._encode(*self._prompted(question))
            except NoOtherWay as error:
                raise AbmllError(f"question {question.id!r}: {error}") from error
            self._remembered += found.tokens
            while self._remembered > MOST_REMEMBERED:
                self._remembered -= self._cache.popitem(last=False)[1].tokens
        else:
            self._cache.move_to_end(question)
        return found

    def forget(self) -> None:
        """Drop what was kept of the questions so far, so that memory does not grow with their number."""
        self._cache.clear()
        self.truncated.clear()

    def prompt(self, question: Question, context: str | None = None) -> str:
        """The text before the answer, with another context in place of the question's own if one is given.

        Of `channel`, the text behind the answer.
        """
        return self._control.unmark(self._marked_prompt(question, context))

    def example(self, question: Question) -> MarkedText:
        """A question with its right answer, for the context of others.

        Raises:
            AbmllError: the answer is not known.
        """
        if question.answer is None:
            raise AbmllError(f"example {question.id!r} has no answer to show")
        prompt, separator, (right,) = self._texts(question, "", question.context, (question.answer,))
        return MarkedText(prompt + separator + right)

    def with_examples(self, question: Question, examples: Sequence[Question]) -> Question:
        """The question with as many of the examples as fit in front of its context, each as prompt and right answer.

        Examples are taken in their order; one that does not fit any more is left out, a shorter one after it may fit.
        The question's own tokens come first: what is left of `max_tokens` is for examples.

        Args:
            question: to be asked.
            examples: labelled ones.

        Raises:
            AbmllError: an example has no answer, or the template is a chat.
        """
        if self.kind == "channel":  # they stand before the choice, their question's context after it
            return QuestionWithExamples.of(question, examples)
        shown = "".join(self.fitting(question, examples))
        return replace(question, context=MarkedText(shown + self.marked(question.context)))

    def fitting(self, question: Question, examples: Sequence[Question]) -> list[MarkedText]:
        """The examples that fit in front of a question, as they stand there; see `with_examples`."""
        if self.chat:
            raise AbmllError(
                "adaptation.in_context needs likelihood.template=plain or a template of your own, not chat"
            )
        asked = self(question)
        taken = _length(asked.prefix, asked.continuations) if self.kind == "channel" else asked.tokens
        left, shown = self.max_tokens - taken, list[MarkedText]()
        for example in examples:
            text = MarkedText(self.example(example) + SEPARATOR)
            size = self.count(text)
            if size <= left:
                shown.append(text)
                left -= size
        return shown

    def marked(self, text: str) -> MarkedText:
        """A text of a user's, see `ControlTokens.mark`; one that is marked already as it is."""
        return text if isinstance(text, MarkedText) else MarkedText(self._control.mark(text))

    def count(self, text: MarkedText) -> int:
        """Tokens of a text that stands inside another."""
        return len(self._control.ids(text, add_special_tokens=False))

    def _prompted(self, question: Question) -> tuple[Question, str]:
        """A question with examples as a plain one, these in its context, or as text where they stand apart from it."""
        if not isinstance(question, QuestionWithExamples):
            return question, ""
        plain = Question(**{field.name: getattr(question, field.name) for field in fields(Question)})
        if self.kind == "channel":
            return plain, "".join(self.fitting(plain, question.examples))
        return self.with_examples(plain, question.examples), ""

    def _marked_prompt(self, question: Question, context: str | None) -> str:
        values = {
            "context": self.marked(question.context if context is None else context),
            "question": self.marked(question.question),
            "choices": tuple(map(self.marked, question.choices)),
            "letters": LETTERS,
        }
        try:
            text = self._plain.render(values) if self._own is None else self._render_own(self._own, values)
        except TemplateError as error:
            raise AbmllError(f"likelihood.template failed on question {question.id!r}: {error}") from error
        return self._in_chat(text) if self.chat else text

    def _render_own(self, template: str, values: dict[str, Any]) -> str:
        """A template may put two texts side by side, which must not make a control token that is in neither."""
        text = render(template, values)
        if steering := self._control.count(text):
            fence = self._control.fenced
            texts = {name: fence(values[name]) for name in ("context", "question")}
            fenced = render(template, {**values, **texts, "choices": tuple(map(fence, values["choices"]))})
            if self._control.count(fenced) != steering:
                return fenced
        return text

    def _in_chat(self, text: str) -> str:
        own = type(self.tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template
        message = [{"role": "user", "content": text}]
        try:
            if own:  # a tokenizer with code of its own, and no template
                return self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
            return render_chat(self.tokenizer.get_chat_template(), text, self.tokenizer.special_tokens_map)
        except Exception as error:  # whatever a tokenizer raises that has no template, or fails
            raise AbmllError(
                f"likelihood.template is 'chat', but the tokenizer's chat template fails: {error}"
            ) from error

    def _encode(self, question: Question, shown: str) -> EncodedQuestion:
        if self.kind == "letter" and len(question.choices) > len(LETTERS):
            raise AbmllError(
                f"question {question.id!r} has {len(question.choices)} choices, letters go to 26; use cloze"
            )
        texts, every = partial(self._texts, question, shown), range(len(question.choices))

        def size(which: Sequence[int], context: str) -> int:
            return max(map(len, ids_of_all(self._ids, *texts(context, which), self._inner_ids)))

        context = question.context
        prefix, continuations = split_at_seam(self._ids, *texts(context, every), self._inner_ids)
        if context and (whole := _length(prefix, continuations)) > self.max_tokens:
            longest = max(every, key=lambda i: len(continuations[i]))
            for asked in ((longest,), every):
                kept = longest_fitting(question.context, self.cut, whole, partial(size, asked), self.max_tokens)
                context = type(question.context)(kept)  # of what is marked, a part is marked too
                if not context or size(every, context) <= self.max_tokens:
                    break  # else, with another context, another answer is the longest
            prefix, continuations = split_at_seam(self._ids, *texts(context, every), self._inner_ids)
        if context != question.context:
            self.truncated.add(question)
        self._check(question, prefix, continuations)
        given = self._given(question, shown, prefix, continuations)
        return EncodedQuestion(
            prefix,
            continuations,
            self._lengths(question, context, continuations, given),
            -1 if question.answer is None else question.answer,
            _question_key(question, self._control.unmark(shown + question.context)),
            context != question.context,
            given=given,
        )

    def _texts(
        self, question: Question, shown: str, context: str, which: Sequence[int]
    ) -> tuple[str, str, Sequence[str]]:
        """The prompt, what goes between it and what is behind it, and that, for each of some choices."""
        prompt = self._marked_prompt(question, context)
        if self.kind == "channel":
            choices = [self.marked(question.choices[k]) for k in which]
            return shown + CHANNEL_PROMPT, " ", [f"{choice}\n{prompt}" for choice in choices]
        separator = "" if self.chat or prompt[-1:].isspace() else " "
        if self.kind == "letter":
            return prompt, separator, [LETTERS[k] for k in which]
        return prompt, separator, [self.marked(question.choices[k]) for k in which]

    def _given(
        self, question: Question, shown: str, prefix: tuple[int, ...], continuations: tuple[tuple[int, ...], ...]
    ) -> tuple[int, ...]:
        """Tokens of the choice itself in each continuation; one that holds some of the text, too, is scored."""
        if self.kind != "channel":
            return ()
        choices = [f"{self.marked(choice)}\n" for choice in question.choices]
        alone = ids_of_all(self._ids, shown + CHANNEL_PROMPT, " ", choices, self._inner_ids)
        return tuple(
            max(0, common_length(ids, (*prefix, *behind)) - len(prefix))
            for ids, behind in zip(alone, continuations, strict=True)
        )

    def _ids(self, text: str) -> list[int]:
        """Ids of a text; an end-of-sequence token that a tokenizer appends by itself is no part of an answer."""
        return self._open_ended(self._control.ids(text, add_special_tokens=not self.chat))

    def _inner_ids(self, text: str) -> list[int]:
        """Ids of the end of a text, whose beginning is encoded by itself."""
        return self._open_ended(self._control.ids(text, add_special_tokens=False))

    def _open_ended(self, ids: list[int]) -> list[int]:
        return ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids

    def _lengths(
        self, question: Question, context: str, continuations: tuple[tuple[int, ...], ...], given: tuple[int, ...]
    ) -> tuple[float, ...]:
        if self.kind == "letter" or self.normalisation == "sum":
            return (1.0,) * len(continuations)
        if self.normalisation == "token":
            scored = zip(continuations, given or (0,) * len(continuations), strict=True)
            return tuple(float(len(tokens) - unscored) for tokens, unscored in scored)
        if self.kind == "channel":
            text = self._control.unmark(self._marked_prompt(question, context))
            return (float(len(text.encode("utf-8", "replace"))),) * len(continuations)
        return tuple(float(len(choice.encode("utf-8", "replace"))) for choice in question.choices)

    def _check(self, question: Question, prefix: tuple[int, ...], continuations: tuple[tuple[int, ...], ...]) -> None:
        if not prefix or not all(continuations):
            raise AbmllError(f"question {question.id!r}: a choice has no token of its own after the prompt")
        if self.kind == "letter" and (
            any(len(c) != 1 for c in continuations) or len(set(continuations)) != len(continuations)
        ):
            raise AbmllError(
                f"likelihood 'letter': this tokenizer does not write each answer letter as one token after the prompt "
                f"(question {question.id!r}); use `likelihood.kind=cloze`"
            )
        longest = _length(prefix, continuations)
        if self.limit is not None and longest > self.limit:
            raise AbmllError(
                f"question {question.id!r} needs {longest} tokens for its stem and choices, the model has "
                f"{self.limit} positions; shorten or remove it"
            )


def _length(prefix: Sequence[int], continuations: Sequence[Sequence[int]]) -> int:
    return len(prefix) + max(len(c) for c in continuations)


def _question_key(question: Question, context: str) -> int:
    text = "\x1f".join((question.id, context, question.question, *question.choices))
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=4).digest(), "little")
