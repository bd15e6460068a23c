import pytest

from fedprune.methods.public_model import PublicModel
from strategies.messages import MESSAGE_BYTES, block_chunks


def model(blocks: int, shape: tuple[int, int]) -> PublicModel:
    return PublicModel(tuple({"a": shape} for _ in range(blocks)), "", "", "", lambda b, n: None)


@pytest.mark.parametrize(
    ("blocks", "size", "expected"),
    [
        (5, 2, [range(0, 2), range(2, 4), range(4, 5)]),
        (4, 4, [range(0, 4)]),
        (2, 9, [range(0, 2)]),
        (3, 1, [range(0, 1), range(1, 2), range(2, 3)]),
    ],
)
def test_chunks_cover_all_blocks_in_order(blocks, size, expected):
    assert block_chunks(blocks, size, lambda b: 64) == expected


def test_small_models_take_one_message():
    small = model(12, (64, 64))
    assert block_chunks(12, None, small.mask_bytes) == [range(0, 12)]


def test_large_models_are_split_below_the_limit():
    large = model(32, (4096, 50_000))
    chunks = block_chunks(32, None, large.mask_bytes)
    assert len(chunks) > 1
    assert all(sum(large.mask_bytes(b) for b in chunk) <= MESSAGE_BYTES for chunk in chunks)


def test_a_block_above_the_limit_still_travels():
    huge = model(2, (65536, 65536))
    assert huge.mask_bytes(0) > MESSAGE_BYTES
    assert block_chunks(2, None, huge.mask_bytes) == [range(0, 1), range(1, 2)]
