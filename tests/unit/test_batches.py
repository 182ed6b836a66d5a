"""ChoiceBatch: where every token goes, who may look at whom, and which questions go together."""

import random
from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any

import pytest
import torch

from abmll.prompts.batches import BatchSignature, ChoiceBatch
from abmll.prompts.collate import bucket, collate, sorted_batches
from abmll.prompts.encode import EncodedQuestion

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


def batch_of(kind: str, questions: Sequence[EncodedQuestion], **options: Any) -> ChoiceBatch:
    return collate(questions, share_prefix=KINDS[kind][0], **options)


Cell = tuple[int, int, int, int]  # token, position, choice (-1: the prompt), place in the unpadded question


def rows_by_hand(kind: str, question: EncodedQuestion) -> list[list[Cell]]:
    """The rows of a question without padding: its prompt, then all its choices or one; last tokens stay out."""
    start = len(question.prefix)
    prompt = [(token, i, -1, i) for i, token in enumerate(question.prefix)]
    choices, place = [], start
    for k, tokens in enumerate(question.continuations):
        choices.append([(token, start + i, k, place + i) for i, token in enumerate(tokens[:-1])])
        place += len(tokens) - 1
    together = KINDS[kind][0] or not any(choices)  # nothing is fed in of choices of one token
    return [prompt + list(chain(*choices))] if together else [prompt + choice for choice in choices]


