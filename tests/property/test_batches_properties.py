"""What a batch asks of a model, for any questions: each answer token is read where exactly what precedes it is seen."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from abmll.likelihood import ChoiceLikelihood
from abmll.prompts.batches import ChoiceBatch
from abmll.prompts.collate import collate, sorted_batches
from abmll.prompts.encode import EncodedQuestion
from tests.tiny import tiny_model

MODEL = tiny_model(layers=1).double()
tokens = st.integers(3, 511)
choice = st.lists(st.one_of(st.integers(3, 5), tokens), min_size=1, max_size=5).map(tuple)  # some begin alike


question = st.tuples(
    st.lists(tokens, min_size=1, max_size=20).map(tuple),
    st.lists(choice, min_size=1, max_size=10).map(tuple),
    st.sampled_from([1.0, 2.5]),
    st.integers(0, 2**32 - 1),
)
questions = st.lists(question, min_size=1, max_size=5)
Drawn = tuple[tuple[int, ...], tuple[tuple[int, ...], ...], float, int]


def encoded(drawn: list[Drawn], tree: bool = False) -> list[EncodedQuestion]:
    """Questions whose right choice and lengths differ with their key; their choices in trees, or side by side."""
    return [
        EncodedQuestion(
            prefix, choices, tuple(length * len(c) for c in choices), key % len(choices), key, False, tree=tree
        )
        for prefix, choices, length, key in drawn
    ]


def seen(batch: ChoiceBatch, mask: Tensor, read: int) -> tuple[int, ...]:
    """The tokens that the hidden state at a read knows of, in the order of their positions."""
    row, column = int(batch.read_row[read]), int(batch.read_column[read])
    columns = mask[row, 0, column].nonzero().flatten()
    assert batch.position_ids[row, columns].tolist() == list(range(len(columns)))
    return tuple(batch.input_ids[row, columns].tolist())


@settings(max_examples=60, deadline=None)
@given(questions, st.sampled_from(["tree", "packed", "apart"]), st.booleans(), st.integers(1, 2))
def test_each_answer_token_is_read_where_all_that_precedes_it_is_seen_and_nothing_else(
    drawn: list[Drawn], layout: str, buckets: bool, samples: int
) -> None:
    asked, share_prefix = encoded(drawn, tree=layout == "tree"), layout != "apart"
    batch = collate(asked, share_prefix=share_prefix, buckets=buckets).repeat(samples)
    size, most = batch.input_ids.shape[1], batch.lengths.shape[1]
    mask = batch.attention_mask()
    if batch.causal:
        mask = torch.ones(size, size, dtype=torch.bool).tril().expand_as(mask)
    for b, one in enumerate(asked * samples):
        for k in range(most):
            targets = (batch.target_choice == b * most + k).nonzero().flatten().tolist()
            exists = k < len(one.continuations)
            assert bool(batch.choice_mask[b, k]) == exists
            answer = one.continuations[k] if exists else ()
            assert tuple(batch.target_token[targets].tolist()) == answer
            for i, target in enumerate(targets):
                assert seen(batch, mask, int(batch.target_read[target])) == one.prefix + answer[:i]


@settings(max_examples=60, deadline=None)
@given(questions, st.booleans())
def test_buckets_neither_change_scores_nor_gradients(drawn: list[Drawn], share_prefix: bool) -> None:
    asked, found = encoded(drawn), []
    for buckets in (False, True):
        batch = collate(asked, share_prefix=share_prefix, buckets=buckets)
        likelihood = ChoiceLikelihood(MODEL, temperature=0.8, learn_temperature=True)
        likelihood.nll(batch).backward()
        found.append((likelihood.scores(batch).log_probabilities.detach(), likelihood.log_temperature.grad))
    (tight, tight_gradient), (wide, wide_gradient) = found
    # scores reach -60, of which float32 keeps 4e-6
    torch.testing.assert_close(wide[:, : tight.shape[1]], tight, atol=3e-4, rtol=0)
    torch.testing.assert_close(wide_gradient, tight_gradient, atol=3e-4, rtol=0)


@settings(max_examples=60, deadline=None)
@given(questions)
def test_a_tree_feeds_each_beginning_once_and_changes_neither_scores_nor_gradients(drawn: list[Drawn]) -> None:
    found = []
    for tree in (False, True):
        asked = encoded(drawn, tree)
        batch, likelihood = collate(asked), ChoiceLikelihood(MODEL, temperature=0.8, learn_temperature=True)
        fed = [{c[:i] for c in one.continuations for i in range(1, len(c))} for one in asked]
        if tree:
            assert (batch.reach > 0).sum() == sum(len(q.prefix) + len(own) for q, own in zip(asked, fed, strict=True))
        likelihood.nll(batch).backward()
        found.append((likelihood.scores(batch).log_probabilities.detach(), likelihood.log_temperature.grad))
    (apart, apart_gradient), (shared, shared_gradient) = found
    torch.testing.assert_close(shared, apart, atol=3e-4, rtol=0)
    torch.testing.assert_close(shared_gradient, apart_gradient, atol=3e-4, rtol=0)


@settings(max_examples=60, deadline=None)
@given(st.lists(question, max_size=8), st.integers(1, 300), st.sampled_from(["tree", "packed", "apart"]), st.booleans())
def test_sorted_batches_part_the_questions(drawn: list[Drawn], max_tokens: int, layout: str, buckets: bool) -> None:
    asked, share_prefix = encoded(drawn, tree=layout == "tree"), layout != "apart"
    batches = list(sorted_batches(asked, max_tokens, share_prefix=share_prefix, buckets=buckets))
    assert sorted(i for batch in batches for i in batch) == list(range(len(asked)))
    for batch in batches:
        padded = collate([asked[i] for i in batch], share_prefix=share_prefix, buckets=buckets).input_ids.numel()
        assert len(batch) == 1 or padded <= max_tokens
