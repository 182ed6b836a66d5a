"""Encoded questions -> ChoiceBatch: where each token goes, to which sizes rows are padded, what is batched together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from jaxtyping import Int

from abmll.prompts.batches import BatchSignature, ChoiceBatch
from abmll.prompts.encode import EncodedQuestion


def bucket(size: int) -> int:
    """The next of 8, 16, 24, 32, 48, 64, 96, 128, 192, ...: few sizes, at most half as large again from 16 on.

    >>> [bucket(size) for size in (1, 9, 24, 33, 49, 97, 300)]
    [8, 16, 24, 48, 64, 128, 384]
    """
    power = max(8, 1 << (size - 1).bit_length())
    between = 3 * power // 4
    return between if power > 16 and size <= between else power


def collate(
    questions: Sequence[EncodedQuestion],
    *,
    share_prefix: bool = True,
    buckets: bool = False,
    limit: int | None = None,
    least: int = 1,
) -> ChoiceBatch:
    """Pad encoded questions into one batch, on the CPU.

    Args:
        questions: at least one.
        share_prefix: one row per question; else one row per choice. Where a choice is one token, as letters are,
            nothing of it is fed in, and a question of such choices has one row in any case.
        buckets: pad T and K on to `bucket` sizes, P and M to one of fewer still. N and B stay as they are.
        limit: the model's number of positions, beyond which no bucket pads rows whose positions the model counts.
        least: buckets of fewer T, P or M are not used.

    >>> question = EncodedQuestion((5, 6, 7), ((8, 9), (4,)), (2.0, 1.0), answer=0, key=3, truncated=False)
    >>> batch = collate([question])
    >>> batch.input_ids.tolist(), batch.read_column.tolist()
    ([[5, 6, 7, 8]], [2, 3])
    >>> batch.target_read.tolist(), batch.target_token.tolist(), batch.target_choice.tolist()
    ([0, 1, 0], [8, 9, 4], [0, 0, 1])
    """
    premises = _premises(questions)
    plan = _Plan.of((*questions, *premises), share_prefix)
    sizes = plan.signature()._replace(questions=len(questions), premises=len(premises))
    sizes = _widened(sizes, limit, least) if buckets else sizes
    batch = ChoiceBatch.zeros(sizes)
    _fill_rows(batch, plan)
    _fill_targets(batch, plan)
    _fill_questions(batch, plan, questions, premises)
    return batch


def _premises(questions: Sequence[EncodedQuestion]) -> list[EncodedQuestion]:
    """The different premises; a question without one, among others, is a mistake of the caller."""
    premises = list(dict.fromkeys(question.premise for question in questions))
    if None in premises and len(premises) > 1:
        raise ValueError("some questions have a premise and some have none: they were encoded by different settings")
    return [premise for premise in premises if premise is not None]


def _widened(sizes: BatchSignature, limit: int | None, least: int) -> BatchSignature:
    columns = bucket(max(sizes.columns, least))
    if limit is not None and sizes.causal:
        columns = max(sizes.columns, min(columns, limit))
    places = _few(max(sizes.reads, sizes.targets, least))  # that the head reads costs little, another shape a lot
    return sizes._replace(columns=columns, reads=places, targets=places, choices=bucket(sizes.choices))


def _few(size: int) -> int:
    """16, 64, 256 or, beyond, a bucket: where the head reads so much, reading more costs more than another shape.

    >>> [_few(size) for size in (1, 17, 65, 257)]
    [16, 64, 256, 384]
    """
    return next((few for few in (16, 64, 256) if size <= few), bucket(size))


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where things go, before padding: of each of the N rows, and of each of the C choices.

    Attributes:
        prompts, keys: of each row.
        start: columns of each row's prompt.
        width: columns of each row.
        choices: tokens of each choice; all but the last are fed in, for the last predicts nothing.
        tokens: how many they are.
        row, question, number: of each choice.
        column: where a choice's first token is fed in.
        counter: that token's place in the unpadded question.
    """

    prompts: list[tuple[int, ...]]
    keys: list[int]
    start: Int[np.ndarray, " N"]
    width: Int[np.ndarray, " N"]
    choices: list[tuple[int, ...]]
    tokens: Int[np.ndarray, " C"]
    row: Int[np.ndarray, " C"]
    question: Int[np.ndarray, " C"]
    number: Int[np.ndarray, " C"]
    column: Int[np.ndarray, " C"]
    counter: Int[np.ndarray, " C"]

    @classmethod
    def of(cls, questions: Sequence[EncodedQuestion], share_prefix: bool) -> "_Plan":
        """Walk through the choices, opening a row where one begins."""
        rows: list[EncodedQuestion] = []
        widths: list[int] = []
        cells: list[tuple[int, ...]] = []
        for b, question in enumerate(questions):
            together, counter = _in_one_row(question, share_prefix), len(question.prefix)
            for k, choice in enumerate(question.continuations):
                if k == 0 or not together:
                    rows.append(question)
                    widths.append(len(question.prefix))
                cells.append((len(choice), len(rows) - 1, b, k, widths[-1], counter))
                widths[-1] += len(choice) - 1
                counter += len(choice) - 1
        tokens, row, of_question, number, column, counters = np.array(cells).T
        prompts = [question.prefix for question in rows]
        return cls(
            prompts=prompts,
            keys=[question.key for question in rows],
            start=np.array([len(prompt) for prompt in prompts]),
            width=np.array(widths),
            choices=[choice for question in questions for choice in question.continuations],
            tokens=tokens,
            row=row,
            question=of_question,
            number=number,
            column=column,
            counter=counters,
        )

    def signature(self) -> BatchSignature:
        """Sizes without any bucket."""
        fed_by_row = np.bincount(self.row[self.tokens > 1], minlength=1)
        return BatchSignature(
            rows=len(self.prompts),
            columns=int(self.width.max()),
            reads=int((self.width - self.start + 1).sum()),
            targets=int(self.tokens.sum()),
            questions=int(self.question[-1]) + 1,
            choices=int(self.number.max()) + 1,
            causal=bool(fed_by_row.max() <= 1),
        )


