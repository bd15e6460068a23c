import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedprune.config.pattern import Pattern
from fedprune.errors import ModelError
from fedprune.models.capture import TensorPool, capture_inputs, hidden_of
from fedprune.models.layout import LinearRef, find_layout
from fedprune.pruning.blocks import BlockWalk, prune_block, prune_blocks
from fedprune.pruning.groups import BlockSpec
from fedprune.pruning.recorder import StatisticsRecorder
from fedprune.pruning.registry import get_pruner
from fedprune.pruning.statistics import ColumnSquares, get_kind
from fedprune.wire.masks import BitMask
from tests.support.architectures import FAMILIES, tiny_model, token_samples
from tests.support.masks import equal_bits, expected_state, random_masks, state_of

SEQ_LEN = 12
SPEC = BlockSpec(sparsity=0.4, pattern=Pattern(), group="row")
WANDA, MAGNITUDE = get_pruner("wanda"), get_pruner("magnitude")


def all_blocks(loaded):
    return range(len(loaded.layout.blocks))


def prune_all(loaded, samples, pruner=WANDA):
    return dict(
        prune_blocks(BlockWalk(loaded, samples), pruner, dict.fromkeys(all_blocks(loaded), SPEC))
    )


def traces_left(loaded):
    """Hooks and replaced forwards that a walk left in a model, a cause of wrong results later."""
    return [
        name
        for name, module in loaded.model.named_modules()
        if module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__
    ]


