"""The counter-based noise: Philox against its published vectors and a second implementation, its law, its counters."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from abmll.kernels.noise import key_tensor, noise_key, normal, philox

KNOWN_ANSWERS = {  # Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, result
    "zeros": ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    "ones": ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    "pi": ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
}


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def philox_by_hand(key: int, counter: list[int]) -> list[int]:
    """Philox4x32-10 from the paper's text, in Python's unbounded integers."""
    key_words = [key % 2**32, key // 2**32]
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * counter[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * counter[2], 2**32)
        counter = [high1 ^ counter[1] ^ key_words[0], low1, high0 ^ counter[3] ^ key_words[1], low0]
        key_words = [(key_words[0] + 0x9E3779B9) % 2**32, (key_words[1] + 0xBB67AE85) % 2**32]
    return counter


def normal_by_hand(key: int, column: int, row: int, layer: int, question: int) -> float:
    """One draw in float64: word column % 4 of the counter (column // 4, row, layer, question), then Box-Muller."""
    block = philox_by_hand(key, [column // 4, row, layer, question])
    first, second = block[:2] if column % 4 < 2 else block[2:]
    uniforms = [(word if word < 2**31 else 2**32 - 1 - word) * 4.6566127342e-10 for word in (first, second)]
    radius = math.sqrt(-2 * math.log(max(uniforms[0], 1e-7)))
    return radius * (math.cos if column % 2 == 0 else math.sin)(2 * math.pi * uniforms[1])


@pytest.mark.parametrize("name", KNOWN_ANSWERS)
def test_philox_gives_the_known_answers_of_random123(name):
    counter, key, result = (words(text) for text in KNOWN_ANSWERS[name])
    found = philox(key[0] | key[1] << 32, *(torch.tensor([word]) for word in counter))
    assert [int(word) for word in found] == result


def test_philox_equals_a_second_implementation_on_random_counters():
    rng = np.random.default_rng(0)
    counters = rng.integers(0, 2**32, (4, 500), dtype=np.int64)
    for key in (noise_key("a", 1), 0, 2**64 - 1, 2**63):
        found = torch.stack(philox(key, *torch.from_numpy(counters))).T.tolist()
        assert found == [philox_by_hand(key, column) for column in counters.T.tolist()]


def test_each_draw_is_box_muller_of_its_own_counter():
    key, rows, questions = (
        noise_key("activation", 3),
        torch.tensor([[0, 5], [2**31, 7]]),
        torch.tensor([[9], [2**32 - 1]]),
    )
    found = normal(key, 11, rows, layer=13, question=questions.expand_as(rows))
    expected = [
        [[normal_by_hand(key, column, int(row), 13, int(question)) for column in range(11)] for row in some]
        for some, (question,) in zip(rows, questions, strict=True)
    ]
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), atol=2e-6, rtol=2e-5)


KEYS = [noise_key("a", 1), 0, 2**64 - 1, 2**63, 2**63 - 1]


def test_a_key_in_a_tensor_gives_the_words_and_draws_of_the_number():
    keys, rows = key_tensor(*KEYS), torch.arange(3)
    assert keys.tolist() == [key if key < 2**63 else key - 2**64 for key in KEYS]
    counters = [torch.arange(7) * scale for scale in (1, 5, 2**29, 2**27)]
    for key, one in zip(KEYS, keys, strict=True):
        for mine, expected in zip(philox(one, *counters), philox(key, *counters), strict=True):
            assert torch.equal(mine, expected)
        assert torch.equal(normal(one, 9, rows, 2), normal(key, 9, rows, 2))


def test_keys_broadcast_with_rows():
    rows, questions = torch.arange(6).view(2, 3), torch.tensor([[8], [9]]).expand(2, 3)
    together = normal(key_tensor(*KEYS[:2])[:, None], 9, rows, 2, questions)
    for key, row, question, found in zip(KEYS, rows, questions, together, strict=False):
        assert torch.equal(found, normal(key, 9, row, 2, question))


def test_draws_are_standard_normal():
    draws = normal(noise_key("law"), 1024, torch.arange(512), layer=2).double().flatten()
    count = draws.numel()
    assert draws.isfinite().all()
    assert stats.kstest(draws.numpy(), "norm").pvalue > 0.01
    # standard errors of the first four moments of n standard normal draws
    assert abs(float(draws.mean())) < 4 / count**0.5
    assert abs(float(draws.square().mean()) - 1) < 4 * (2 / count) ** 0.5
    assert abs(stats.skew(draws.numpy())) < 4 * (6 / count) ** 0.5
    assert abs(stats.kurtosis(draws.numpy())) < 4 * (24 / count) ** 0.5


def test_every_column_of_a_counter_block_is_standard_normal():
    columns = normal(noise_key("columns"), 8, torch.arange(20_000), layer=0).numpy()
    assert min(stats.kstest(column, "norm").pvalue for column in columns.T) > 0.001


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda rows: normal(noise_key("k", 0), 256, rows + 1000, layer=0), id="rows"),
        pytest.param(lambda rows: normal(noise_key("k", 0), 256, rows + 1, layer=0), id="next row"),
        pytest.param(lambda rows: normal(noise_key("k", 0), 256, rows, layer=1), id="layers"),
        pytest.param(lambda rows: normal(noise_key("k", 0), 256, rows, layer=0, question=1), id="questions"),
        pytest.param(lambda rows: normal(noise_key("k", 1), 256, rows, layer=0), id="keys"),
        pytest.param(lambda rows: normal(noise_key("k", 0) ^ 1, 256, rows, layer=0), id="keys one bit apart"),
        pytest.param(lambda rows: normal(noise_key("k", 0), 256, rows, layer=0).roll(1, dims=1), id="columns"),
        pytest.param(lambda rows: normal(noise_key("k", 0), 256, rows, layer=0).roll(2, dims=1), id="Box-Muller pairs"),
    ],
)
def test_draws_do_not_depend_on_each_other_across(other):
    rows = torch.arange(256)
    one, two = normal(noise_key("k", 0), 256, rows, layer=0).double(), other(rows).double()
    for power in (1, 2):  # values, and sizes
        correlation = np.corrcoef((one**power).flatten(), (two**power).flatten())[0, 1]
        assert abs(correlation) < 4 / one.numel() ** 0.5