def _in_one_row(question: EncodedQuestion, share_prefix: bool) -> bool:
    return share_prefix or all(len(tokens) == 1 for tokens in question.continuations)


def _runs(sizes: Int[np.ndarray, " R"]) -> Int[np.ndarray, " total"]:
    """0, 1, ... size - 1 for each size, one after the other."""
    return np.arange(sizes.sum()) - np.repeat(sizes.cumsum() - sizes, sizes)


def _fill_rows(batch: ChoiceBatch, plan: _Plan) -> None:
    """What is fed in: prompts and choices as runs of tokens, each with a row, a first column and so on."""
    fed = [choice[:-1] for choice in plan.choices]
    sizes, nothing = np.concatenate([plan.start, plan.tokens - 1]), np.zeros_like(plan.start)

    def spread(of_prompts: Int[np.ndarray, " N"], of_choices: Int[np.ndarray, " C"]) -> Int[np.ndarray, " total"]:
        return np.repeat(np.concatenate([of_prompts, of_choices]), sizes)

    within = _runs(sizes)
    place = spread(np.arange(len(nothing)), plan.row), spread(nothing, plan.column) + within
    batch.input_ids.numpy()[place] = np.fromiter(chain(*plan.prompts, *fed), np.int64, len(within))
    batch.position_ids.numpy()[place] = spread(nothing, plan.start[plan.row]) + within
    batch.token_index.numpy()[place] = spread(nothing, plan.counter) + within
    batch.segment.fill_(-1).numpy()[place] = spread(nothing, 1 + plan.number)
    batch.row_keys.numpy()[:] = plan.keys


def _fill_targets(batch: ChoiceBatch, plan: _Plan) -> None:
    """From a row's last prompt token on, every token fed in predicts another one."""
    reads = plan.width - plan.start + 1
    first = reads.cumsum() - reads  # the read that is the last token of each row's prompt
    count, total = int(reads.sum()), int(plan.tokens.sum())
    batch.read_row.numpy()[:count] = np.repeat(np.arange(len(reads)), reads)
    batch.read_column.numpy()[:count] = np.repeat(plan.start - 1, reads) + _runs(reads)
    within, row = _runs(plan.tokens), np.repeat(plan.row, plan.tokens)
    fed_before = np.repeat(plan.column - plan.start[plan.row], plan.tokens)
    batch.target_read.numpy()[:total] = first[row] + np.where(within == 0, 0, fed_before + within)
    batch.target_token.numpy()[:total] = np.fromiter(chain(*plan.choices), np.int64, total)
    batch.target_choice.fill_(batch.slots).numpy()[:total] = np.repeat(
        plan.question * batch.lengths.shape[1] + plan.number, plan.tokens
    )


def _fill_questions(
    batch: ChoiceBatch, plan: _Plan, questions: Sequence[EncodedQuestion], premises: Sequence[EncodedQuestion]
) -> None:
    asked = plan.question < len(questions)
    here, after = (plan.question[asked], plan.number[asked]), plan.number[~asked]
    batch.lengths.fill_(1.0).numpy()[here] = np.fromiter(chain(*(q.lengths for q in questions)), np.float32)
    batch.choice_mask.numpy()[here] = True
    batch.answers.numpy()[:] = [q.answer for q in questions]
    number = {premise: i for i, premise in enumerate(premises)}
    lengths = np.fromiter(chain(*(p.lengths for p in premises)), np.float32)
    batch.premise_lengths.fill_(1.0).numpy()[plan.question[~asked] - len(questions), after] = lengths
    batch.premise_of.numpy()[:] = [0 if q.premise is None else number[q.premise] for q in questions]


def sorted_batches(
    questions: Sequence[EncodedQuestion], max_tokens: int, *, share_prefix: bool = True, buckets: bool = False
) -> Iterator[list[int]]:
    """Indices of questions in batches of similar length with at most `max_tokens` padded tokens each (one at least)."""
    order = sorted(range(len(questions)), key=lambda i: (questions[i].tokens, i))
    batch: list[int] = []
    seen: set[EncodedQuestion | None] = set()
    rows = width = 0
    for i in order:
        premise = questions[i].premise
        here = _rows_and_width(questions[i], share_prefix)
        after = (0, 0) if premise is None else _rows_and_width(premise, share_prefix)
        rows, width = rows + here[0] + (0 if premise in seen else after[0]), max(width, here[1], after[1])
        if batch and rows * (bucket(width) if buckets else width) > max_tokens:
            yield batch
            batch, seen, rows, width = [], set(), here[0] + after[0], max(here[1], after[1])
        batch.append(i)
        seen.add(premise)
    if batch:
        yield batch


def _rows_and_width(question: EncodedQuestion, share_prefix: bool) -> tuple[int, int]:
    """Rows of a question, and how many columns the widest of them takes."""
    fed = [len(c) - 1 for c in question.continuations]
    if _in_one_row(question, share_prefix):
        return 1, len(question.prefix) + sum(fed)
    return len(fed), len(question.prefix) + max(fed)
