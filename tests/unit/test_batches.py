"""ChoiceBatch: where every token goes, who may look at whom, and which questions go together."""

import random
from collections.abc import Sequence
from itertools import chain, pairwise

import pytest
import torch

from abmll.tasks.batches import ChoiceBatch, collate, sorted_batches
from abmll.tasks.prompts import EncodedQuestion

KINDS = {  # share_prefix, letter
    "packed": (True, False),
    "apart": (False, False),
    "letter": (True, True),
    "letter apart": (False, True),
}


def encoded(prefix: int, *choices: int, key: int = 0, answer: int = 0, letter: bool = False) -> EncodedQuestion:
    """A question with so many tokens in its prompt and in each choice; every token is another number."""
    numbers = iter(range(100 * (key + 1), 10_000))
    return EncodedQuestion(
        tuple(next(numbers) for _ in range(prefix)),
        tuple(tuple(next(numbers) for _ in range(1 if letter else n)) for n in choices),
        tuple(float(n) for n in choices),
        answer,
        key,
        False,
    )


def questions_for(kind: str) -> list[EncodedQuestion]:
    """Prompts and choices of all lengths, two to five choices, some of one token: nothing of those is fed in."""
    shapes = [(5, 2, 4), (1, 1, 1, 1), (9, 3, 1, 2, 5), (3, 6, 6), (4, 1, 2, 1, 3, 2)]
    return [encoded(*shape, key=i, answer=i % 2, letter="letter" in kind) for i, shape in enumerate(shapes)]


def batch_of(kind: str, questions: Sequence[EncodedQuestion]) -> ChoiceBatch:
    share_prefix, letter = KINDS[kind]
    return collate(questions, share_prefix=share_prefix, letter=letter)


Cell = tuple[int, int, int, int]  # token, position, choice (-1: the prompt), place in the unpadded question


def rows_by_hand(kind: str, question: EncodedQuestion) -> list[list[Cell]]:
    """The rows of a question without padding: its prompt, then all its choices or one; last tokens stay out."""
    share_prefix, letter = KINDS[kind]
    start = len(question.prefix)
    prompt = [(token, i, -1, i) for i, token in enumerate(question.prefix)]
    if letter:
        return [prompt]
    choices, place = [], start
    for k, tokens in enumerate(question.continuations):
        choices.append([(token, start + i, k, place + i) for i, token in enumerate(tokens[:-1])])
        place += len(tokens) - 1
    return [prompt + list(chain(*choices))] if share_prefix else [prompt + choice for choice in choices]


