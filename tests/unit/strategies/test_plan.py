import pytest

from strategies.plan import MESSAGE_BYTES, Plan


def plan(blocks: int, shape: tuple[int, int]) -> Plan:
    return Plan(tuple({"a": shape} for _ in range(blocks)), "", "", "", lambda b, n: None)


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
    assert plan(blocks, (8, 8)).chunks(size, lambda b: 64) == expected


def test_small_models_take_one_message():
    small = plan(12, (64, 64))
    assert small.chunks(None, small.mask_bytes) == [range(0, 12)]


def test_large_models_are_split_below_the_limit():
    large = plan(32, (4096, 50_000))
    chunks = large.chunks(None, large.mask_bytes)
    assert len(chunks) > 1
    assert all(sum(large.mask_bytes(b) for b in chunk) <= MESSAGE_BYTES for chunk in chunks)


def test_a_block_above_the_limit_still_travels():
    huge = plan(2, (65536, 65536))
    assert huge.mask_bytes(0) > MESSAGE_BYTES
    assert huge.chunks(None, huge.mask_bytes) == [range(0, 1), range(1, 2)]
