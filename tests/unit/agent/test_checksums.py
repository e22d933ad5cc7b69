"""Checksums see every change of a bit, whatever the tensor; and pairs that a sum would miss."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from optwatch_agent.checksums import NOTHING, checksum

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)


def tensor(numel: int, dtype: torch.dtype) -> Tensor:
    made = torch.randint(
        0, 2 if dtype is torch.bool else 120, (numel,), generator=torch.Generator().manual_seed(1)
    )
    return made.to(dtype)


def flipped(original: Tensor, byte: int, bit: int) -> Tensor:
    """A copy with one bit of its bytes flipped; the bits of bool are left at 0 and 1."""
    copy = original.clone()
    copy.view(-1).view(torch.uint8)[byte] ^= 1 if original.dtype is torch.bool else 1 << bit
    return copy


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("numel", [1, 7, 4_099, 150_001])
def test_every_flipped_bit_changes_the_checksum(dtype: torch.dtype, numel: int) -> None:
    original = tensor(numel, dtype)
    clean = checksum(original)
    assert clean == checksum(original.clone()) != NOTHING
    draw = random.Random(numel)
    size = numel * original.element_size()
    for byte in {0, size - 1, *(draw.randrange(size) for _ in range(20))}:
        assert checksum(flipped(original, byte, draw.randrange(8))) != clean


def test_two_and_three_flips_are_seen_also_of_top_bits() -> None:
    original = torch.randn(100_000, generator=torch.Generator().manual_seed(2))
    words = original.view(torch.int32).numpy()
    clean = checksum(original)
    draw = np.random.default_rng(3)
    for flips in (2, 3):
        for _ in range(100):
            # Odd places are the upper halves of 64-bit words: their top bits add up to nothing in a sum.
            at = 2 * draw.choice(len(words) // 2, size=flips, replace=False) + 1
            words[at] ^= np.int32(-(2**31))
            assert checksum(original) != clean
            words[at] ^= np.int32(-(2**31))
    assert checksum(original) == clean


def test_two_words_that_changed_places_are_seen() -> None:
    original = torch.randn(100_000, generator=torch.Generator().manual_seed(2))
    swapped = original.clone()
    swapped[[10, 60_000]] = original[[60_000, 10]]
    assert checksum(swapped) != checksum(original)


def test_layout_makes_no_difference_and_nothing_is_changed() -> None:
    original = torch.randn(300, 200, generator=torch.Generator().manual_seed(4))
    version = original._version
    clean = checksum(original)
    assert checksum(original.t().contiguous().t()) == clean
    shifted = torch.empty(60_001)
    shifted[1:] = original.reshape(-1)  # 4 bytes off the alignment of 64-bit words
    assert checksum(shifted[1:].view(300, 200)) == clean
    assert checksum(torch.nn.Parameter(original)) == clean
    assert original._version == version


def test_a_single_element_between_others() -> None:
    assert checksum(torch.ones(2)[::2]) == checksum(torch.ones(1))


def test_state_of_every_kind() -> None:
    assert checksum(torch.tensor(3.0)) != checksum(torch.tensor(4.0))
    assert checksum(torch.empty(0)) == checksum(torch.empty(0, dtype=torch.int8)) != NOTHING
    assert checksum(3) != checksum(4)
    assert checksum(None) == checksum(print) == NOTHING
    x = torch.randn(5, generator=torch.Generator().manual_seed(5))
    assert checksum([x, {"a": 1}]) == checksum((x.clone(), {"a": 1}))
    assert checksum([x, {"a": 1}]) != checksum([x, {"a": 2}])
    assert checksum({"a": 1, "b": 2}) == checksum({"b": 2, "a": 1})
    deep: list[object] = []
    deep.append(deep)
    assert checksum(deep) != NOTHING
    assert checksum(torch.randn(4, dtype=torch.complex64)) != NOTHING
