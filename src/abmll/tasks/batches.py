"""ChoiceBatch: encoded questions as padded tensors, ready for one forward pass."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from abmll.tasks.prompts import EncodedQuestion


@dataclass(frozen=True)
class ChoiceBatch:
    """B questions of up to K choices as N rows of T tokens (N = B with a shared prefix, else one row per choice).

    Prompts end at column `prefix_columns - 1` in every row (padded on the left), choices follow (padded on the
    right), so the logits that matter are those from column `prefix_columns - 1` on.

    Attributes:
        input_ids: token ids; 0 where padded.
        position_ids: position of each token; choices all go on from the prompt.
        segment: 0 for the prompt, 1 + k for choice k, -1 for padding.
        token_index: place of a token in its unpadded question, for noise counters.
        row_keys: question key of each row, for noise counters.
        target_row, target_column, target_token, target_choice: where each answer token is read: logits at
            (row, column) predict the token, for choice number b * K + k.
        lengths: what each choice's log-probability is divided by; 1 where there is no choice.
        choice_mask: which choices exist.
        answers: right choices, -1 if unknown.
        prefix_columns: width of the prompts' part.
        shared_prefix: whether a row holds all choices of its question, side by side.
    """

    input_ids: Int[Tensor, "N T"]
    position_ids: Int[Tensor, "N T"]
    segment: Int[Tensor, "N T"]
    token_index: Int[Tensor, "N T"]
    row_keys: Int[Tensor, " N"]
    target_row: Int[Tensor, " M"]
    target_column: Int[Tensor, " M"]
    target_token: Int[Tensor, " M"]
    target_choice: Int[Tensor, " M"]
    lengths: Float[Tensor, "B K"]
    choice_mask: Bool[Tensor, "B K"]
    answers: Int[Tensor, " B"]
    prefix_columns: int
    shared_prefix: bool

    @property
    def questions(self) -> int:
        """B."""
        return self.answers.shape[0]

    def attention_mask(self) -> Bool[Tensor, "N 1 T T"]:
        """Who may look at whom: earlier tokens of the prompt or of the same choice; padding at itself only."""
        columns = torch.arange(self.segment.shape[1], device=self.segment.device)
        earlier = columns[:, None] >= columns[None, :]
        asks, told = self.segment[:, :, None], self.segment[:, None, :]
        allowed = earlier & ((told == 0) | (told == asks)) & (told >= 0) & (asks >= 0)
        return (allowed | (columns[:, None] == columns[None, :]))[:, None]

    def to(self, device: torch.device | str) -> "ChoiceBatch":
        """The same batch on another device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {k: v.to(device) for k, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def collate(questions: Sequence[EncodedQuestion], *, share_prefix: bool = True, letter: bool = False) -> ChoiceBatch:
    """Pad encoded questions into one batch, on the CPU.

    Args:
        questions: at least one.
        share_prefix: one row per question; else one row per choice.
        letter: choices are single letters read from the prompt's last position, so no choice token is fed in.
    """
    rows = [row for q in questions for row in _rows(q, share_prefix, letter)]
    width = max(len(q.prefix) for q in questions)
    tail = max(len(row.choices) for row in rows)
    shape = (len(rows), width + tail)
    table = {name: torch.zeros(shape, dtype=torch.int64) for name in ("input_ids", "position_ids", "token_index")}
    segment = torch.full(shape, -1, dtype=torch.int64)
    for i, row in enumerate(rows):
        start, length = width - len(row.prefix), len(row.prefix) + len(row.choices)
        here = (i, slice(start, start + length))
        table["input_ids"][here] = torch.tensor(row.prefix + tuple(token for token, *_ in row.choices))
        positions = [position for _, position, _, _ in row.choices]
        table["position_ids"][here] = torch.tensor([*range(len(row.prefix)), *positions])
        table["token_index"][here] = torch.tensor([*range(len(row.prefix)), *(index for *_, index in row.choices)])
        segment[here] = torch.tensor([0] * len(row.prefix) + [1 + choice for _, _, choice, _ in row.choices])
    return ChoiceBatch(
        **table,
        segment=segment,
        row_keys=torch.tensor([row.key for row in rows]),
        **_targets(questions, share_prefix, letter, width),
        **_choices(questions),
        answers=torch.tensor([q.answer for q in questions]),
        prefix_columns=width,
        shared_prefix=share_prefix,
    )


@dataclass(frozen=True, slots=True)
class _Row:
    prefix: tuple[int, ...]
    choices: tuple[tuple[int, int, int, int], ...]  # token, position, choice, token_index
    key: int


def _rows(question: EncodedQuestion, share_prefix: bool, letter: bool) -> Iterator[_Row]:
    """The tokens fed in: the last token of a choice predicts nothing, so it stays out."""
    start, index, cells = len(question.prefix), len(question.prefix), []
    for choice, tokens in enumerate(question.continuations):
        fed = () if letter else tokens[:-1]
        cells.append([(token, start + i, choice, index + i) for i, token in enumerate(fed)])
        index += len(fed)
    if share_prefix or letter:
        yield _Row(question.prefix, tuple(cell for cell_list in cells for cell in cell_list), question.key)
    else:
        for cell_list in cells:
            yield _Row(question.prefix, tuple(cell_list), question.key)


def _targets(
    questions: Sequence[EncodedQuestion], share_prefix: bool, letter: bool, width: int
) -> dict[str, Int[Tensor, " M"]]:
    most = max(len(q.continuations) for q in questions)
    found: list[tuple[int, int, int, int]] = []
    row = 0
    for b, question in enumerate(questions):
        column = width
        for k, tokens in enumerate(question.continuations):
            if not (share_prefix or letter):
                column = width
            sources = [width - 1, *range(column, column + len(tokens) - 1)]
            found += [(row, source, token, b * most + k) for source, token in zip(sources, tokens, strict=True)]
            column += 0 if letter else len(tokens) - 1
            row += 0 if share_prefix or letter else 1
        row += 1 if share_prefix or letter else 0
    names = ("target_row", "target_column", "target_token", "target_choice")
    return dict(zip(names, torch.tensor(found).unbind(1), strict=True))


def _choices(questions: Sequence[EncodedQuestion]) -> dict[str, Tensor]:
    most = max(len(q.continuations) for q in questions)
    lengths = torch.ones(len(questions), most)
    mask = torch.zeros(len(questions), most, dtype=torch.bool)
    for b, question in enumerate(questions):
        lengths[b, : len(question.lengths)] = torch.tensor(question.lengths)
        mask[b, : len(question.lengths)] = True
    return {"lengths": lengths, "choice_mask": mask}


def sorted_batches(
    questions: Sequence[EncodedQuestion], max_tokens: int, *, share_prefix: bool = True
) -> Iterator[list[int]]:
    """Indices of questions in batches of similar length with at most `max_tokens` padded tokens each (one at least)."""
    order = sorted(range(len(questions)), key=lambda i: (questions[i].tokens, i))
    batch: list[int] = []
    rows = prefix = tail = 0  # prompts are padded on the left, choices on the right, so their widths add up
    for i in order:
        here = _size(questions[i], share_prefix)
        rows, prefix, tail = rows + here[0], max(prefix, here[1]), max(tail, here[2])
        if batch and rows * (prefix + tail) > max_tokens:
            yield batch
            batch, (rows, prefix, tail) = [], here
        batch.append(i)
    if batch:
        yield batch


def _size(question: EncodedQuestion, share_prefix: bool) -> tuple[int, int, int]:
    """Rows of a question, and at most how many columns its prompt and its choices take."""
    fed = [len(c) - 1 for c in question.continuations]
    if share_prefix:
        return 1, len(question.prefix), sum(fed)
    return len(fed), len(question.prefix), max(fed)