def placed(kind: str, questions: Sequence[EncodedQuestion]) -> list[tuple[int, dict[int, Cell]]]:
    """Key of each row of a batch, and what stands in which column: prompts end where the longest one ends."""
    width = max(len(q.prefix) for q in questions)
    return [
        (q.key, dict(enumerate(row, start=width - len(q.prefix)))) for q in questions for row in rows_by_hand(kind, q)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_stands_in_its_column_with_its_position_and_counter(kind: str) -> None:
    questions = questions_for(kind)
    batch, rows = batch_of(kind, questions), placed(kind, questions)
    assert batch.input_ids.shape == (len(rows), 1 + max(max(cells) for _, cells in rows))
    assert batch.row_keys.tolist() == [key for key, _ in rows]
    for i, (_, cells) in enumerate(rows):
        for column in range(batch.input_ids.shape[1]):
            token, position, choice, place = cells.get(column, (0, 0, -2, 0))
            assert batch.segment[i, column] == choice + 1
            assert batch.input_ids[i, column] == token
            assert batch.position_ids[i, column] == position
            assert batch.token_index[i, column] == place


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_sees_its_prompt_and_the_earlier_tokens_of_its_own_choice_and_nothing_else(kind: str) -> None:
    questions = questions_for(kind)
    mask, rows = batch_of(kind, questions).attention_mask(), placed(kind, questions)
    assert mask.dtype == torch.bool
    for i, (_, cells) in enumerate(rows):
        for asking in range(mask.shape[-1]):
            for asked in range(mask.shape[-1]):
                allowed = asking == asked  # padding too, or a softmax would have nothing to go over
                if asked < asking and asking in cells and asked in cells:
                    allowed = cells[asked][2] in (-1, cells[asking][2])
                assert mask[i, 0, asking, asked] == allowed, f"row {i}: {asking} -> {asked}"


@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_token_is_read_where_the_token_before_it_stands(kind: str) -> None:
    questions = questions_for(kind)
    batch, rows = batch_of(kind, questions), placed(kind, questions)
    share_prefix, letter = KINDS[kind]
    most, expected, row = 5, [], 0
    for b, question in enumerate(questions):
        for k, tokens in enumerate(question.continuations):
            cells = rows[row][1]
            for i, token in enumerate(tokens):
                before = len(question.prefix) - 1 + i, (k if i else -1)  # position, choice
                column = next(c for c, cell in cells.items() if (cell[1], cell[2]) == before)
                expected.append((row, column, token, b * most + k))
            row += not (share_prefix or letter)
        row += share_prefix or letter
    found = zip(batch.target_row, batch.target_column, batch.target_token, batch.target_choice, strict=True)
    assert sorted(tuple(int(x) for x in target) for target in found) == sorted(expected)
    assert int(batch.target_column.min()) >= batch.prefix_columns - 1, "the logits kept begin there"


@pytest.mark.parametrize("kind", KINDS)
def test_questions_with_fewer_choices_are_masked_and_their_lengths_harmless(kind: str) -> None:
    questions = questions_for(kind)
    batch = batch_of(kind, questions)
    for b, question in enumerate(questions):
        count = len(question.continuations)
        assert batch.choice_mask[b].tolist() == [True] * count + [False] * (5 - count)
        assert batch.lengths[b].tolist() == [*question.lengths] + [1.0] * (5 - count)
    assert batch.answers.tolist() == [q.answer for q in questions]
    assert batch.questions == len(questions)


def counters(batch: ChoiceBatch) -> dict[int, set[tuple[int, int, int]]]:
    """Question key -> {(counter, token, position)} of its tokens, over all its rows."""
    out: dict[int, set[tuple[int, int, int]]] = {}
    for row, key in enumerate(batch.row_keys.tolist()):
        real = batch.segment[row] >= 0
        columns = (batch.token_index[row][real], batch.input_ids[row][real], batch.position_ids[row][real])
        out.setdefault(key, set()).update(zip(*(c.tolist() for c in columns), strict=True))
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_noise_counters_do_not_depend_on_the_batch(kind: str) -> None:
    questions = questions_for(kind)
    together = counters(batch_of(kind, questions))
    for question in questions:
        alone = counters(batch_of(kind, [question]))[question.key]
        assert together[question.key] == alone
        places = [place for place, _, _ in alone]
        assert len(set(places)) == len(places), "two tokens would share one draw"


def test_choices_share_the_noise_of_their_prompt_packed_or_apart() -> None:
    questions = questions_for("packed")
    assert counters(batch_of("packed", questions)) == counters(batch_of("apart", questions))


def test_a_batch_moves_as_a_whole() -> None:
    batch = batch_of("packed", questions_for("packed"))
    moved = batch.to("meta")
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    assert len(tensors) == 12
    assert all(getattr(moved, name).device.type == "meta" for name in tensors)
    assert (moved.prefix_columns, moved.shared_prefix) == (batch.prefix_columns, batch.shared_prefix)


@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize("max_tokens", [1, 60, 200, 1000, 100_000])
def test_sorted_batches_part_the_questions_and_keep_to_the_padded_size(max_tokens: int, share_prefix: bool) -> None:
    rng = random.Random(max_tokens)
    questions = [  # long prompts with short choices and short prompts with long ones have equal sums
        encoded(rng.choice([2, 40]), *(rng.choice([1, 2, 25]) for _ in range(rng.randint(2, 5))), key=i)
        for i in range(60)
    ]
    batches = list(sorted_batches(questions, max_tokens, share_prefix=share_prefix))
    assert sorted(i for batch in batches for i in batch) == list(range(60))

    def padded(indices: list[int]) -> int:
        return collate([questions[i] for i in indices], share_prefix=share_prefix).input_ids.numel()

    assert all(len(batch) == 1 or padded(batch) <= max_tokens for batch in batches)
    for batch, following in pairwise(batches):
        assert padded([*batch, following[0]]) > max_tokens, "there was room for one more"


def test_sorted_batches_are_of_similar_length_and_empty_for_nothing() -> None:
    questions = [encoded(n, 1, 1, key=n) for n in (9, 2, 7, 3, 8, 1)]
    assert list(sorted_batches(questions, 16)) == [[5, 1, 3], [2, 4], [0]]
    assert list(sorted_batches([], 16)) == []