def test_rows_computed_alone_equal_rows_computed_together():
    key, together = noise_key("tiling"), normal(noise_key("tiling"), 37, torch.arange(64), layer=4)
    for rows in (torch.arange(0, 64, 7), torch.tensor([63]), torch.arange(10, 20)):
        assert torch.equal(normal(key, 37, rows, layer=4), together[rows])
    assert torch.equal(normal(key, 12, torch.arange(64), layer=4), together[:, :12])  # nor does a draw know the width


def test_no_global_generator_takes_part():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = normal(5, 4, torch.arange(3), layer=0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(normal(5, 4, torch.arange(3), layer=0), first)


def test_noise_key_is_the_same_in_every_process_and_version():
    assert (
        noise_key("weight", 0, 17) == 0xD7CCABFEA4D3234B
    )  # a change here changes every run's noise: checkpoints do not resume
    assert noise_key() == 0xB4B2797457A0A6E4


def test_noise_keys_are_distinct_64_bit_numbers():
    parts = [(seed, step, task) for seed in range(20) for step in range(50) for task in range(10)]
    keys = {noise_key("weight", *part) for part in parts}
    assert len(keys) == len(parts)
    assert all(0 <= key < 2**64 for key in keys)
    assert max(keys) > 2**63


def test_noise_key_tells_types_and_boundaries_apart():
    alike = [("1",), (1,), (1, ""), ("", 1), (11,), (1, 1), ("1", 1), (-1,), ("weight", 1), ("weight1",)]
    assert len({noise_key(*parts) for parts in alike}) == len(alike)
