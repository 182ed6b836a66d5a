"""Text is not syntax: the tokens by which a model is steered, and texts of users in which their names are plain text.

A tokenizer turns `<|im_end|>` into one token wherever it stands, in a chat template as in a user's row: there it would
close the user's turn, or end an answer before its end. So what a user wrote is marked (by transformers' private
characters, see `mark_control_tokens`) before a template goes around it, and encoded without these tokens. Text without
any of their names is not touched.

Control tokens are a tokenizer's special tokens, and those of its other added tokens that are written like marks, as
`<tool_call>` or `[INST]`. Added words, runs of spaces and tags of HTML are text.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import encode_marked_chat, mark_control_tokens

from abmll.errors import AbmllError

HTML = (
    "a|abbr|article|b|big|blockquote|body|br|caption|center|cite|code|col|dd|del|div|dl|dt|em|figure|font|footer|h[1-6]|"
    "head|header|hr|html|i|img|ins|kbd|li|link|main|meta|nav|ol|p|pre|q|s|samp|script|section|small|span|strike|strong|"
    "style|sub|sup|table|tbody|td|tfoot|th|thead|title|tr|tt|u|ul|var"
)
_MARK = re.compile(rf"(?:<(?!/?(?:{HTML})>)|\[)[^\s]+[>\]]")


class NoOtherWay(AbmllError):
    """A tokenizer can write the name of a control token as that token only."""


def _steers(name: str, special: bool) -> bool:
    """Whether an added token is a control token; some models have special tokens that are words, signs or spaces."""
    word = name.strip()
    return _MARK.fullmatch(name) is not None or (special and len(word) > 1 and not word.isalnum())


class ControlTokens:
    """The control tokens of a tokenizer.

    Args:
        tokenizer: a Hugging Face tokenizer.

    >>> from abmll.models.shapes import byte_tokenizer
    >>> tokens = ControlTokens(byte_tokenizer(512))
    >>> tokens.ids(tokens.mark("Answer: A")) == byte_tokenizer(512)("Answer: A").input_ids
    True
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        added, roles = getattr(tokenizer, "added_tokens_decoder", {}), frozenset(tokenizer.all_special_tokens)
        self._by_name = {
            token.content: number
            for number, token in added.items()
            if _steers(token.content, token.special or token.content in roles)
        }
        self._counted = frozenset(self._by_name.values()) - {tokenizer.unk_token_id}  # which any text may give
        longest_first = sorted(self._by_name, key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._marks = tuple(mark_control_tokens("x", re.compile("x")).split("x"))
        self._marked_names = re.compile(f"{self._marks[0]}(?:{self._names.pattern}){self._marks[1]}")

    def mark(self, text: str) -> str:
        """A text of a user's, in which the names of control tokens are marked as text."""
        marked: str = mark_control_tokens(text, self._names) if self._names.search(text) else text
        return marked

    def fenced(self, text: str) -> str:
        """A marked text that no other can be joined to so that both make the name of a control token."""
        start, end = self._marks
        return f"{start}{text}{end}" if text else text

    def is_marked(self, text: str) -> bool:
        """Whether a text holds any mark."""
        return any(mark in text for mark in self._marks)

    def unmark(self, text: str) -> str:
        """A marked text as a reader should see it."""
        for mark in self._marks:
            text = text.replace(mark, "")
        return text

    def count(self, text: str) -> int:
        """Names of control tokens in a marked text that are not marked, so that they steer."""
        theirs = self._marked_names.sub(self._marks[0], text)
        return sum(self._by_name[name] in self._counted for name in self._names.findall(theirs))

    def ids(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a marked text.

        Args:
            text: what `mark` gave, with whatever a template put around it.
            add_special_tokens: with what the tokenizer puts before and after every text.

        Raises:
            NoOtherWay: the tokenizer cannot write the name of a control token but as that token.
        """
        if not self.is_marked(text):
            ids = self._encoded(text, add_special_tokens)
            if self._steering(ids, add_special_tokens) in (0, self.count(text)):
                return ids
        if not self.count(text):  # the template writes none: the whole is a user's
            ids = self._encoded(self.unmark(text), add_special_tokens, split_special_tokens=True)
            if not self._steering(ids, add_special_tokens):
                return ids
        return self._in_pieces(text, add_special_tokens)

    def _in_pieces(self, text: str, add_special_tokens: bool) -> list[int]:
        before, after = self._frame if add_special_tokens else ((), ())
        try:
            ids = [*before, *encode_marked_chat(self.tokenizer, text), *after]
        except (ValueError, NotImplementedError):
            ids = []
        if not ids or self._steering(ids, add_special_tokens) != self.count(text):
            names = sorted({self.unmark(name) for name in self._marked_names.findall(text)})
            raise NoOtherWay(
                f"the text holds {' and '.join(map(repr, names)) or 'the name of a control token'}, which this model's "
                "tokenizer can write as a control token only: change it in the text"
            )
        return ids

    def _encoded(self, text: str, add_special_tokens: bool, **options: Any) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=add_special_tokens, **options)["input_ids"])

    def _steering(self, ids: Sequence[int], add_special_tokens: bool) -> int:
        """Control tokens among ids, but for those that the tokenizer puts around every text."""
        around = self._around if add_special_tokens else 0
        return sum(map(self._counted.__contains__, ids)) - around

    @cached_property
    def _around(self) -> int:
        return sum(map(self._counted.__contains__, (*self._frame[0], *self._frame[1])))

    @cached_property
    def _frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the tokenizer puts before and after every text."""
        bare, whole = self._encoded("a", False), self._encoded("a", True)
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return tuple(whole[:start]), tuple(whole[start + len(bare) :])
        return (), ()
