"""What a client refuses before anything runs."""

from dataclasses import replace

import numpy as np
import pytest

from client_app.update import check_request, read_update
from fedprune.config import config_from_overrides
from fedprune.errors import ReplyRefusedError
from fedprune.wire.bitmask import BitMask
from fedprune.wire.update import LinearUpdate, encode_update

ONE_SHOT = config_from_overrides([])
ITERATIVE = config_from_overrides(["schedule=iterative", "strategy.group=row"])
SHAPES = ({"a": (4, 10)}, {"a": (4, 10)})


@pytest.mark.parametrize(
    ("config", "blocks", "update"),
    [(ONE_SHOT, range(0, 4), None), (ONE_SHOT, range(2, 4), None)]
    + [(ITERATIVE, range(1), None), (ITERATIVE, range(3, 4), b"x")],
)
def test_requests_of_the_schedule_pass(config, blocks, update):
    check_request(config, blocks, 4, update)


@pytest.mark.parametrize(
    ("config", "blocks", "update", "words"),
    [
        (ONE_SHOT, range(0, 5), None, "blocks 0-3, asked for 0-4"),
        (ONE_SHOT, range(2, 2), None, "blocks 0-3"),
        (ONE_SHOT, range(-1, 2), None, "blocks 0-3"),
        (ONE_SHOT, range(1, 2), b"x", "one_shot must bring no update"),
        (ITERATIVE, range(0, 2), None, "one block a message, got 2"),
        (ITERATIVE, range(1, 2), None, "must bring the update of the block before"),
        (ITERATIVE, range(0, 1), b"x", "must bring no update"),
    ],
)
def test_requests_that_no_schedule_makes_are_refused(config, blocks, update, words):
    with pytest.raises(ReplyRefusedError, match=words):
        check_request(config, blocks, 4, update)


def encoded(keep_columns: int, keeps=None) -> bytes:
    mask = np.zeros((4, 10), dtype=bool)
    mask[:, :keep_columns] = True
    return encode_update({"a": LinearUpdate(BitMask.from_bool(mask), keeps, 3)})


COUNTS = np.full(20, 2, dtype=np.uint8)


def test_what_the_configuration_asks_of_the_server_is_read():
    update = read_update(ITERATIVE, 0, SHAPES, encoded(5))["a"]
    assert update.mask.survivors == 20 and update.keeps is None
    scaling = replace(ITERATIVE, strategy=replace(ITERATIVE.strategy, scaling=True))
    assert read_update(scaling, 0, SHAPES, encoded(5, COUNTS))["a"].keeps.tolist() == [2] * 20
    with pytest.raises(ReplyRefusedError, match="survivors must be scaled"):
        read_update(scaling, 0, SHAPES, encoded(5))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (encoded(5)[:-1], "update of block 0: an update's CRC-32"),
        (encoded(6), "row 0 must have 5 survivors, got 6"),
        (encoded(5, COUNTS), "must not be scaled"),
        (b"FPUP", "head has"),
    ],
)
def test_anything_else_is_refused(data, words):
    with pytest.raises(ReplyRefusedError, match=words):
        read_update(ITERATIVE, 0, SHAPES, data)


def test_each_block_has_its_own_sparsity():
    options = ["schedule=iterative", "allocation=per_block", "allocation.blocks=0.4,0.6"]
    config = config_from_overrides(options)
    assert read_update(config, 0, SHAPES, encoded(6))["a"].mask.survivors == 24
    with pytest.raises(ReplyRefusedError, match="must have 16 survivors, got 24"):
        read_update(config, 1, SHAPES, encoded(6))
