"""What a client refuses before anything runs."""

import zlib

import numpy as np
import pytest
import torch

from client_app.session import asked_exchange, check_order, read_start, read_update
from fedprune.config import config_from_overrides, replace
from fedprune.errors import ReplyRefusedError
from fedprune.methods.exchange import BlockPlace
from fedprune.methods.registry import get_method
from fedprune.pruning.groups import block_specs
from fedprune.pruning.statistics import ColumnStatistics
from fedprune.pruning.wanda import WandaPruner
from fedprune.records import Order
from fedprune.wire.changes import LinearUpdate, encode_update
from fedprune.wire.masks import BitMask
from fedprune.wire.sums import PooledSums, encode_pooled

ONE_SHOT = config_from_overrides([])
ITERATIVE = config_from_overrides(["schedule=iterative", "strategy.group=row"])
STATS = config_from_overrides(["schedule=iterative", "strategy=fedstats"])
WEIGHT = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
SURVEYED = config_from_overrides(["schedule=iterative", "allocation=owl", "sparsity=0.6"])
UPDATE = {"update": b"x"}


def place(block: int = 0, num_blocks: int = 2) -> BlockPlace:
    return BlockPlace(block, num_blocks, {"a": WEIGHT})


def order(*blocks: int, resume: int = 0, exchange: str = "prune") -> Order:
    return Order(blocks, resume, False, 1 << 16, exchange)


def held(config):
    return get_method(config.strategy.name).exchange(config)


@pytest.mark.parametrize(
    ("config", "asked", "bundle"),
    [
        (ONE_SHOT, order(0, 1, 2, 3), {}),
        (ONE_SHOT, order(2, 3, resume=1), {}),
        (ONE_SHOT, order(1, 3), {"start-00001": b"x"}),
        (ITERATIVE, order(0), {}),
        (ITERATIVE, order(3, resume=2), UPDATE),
        (SURVEYED, order(0, 1, 2, 3, exchange="survey"), {}),
    ],
)
def test_orders_of_the_schedule_pass(config, asked, bundle):
    check_order(asked_exchange(config, asked), asked, 4, bundle)


@pytest.mark.parametrize(
    ("config", "asked", "bundle", "words"),
    [
        (ONE_SHOT, order(0, 4), {}, "blocks 0-3, asked for 0-4"),
        (ONE_SHOT, order(1), UPDATE, "one_shot must bring no update"),
        (ITERATIVE, order(0, 1), {}, "one block a message, got 2"),
        (ITERATIVE, order(1), {}, "must bring the update of the block before"),
        (ITERATIVE, order(2, resume=0), UPDATE, "must bring the update of the block before"),
        (ITERATIVE, order(0), UPDATE, "must bring no update"),
    ],
)
def test_orders_that_no_schedule_makes_are_refused(config, asked, bundle, words):
    with pytest.raises(ReplyRefusedError, match=words):
        check_order(asked_exchange(config, asked), asked, 4, bundle)


@pytest.mark.parametrize("blocks", [(), (2, 1), (1, 1), (0,)])
def test_an_order_is_for_increasing_blocks_after_the_last(blocks):
    with pytest.raises(ReplyRefusedError, match="increasing blocks at or after block 1"):
        order(*blocks, resume=1)


def test_only_exchanges_that_the_configuration_asks_for_are_held():
    with pytest.raises(ReplyRefusedError, match="asks for prune, the order is about another"):
        asked_exchange(ONE_SHOT, order(0, exchange="survey"))


def test_segments_have_a_least_size():
    with pytest.raises(ReplyRefusedError, match="'segment-bytes' must be at least 65536, got 5"):
        Order((0,), 0, False, 5)


def encoded(keep_columns: int, keeps=None) -> bytes:
    mask = np.zeros((4, 10), dtype=bool)
    mask[:, :keep_columns] = True
    return encode_update({"a": LinearUpdate(BitMask.from_bool(mask), keeps, 3)})


COUNTS = np.full(20, 2, dtype=np.uint8)


def test_what_the_configuration_asks_of_the_server_is_read():
    update = read_update(held(ITERATIVE), place(), encoded(5))["a"]
    assert update.mask.survivors == 20 and update.keeps is None
    scaling = replace(ITERATIVE, strategy=replace(ITERATIVE.strategy, scaling=True))
    assert read_update(held(scaling), place(), encoded(5, COUNTS))["a"].keeps.tolist() == [2] * 20
    with pytest.raises(ReplyRefusedError, match="survivors must be scaled"):
        read_update(held(scaling), place(), encoded(5))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (encoded(5)[:-1], "update of block 0: these arrays must have 241 bytes, got 240"),
        (encoded(6), "row 0 must have 5 survivors, got 6"),
        (encoded(5, COUNTS), "must not be scaled"),
        (b"FPUP", "update of block 0"),
    ],
)
def test_anything_else_is_refused(data, words):
    with pytest.raises(ReplyRefusedError, match=words):
        read_update(held(ITERATIVE), place(), data)


def test_each_block_has_its_own_sparsity():
    options = ["schedule=iterative", "allocation=per_block", "allocation.blocks=0.4,0.6"]
    config = config_from_overrides(options)
    assert read_update(held(config), place(0), encoded(6))["a"].mask.survivors == 24
    with pytest.raises(ReplyRefusedError, match="must have 16 survivors, got 24"):
        read_update(held(config), place(1), encoded(6))


def pooled(checksum_of: np.ndarray, sums: np.ndarray) -> bytes:
    checksum = zlib.crc32(BitMask.from_bool(checksum_of).bits.tobytes())
    return encode_pooled([PooledSums(("a",), sums, 7, (checksum,))])


def test_masks_follow_from_pooled_sums_and_must_be_the_server_s():
    sums = np.arange(1, 11, dtype=np.float32)
    spec = block_specs(STATS, range(1), 1)[0]
    mask = WandaPruner().prune(WEIGHT, ColumnStatistics(torch.from_numpy(sums), 7), spec)
    assert read_update(held(STATS), place(), pooled(mask.to_bool(), sums)) == {"a": mask}
    with pytest.raises(ReplyRefusedError, match="another result on this node.*downlink=masks"):
        read_update(held(STATS), place(), pooled(~mask.to_bool(), sums))


def test_a_start_of_another_block_is_refused():
    assert read_start(place(), encoded(6))["a"].mask.survivors == 24
    with pytest.raises(ReplyRefusedError, match="the start of block 3"):
        read_start(place(3, 4), encoded(6)[:-2])