def observed(loaded, samples):
    """The slow way: run the whole model, note every linear's input and every block's output."""
    sums, tokens, outputs = {}, {}, {}
    handles = []
    for block in all_blocks(loaded):
        for name, linear in loaded.layout.linears(block).items():

            def see(_module, args, key=(block, name)):
                squares = args[0].double().square().flatten(0, -2)
                sums[key] = sums.get(key, 0) + squares.sum(0)
                tokens[key] = tokens.get(key, 0) + len(squares)

            handles.append(linear.module.register_forward_pre_hook(see))

        def keep(_module, _args, output, block=block):
            outputs.setdefault(block, []).append(hidden_of(output))

        handles.append(loaded.layout.blocks[block].register_forward_hook(keep))
    with torch.no_grad():
        for sample in samples:
            loaded.model(input_ids=sample[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return sums, tokens, outputs


def slow_wanda(loaded, samples):
    """FedPrLLM's client by definition: prune a copy in place, run it whole for every block."""
    working = copy.deepcopy(loaded)
    masks = {}
    for block in all_blocks(loaded):
        sums, _, _ = observed(working, samples)
        masks[block] = {}
        for name in working.layout.linears(block):
            weight = working.weight(block, name)
            scores = weight.abs() * sums[block, name].float().sqrt()
            keep = torch.ones_like(weight, dtype=torch.bool)
            for row, order in enumerate(scores.argsort(dim=1, stable=True)):
                keep[row, order[: int(len(order) * 0.4)]] = False
            masks[block][name] = BitMask.from_bool(keep.numpy())
            weight[~keep] = 0
    return masks


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("survivors", [1.0, 0.5])
def test_walking_gives_what_the_models_own_forward_gives(family, survivors):
    loaded, samples = tiny_model(family), token_samples(2, SEQ_LEN)
    masks = random_masks(loaded, survivors)
    before = state_of(loaded)
    walk, statistics, hidden = BlockWalk(loaded, samples), [], []
    for block in all_blocks(loaded):
        statistics.append(walk.collect())
        walk.advance(masks[block])
        hidden.append(walk.hidden)
    assert equal_bits(state_of(loaded), before)

    loaded.model.load_state_dict(expected_state(loaded, masks))
    sums, tokens, outputs = observed(loaded, samples)
    for block in all_blocks(loaded):
        for made, expected in zip(hidden[block], outputs[block], strict=True):
            torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)
    if survivors < 1:  # inside a block statistics are dense: only its entry is the pruned model's
        return
    for block, found in enumerate(statistics):
        assert found.keys() == loaded.layout.linears(block).keys()
        for name, stats in found.items():
            assert stats.sum_squares.dtype == torch.float32
            expected = sums[block, name].float()
            torch.testing.assert_close(stats.sum_squares, expected, rtol=1e-5, atol=1e-6)
            assert stats.tokens == tokens[block, name] == 2 * SEQ_LEN


@pytest.mark.parametrize("family", FAMILIES)
def test_wanda_equals_its_definition_on_whole_models(family):
    loaded, samples = tiny_model(family), token_samples(2, SEQ_LEN)
    before = state_of(loaded)
    masks = prune_all(loaded, samples)
    assert equal_bits(state_of(loaded), before)
    assert traces_left(loaded) == []
    slow = slow_wanda(loaded, samples)
    assert masks.keys() == slow.keys()
    for block, named in masks.items():
        assert list(named) == list(loaded.layout.linears(block))
        for name, mask in named.items():
            d_in = mask.shape[1]
            assert set(mask.row_survivors()) == {d_in - int(d_in * 0.4)}
            # Sums of other precision may swap two nearly equal scores of a row.
            wrong = np.count_nonzero(mask.to_bool() != slow[block][name].to_bool())
            assert wrong <= 2 * max(1, mask.numel // 1000)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_half_precision(dtype):
    loaded, samples = tiny_model("llama", dtype), token_samples(2, SEQ_LEN)
    walk = BlockWalk(loaded, samples)
    masks = random_masks(loaded)
    for block in all_blocks(loaded):
        assert {stats.sum_squares.dtype for stats in walk.collect().values()} == {torch.float32}
        walk.advance(masks[block])
        assert {tensor.dtype for tensor in walk.hidden} == {dtype}
    loaded.model.load_state_dict(expected_state(loaded, masks))
    outputs = observed(loaded, samples)[2][walk.position - 1]
    for made, expected in zip(walk.hidden, outputs, strict=True):
        torch.testing.assert_close(made, expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom"])
def test_a_walk_in_pieces_equals_a_walk_in_one_go(family):
    loaded, samples = tiny_model(family), token_samples(2, SEQ_LEN)
    whole = prune_all(loaded, samples)
    hidden, pieces = None, {}
    for block in all_blocks(loaded):
        walk = BlockWalk(loaded, samples, hidden=hidden, start=block)
        pieces |= dict(prune_blocks(walk, WANDA, dict.fromkeys(range(block, block + 1), SPEC)))
        hidden = [tensor.clone() for tensor in walk.hidden]
    assert pieces == whole


def test_a_global_mask_makes_the_next_input_in_an_iterative_schedule():
    loaded, samples = tiny_model(), token_samples(2, SEQ_LEN)
    chosen = random_masks(loaded)
    walk = BlockWalk(loaded, samples)
    own = prune_block(walk, WANDA, SPEC)
    assert walk.position == 0 and own != chosen[0]
    walk.advance(chosen[0])
    resumed = BlockWalk(loaded, samples, hidden=walk.hidden, start=1)
    assert prune_block(resumed, WANDA, SPEC) == prune_block(walk, WANDA, SPEC)
    loaded.model.load_state_dict(expected_state(loaded, {0: chosen[0]}))
    sums, _, _ = observed(loaded, samples)
    for name, stats in walk.collect().items():
        torch.testing.assert_close(stats.sum_squares, sums[1, name].float(), rtol=1e-5, atol=1e-6)


def test_a_sample_does_not_depend_on_the_others():
    loaded, samples = tiny_model("mistral"), token_samples(3, SEQ_LEN)
    together = BlockWalk(loaded, samples)
    alone = [BlockWalk(loaded, [sample]) for sample in samples]
    mask = random_masks(loaded)[0]
    total = together.collect()
    parts = [walk.collect() for walk in alone]
    for name, stats in total.items():
        expected = sum(part[name].sum_squares for part in parts)
        torch.testing.assert_close(stats.sum_squares, expected)
    for walk in (together, *alone):
        walk.advance(mask)
    for made, walk in zip(together.hidden, alone, strict=True):
        assert torch.equal(made, walk.hidden[0])


def test_samples_may_differ_in_length():
    loaded = tiny_model("gemma2")
    samples = token_samples(1, 5) + token_samples(1, SEQ_LEN)
    walk = BlockWalk(loaded, samples)
    assert {stats.tokens for stats in walk.collect().values()} == {5 + SEQ_LEN}
    walk.advance({})
    expected = observed(loaded, samples)[2][0]
    for made, output in zip(walk.hidden, expected, strict=True):
        torch.testing.assert_close(made, output, rtol=1e-5, atol=1e-5)


def count_forwards(loaded, monkeypatch):
    calls = dict.fromkeys(all_blocks(loaded), 0)
    kind = type(loaded.layout.blocks[0])
    forward = kind.forward

    def counted(self, *args, **kwargs):
        calls[loaded.layout.blocks.index(self)] += 1
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(kind, "forward", counted)
    return calls


def test_work_is_proportional_to_the_clients_samples(monkeypatch):
    loaded = tiny_model()
    calls = count_forwards(loaded, monkeypatch)
    for count in (1, 4):
        calls.update(dict.fromkeys(calls, 0))
        prune_all(loaded, token_samples(count, SEQ_LEN))
        # Dense and pruned for each sample; nobody needs the last output.
        assert calls == {0: 2 * count, 1: 2 * count, 2: count}


def test_a_pruner_without_inputs_runs_no_block(monkeypatch):
    loaded, samples = tiny_model(), token_samples(2, SEQ_LEN)
    with_samples = prune_all(loaded, samples, MAGNITUDE)
    calls = count_forwards(loaded, monkeypatch)
    assert prune_all(loaded, [], MAGNITUDE) == with_samples
    assert set(calls.values()) == {0}
    walk = BlockWalk(loaded, samples)
    list(prune_blocks(walk, MAGNITUDE, dict.fromkeys(range(1), SPEC)))
    assert not walk.hidden
    resumed = BlockWalk(loaded, samples, hidden=walk.hidden, start=1)
    masks = dict(prune_blocks(resumed, MAGNITUDE, dict.fromkeys(range(1, 3), SPEC)))
    assert {0: with_samples[0]} | masks == with_samples


def test_inputs_read_by_several_linears_are_squared_once(monkeypatch):
    seen = []
    sums = ColumnSquares.sums
    monkeypatch.setattr(
        ColumnSquares, "sums", lambda self, x: seen.append(x.shape) or sums(self, x)
    )
    statistics = BlockWalk(tiny_model(), token_samples(2, SEQ_LEN)).collect()
    assert len(statistics) == 7
    assert len(seen) == 2 * 4  # query, key and value; output; gate and up; down


def test_an_input_changed_in_place_is_squared_again():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

        def forward(self, hidden):
            made = self.first(hidden)
            hidden.mul_(2)
            return made + self.second(hidden)

    block, inputs = Block(), torch.randn(3, 4)
    linears = {name: LinearRef(name, module, (4, 4)) for name, module in block.named_children()}
    with torch.no_grad(), StatisticsRecorder(linears, get_kind("columns")) as watch:
        block(inputs.clone())
    found = watch.statistics()
    torch.testing.assert_close(found["first"].sum_squares, inputs.square().sum(0))
    torch.testing.assert_close(found["second"].sum_squares, 4 * inputs.square().sum(0))


def test_a_linear_that_is_never_called_stays_dense():
    loaded = tiny_model()
    loaded.layout.blocks[0].spare = torch.nn.Linear(32, 32)
    loaded = replace(loaded, layout=find_layout(loaded.model))
    walk = BlockWalk(loaded, token_samples(1, SEQ_LEN))
    assert loaded.layout.passage.idle == {"model.layers.0.spare"}
    assert "spare" not in walk.collect() and len(walk.collect()) == 7


def test_a_block_that_writes_to_its_input_does_not_change_the_walks_hidden_states(monkeypatch):
    loaded, samples = tiny_model(), token_samples(2, SEQ_LEN)
    kind = type(loaded.layout.blocks[0])
    forward = kind.forward

    def in_place(self, hidden_states, *args, **kwargs):
        return forward(self, hidden_states.mul_(2), *args, **kwargs)

    monkeypatch.setattr(kind, "forward", in_place)
    walk = BlockWalk(loaded, samples)
    first, second = walk.collect(), walk.collect()
    for name, stats in first.items():
        assert torch.equal(stats.sum_squares, second[name].sum_squares)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 3), (2, 700, 5), (3000, 900)])