def placed(kind: str, questions: Sequence[EncodedQuestion]) -> list[tuple[int, dict[int, Cell]]]:
    """Key of each row of a batch, and what stands in which column: padding comes last."""
    return [(q.key, dict(enumerate(row))) for q in questions for row in rows_by_hand(kind, q)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_stands_in_its_column_with_its_position_and_counter(kind: str) -> None:
    questions = questions_for(kind)
    batch, rows = batch_of(kind, questions), placed(kind, questions)
    assert batch.input_ids.shape == (len(rows), 1 + max(max(cells) for _, cells in rows))
    assert batch.row_keys.tolist() == [key for key, _ in rows]
    for i, (_, cells) in enumerate(rows):
        for column in range(batch.input_ids.shape[1]):
            token, position, choice, place = cells.get(column, (0, 0, -2, 0))
            seen_to = max((c for c, cell in cells.items() if choice in (-1, cell[2])), default=-1)
            assert batch.reach[i, column] == (0 if choice == -2 else seen_to + 1)
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


def targets_by_hand(kind: str, questions: Sequence[EncodedQuestion], most: int) -> list[tuple[int, int, int, int]]:
    """(row, column, token, choice) of each answer token, found by the position and choice of the token before it."""
    rows, expected, row = placed(kind, questions), [], 0
    for b, question in enumerate(questions):
        shared = len(rows_by_hand(kind, question)) == 1
        for k, tokens in enumerate(question.continuations):
            cells = rows[row if shared else row + k][1]
            for i, token in enumerate(tokens):
                before = len(question.prefix) - 1 + i, (k if i else -1)  # position, choice
                column = next(c for c, cell in cells.items() if (cell[1], cell[2]) == before)
                expected.append((row if shared else row + k, column, token, b * most + k))
        row += 1 if shared else len(question.continuations)
    return expected


def targets_of(batch: ChoiceBatch) -> list[tuple[int, int, int, int]]:
    """The same of a batch, less its padding."""
    reads = list(zip(batch.read_row.tolist(), batch.read_column.tolist(), strict=True))
    columns = (batch.target_read, batch.target_token, batch.target_choice)
    found = zip(*(column.tolist() for column in columns), strict=True)
    return [(*reads[read], token, choice) for read, token, choice in found if choice < batch.lengths.numel()]


@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_token_is_read_where_the_token_before_it_stands(kind: str) -> None:
    questions = questions_for(kind)
    batch = batch_of(kind, questions)
    assert sorted(targets_of(batch)) == sorted(targets_by_hand(kind, questions, most=5))


@pytest.mark.parametrize("kind", KINDS)
def test_each_place_is_read_once_and_for_a_token(kind: str) -> None:
    batch = batch_of(kind, questions_for(kind))
    reads = list(zip(batch.read_row.tolist(), batch.read_column.tolist(), strict=True))
    assert len(set(reads)) == len(reads)
    assert set(batch.target_read.tolist()) == set(range(len(reads)))
    if "letter" in kind:
        assert len(reads) == batch.questions, "the letters of a question are read from one place"


@pytest.mark.parametrize(
    ("shapes", "share_prefix", "causal"),
    [
        ([(4, 2, 3), (5, 1, 1)], True, False),
        ([(4, 2, 3), (5, 1, 1)], False, True),
        ([(4, 1, 1, 1), (5, 1, 1)], True, True),
        ([(4, 1, 3), (5, 2, 1)], True, True),
        ([(4, 3)], True, True),
    ],
)
def test_a_batch_is_causal_if_no_row_holds_tokens_of_two_choices(
    shapes: list[tuple[int, ...]], share_prefix: bool, causal: bool
) -> None:
    batch = collate([encoded(*shape, key=i) for i, shape in enumerate(shapes)], share_prefix=share_prefix)
    assert batch.causal == causal
    if causal:  # what a model assumes that is told nothing
        columns = torch.arange(batch.input_ids.shape[1]).expand_as(batch.input_ids)
        assert torch.equal(batch.position_ids[batch.reach > 0], columns[batch.reach > 0])
        assert all(len(row[row > 0].unique()) <= 1 for row in batch.reach)


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
        real = batch.reach[row] > 0
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


def tensors(batch: ChoiceBatch) -> dict[str, torch.Tensor]:
    """Its tensors by name, without the buffer that they are parts of."""
    return {name: value for name, value in vars(batch).items() if name not in ("buffer", "causal")}


def assert_equal(one: ChoiceBatch, other: ChoiceBatch) -> None:
    assert one.signature == other.signature
    for name, value in tensors(one).items():
        assert torch.equal(value, tensors(other)[name]), name


def test_a_batch_moves_as_a_whole() -> None:
    batch = batch_of("packed", questions_for("packed"))
    moved = batch.to("meta")
    assert len(tensors(batch)) == 15
    assert all(value.device.type == "meta" for value in tensors(moved).values())
    assert moved.signature == batch.signature
    assert_equal(batch.to("cpu"), batch)


@pytest.mark.parametrize("buckets", [False, True])
def test_all_tensors_are_parts_of_one_buffer(buckets: bool) -> None:
    batch = batch_of("packed", questions_for("packed"), buckets=buckets)
    sizes = [value.nbytes for value in tensors(batch).values()]
    assert batch.buffer.nbytes == sum(sizes)
    start, end = batch.buffer.data_ptr(), batch.buffer.data_ptr() + batch.buffer.nbytes
    filled = [value for value in tensors(batch).values() if value.numel()]  # what is empty has no memory
    places = sorted((value.data_ptr(), value.data_ptr() + value.nbytes) for value in filled)
    assert all(a[1] <= b[0] for a, b in pairwise(places))
    assert start <= places[0][0]
    assert places[-1][1] <= end


def test_a_batch_takes_in_another_of_its_signature_in_place() -> None:
    first, second = (
        batch_of("packed", [encoded(*shape, key=key) for key, shape in enumerate(shapes)], buckets=True)
        for shapes in ([(9, 2, 3), (7, 4, 4)], [(10, 3, 3, 2), (4, 5, 2)])
    )
    assert first.signature == second.signature
    ids = first.input_ids
    assert first.copy_(second) is first
    assert_equal(first, second)
    assert first.input_ids is ids
    assert first.input_ids.data_ptr() != second.input_ids.data_ptr()


def test_a_batch_refuses_one_of_another_signature() -> None:
    batch = batch_of("packed", questions_for("packed"))
    with pytest.raises(ValueError, match="does not fit"):
        batch.copy_(batch_of("packed", questions_for("packed"), buckets=True))
    single = collate([encoded(3, 1, 2)]), collate([encoded(3, 2, 1)])
    assert single[0].signature == single[1].signature
    assert hash(single[0].signature) == hash(single[1].signature)


@pytest.mark.parametrize("buckets", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_repeating_gives_groups_that_read_and_score_for_themselves(kind: str, buckets: bool) -> None:
    batch = batch_of(kind, questions_for(kind), buckets=buckets)
    n, _, p, m, b, k, causal, _ = batch.signature
    repeated = batch.repeat(3)
    assert repeated.signature == BatchSignature(3 * n, batch.input_ids.shape[1], 3 * p, 3 * m, 3 * b, k, causal)
    for name in ("input_ids", "position_ids", "reach", "token_index", "row_keys", "read_column", "target_token"):
        assert torch.equal(tensors(repeated)[name], torch.cat([tensors(batch)[name]] * 3)), name
    for name in ("answers", "lengths", "choice_mask"):
        assert torch.equal(tensors(repeated)[name], torch.cat([tensors(batch)[name]] * 3)), name
    one = targets_of(batch)
    expected = [(row + s * n, column, t, choice + s * b * k) for s in range(3) for row, column, t, choice in one]
    assert targets_of(repeated) == expected
    assert_equal(batch.repeat(1), batch)


# Buckets


def test_bucket_sizes_are_few_and_near() -> None:
    sizes = sorted({bucket(size) for size in range(1, 2000)})
    assert sizes == [8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048]
    for size in range(1, 2000):
        assert bucket(size) == next(b for b in sizes if b >= size)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bucket_holds_the_batch_in_its_corner_and_padding_that_does_nothing(kind: str) -> None:
    questions = questions_for(kind)
    plain, wide = batch_of(kind, questions), batch_of(kind, questions, buckets=True)
    for name, value in tensors(plain).items():
        padded = tensors(wide)[name]
        if name not in ("target_read", "target_choice"):
            assert torch.equal(padded[tuple(slice(size) for size in value.shape)], value), name
    assert sorted(targets_of(wide)) == sorted(targets_by_hand(kind, questions, most=wide.signature.choices))
    n, columns, p, m, b, k, causal, _ = plain.signature
    places = wide.signature.reads
    assert places in (16, 64, 256)
    assert max(p, m) <= places < 4 * max(p, m, 5)
    assert wide.signature == BatchSignature(n, bucket(columns), places, places, b, bucket(k), causal)
    assert not wide.reach[:, columns:].any()
    assert not wide.choice_mask[:, k:].any()
    assert not wide.read_row[p:].any()
    assert not wide.read_column[p:].any()
    assert bool((wide.target_choice[m:] == wide.lengths.numel()).all())


@pytest.mark.parametrize(("limit", "columns"), [(None, 24), (64, 24), (20, 20), (17, 17), (5, 17)])
def test_no_bucket_goes_beyond_the_models_positions(limit: int | None, columns: int) -> None:
    assert collate([encoded(17, 1, 1)], buckets=True, limit=limit).signature.columns == columns
    packed = collate([encoded(14, 2, 3)], buckets=True, limit=20)  # more columns than positions are no harm here
    assert not packed.causal
    assert packed.signature.columns == 24


@pytest.mark.parametrize("buckets", [False, True])
@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize("max_tokens", [1, 60, 200, 1000, 100_000])
def test_sorted_batches_part_the_questions_and_keep_to_the_padded_size(
    max_tokens: int, share_prefix: bool, buckets: bool
) -> None:
    rng = random.Random(max_tokens)
    questions = [  # long prompts with short choices and short prompts with long ones have equal sums
        encoded(rng.choice([2, 40]), *(rng.choice([1, 2, 25]) for _ in range(rng.randint(2, 5))), key=i)
        for i in range(60)
    ]
    batches = list(sorted_batches(questions, max_tokens, share_prefix=share_prefix, buckets=buckets))
    assert sorted(i for batch in batches for i in batch) == list(range(60))

    def padded(indices: list[int]) -> int:
        here = [questions[i] for i in indices]
        return collate(here, share_prefix=share_prefix, buckets=buckets).input_ids.numel()

    assert all(len(batch) == 1 or padded(batch) <= max_tokens for batch in batches)
    for batch, following in pairwise(batches):
        assert padded([*batch, following[0]]) > max_tokens, "there was room for one more"


def test_sorted_batches_are_of_similar_length_and_empty_for_nothing() -> None:
    questions = [encoded(n, 1, 1, key=n) for n in (9, 2, 7, 3, 8, 1)]
    assert list(sorted_batches(questions, 16)) == [[5, 1, 3], [2, 4], [0]]
    assert list(sorted_batches([], 16)) == []