def test_column_square_sums(dtype, shape):
    inputs = (100 * torch.randn(shape)).to(dtype)  # squares overflow float16
    before = inputs.clone()
    expected = inputs.double().square().flatten(0, -2).sum(0)
    torch.testing.assert_close(
        get_kind("columns").sums(inputs).double(), expected, rtol=1e-5, atol=0
    )
    assert torch.equal(inputs, before)


def test_equal_arguments_are_held_once():
    loaded = tiny_model("gemma3")

    def held(count):
        batches = (sample[None] for sample in token_samples(count, SEQ_LEN))
        calls = [call for _, calls in capture_inputs(loaded, batches) for call in calls]
        return len({id(tensor) for call in calls for tensor in call.tensors()})

    assert held(5) == held(1) > 4


def test_tensor_pool_tells_apart_what_differs():
    pool = TensorPool()
    tensor = torch.arange(6.0)
    assert pool.share(tensor) is pool.share(tensor.clone())
    for other in (tensor + 1, tensor.reshape(2, 3), tensor.double(), tensor.view(torch.int32)):
        assert torch.equal(pool.share(other), other)


def test_a_failing_block_leaves_model_and_walk_as_they_were(monkeypatch):
    loaded, samples = tiny_model(), token_samples(2, SEQ_LEN)
    before, mask = state_of(loaded), random_masks(loaded)[0]
    walk = BlockWalk(loaded, samples)
    expected = prune_block(walk, WANDA, SPEC)
    down = loaded.layout.linears(0)["mlp.down_proj"].module

    def fail(_inputs):
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(down, "forward", fail)
        for step in (walk.collect, lambda: walk.advance(mask)):
            with pytest.raises(ZeroDivisionError):
                step()
    assert equal_bits(state_of(loaded), before)
    assert traces_left(loaded) == []
    assert walk.position == 0
    assert prune_block(walk, WANDA, SPEC) == expected


def test_out_of_memory_names_the_keys_to_turn(monkeypatch):
    loaded, samples = tiny_model(), token_samples(1, SEQ_LEN)
    walk = BlockWalk(loaded, samples)

    def exhaust(*_args, **_kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    monkeypatch.setattr(loaded.layout.linears(0)["mlp.up_proj"].module, "forward", exhaust)
    keys = "`pruner.batch_size`, `pruner.seq_len`, `pruner.device`"
    for step in (walk.collect, lambda: walk.advance({}), lambda: prune_block(walk, WANDA, SPEC)):
        with pytest.raises(ModelError, match=f"2 GiB. Lower or change one of: {keys}") as caught:
            step()
        assert "block 0" in str(caught.value)


def test_a_pruners_complaint_is_told_with_the_linears_name():
    loaded = tiny_model()
    spec = BlockSpec(0.5, Pattern(3, 5), "row")
    with pytest.raises(ModelError, match=r"`model.layers.0.self_attn.q_proj`: .*divisible by 5"):
        prune_block(BlockWalk(loaded, token_samples(1, SEQ_LEN)), WANDA, spec)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 3}, "starts at block 0 to 2, got 3"),
        ({"start": 1}, r"hidden states for block 1 have shapes \[\]"),
        ({"start": 1, "hidden": [torch.zeros(1, SEQ_LEN, 32)]}, "Start the run again"),
        ({"start": 1, "hidden": [torch.zeros(1, 3, 32)] * 2}, r"\(1, 3, 32\)"),
    ],
)
def test_hidden_states_that_do_not_fit(options, message):
    with pytest.raises(ModelError, match=message):
        BlockWalk(tiny_model(), token_samples(2, SEQ_LEN), **options)


def test_samples_that_do_not_fit():
    with pytest.raises(ModelError, match="`pruner.seq_len` is 40"):
        BlockWalk(tiny_model(), token_samples(1, 40))
    with pytest.raises(ModelError, match="no calibration inputs.*num_calibration_samples"):
        BlockWalk(tiny_model(), []).collect()


def test_blocks_and_masks_that_do_not_fit():
    loaded = tiny_model()
    walk = BlockWalk(loaded, token_samples(1, SEQ_LEN))
    with pytest.raises(ModelError, match="Block 1 was asked for, but the walk is at block 0"):
        list(prune_blocks(walk, WANDA, dict.fromkeys(range(1, 3), SPEC)))
    with pytest.raises(ModelError, match="mlp.gone"):
        walk.advance({"mlp.gone": BitMask.from_bool(np.ones((2, 2), bool))})
    with pytest.raises(ModelError, match="shape"):
        walk.advance({"mlp.up_proj": BitMask.from_bool(np.ones((2, 2), bool))})
    assert walk.position == 0
    with pytest.raises(ModelError, match="Block 3 was asked for.*0 blocks left"):
        list(prune_blocks(walk, MAGNITUDE, dict.fromkeys(range(4), SPEC)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_walk_on_a_device_equals_one_on_the_cpu(family):
    loaded, samples = tiny_model(family), token_samples(2, SEQ_LEN)
    before, masks = state_of(loaded), random_masks(loaded)
    walks = BlockWalk(loaded, samples), BlockWalk(loaded, samples, "cuda")
    for block in all_blocks(loaded):
        here, there = (walk.collect() for walk in walks)
        for name, stats in there.items():
            assert stats.sum_squares.is_cuda
            torch.testing.assert_close(
                stats.sum_squares.cpu(), here[name].sum_squares, rtol=1e-3, atol=1e-4
            )
        for walk in walks:
            walk.advance(masks[block])
        for made, expected in zip(walks[1].hidden, walks[0].hidden, strict=True):
            assert not made.is_cuda
            torch.testing.assert_close(made, expected, rtol=1e-3, atol=1e-4)
    on_device = BlockWalk(loaded, samples, "cuda")
    for _, named in prune_blocks(on_device, WANDA, dict.fromkeys(all_blocks(loaded), SPEC)):
        for mask in named.values():
            d_in = mask.shape[1]
            assert set(mask.row_survivors()) == {d_in - int(d_in * 0.4)}
    assert equal_bits(state_of(loaded), before)
    assert {parameter.device.type for parameter in loaded.model.parameters()} == {"cpu"}
