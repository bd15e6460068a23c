"""Statistics are kept to the last bit, add up, and are refused where they were cut or edited."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch

from fedprune.config import config_from_overrides
from fedprune.errors import ConfigError, ModelError, WireError
from fedprune.methods.collection import Collection
from fedprune.methods.exchange import BlockTask, Contributor
from fedprune.methods.merging import merge
from fedprune.methods.statistics_folder import MANIFEST, StatisticsFolder, write_block
from fedprune.models.fingerprint import Fingerprint, fingerprint
from fedprune.models.loading import load_model
from fedprune.pruning.block_kinds import BlockKind
from fedprune.wire.arrays import ArraySpec, encode_arrays
from tests.support.jobs import opt_folder, whole_model
from tests.support.statistics import answers, collected, drawn, public

ALL = "strategy.statistics='columns,values,moments'"


@pytest.fixture(scope="module")
def loaded():
    return load_model(config_from_overrides(["model=demo"]).model)


@pytest.fixture(scope="module")
def clients(loaded):
    return drawn(loaded, 4)


@pytest.fixture(scope="module")
def everyone(tmp_path_factory, loaded, clients):
    return collected(tmp_path_factory.mktemp("all") / "s", loaded, clients, ALL)


def oracle(samples):
    """Whole forward passes of the library's own model: block, linear -> sums, slowly."""
    found = {}

    def add(key, module, args):
        x = args[0].detach().reshape(-1, args[0].shape[-1]).double()
        sums = (x.square().sum(0), x.sum(0), x.abs().sum(0), x.T @ x)
        before = found.get(key, (0, 0, 0, 0))
        found[key] = tuple(a + b for a, b in zip(before, sums, strict=True))

    loaded = whole_model("model=demo")
    for block, layer in enumerate(loaded.layout.blocks):
        for name, module in layer.named_modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_pre_hook(partial(add, (block, name)))
    with torch.no_grad():
        for sample in samples:
            loaded.model(input_ids=sample[None], use_cache=False)
    return found


def test_sums_are_those_of_the_library_s_own_forward_passes(everyone, clients):
    expected = oracle([sample for samples in clients for sample in samples])
    for (block, name), (squares, sums, absolute, moments) in expected.items():
        columns = everyone.linears(block, "columns")[name]
        values = everyone.linears(block, "values")[name]
        assert columns.tokens == values.tokens == 4 * 2 * 24
        close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-4)
        close(columns.sum_squares.double(), squares)
        close(values.sums.double(), sums)
        close(values.absolute.double(), absolute)
        close(everyone.linears(block, "moments")[name].moments.double(), moments, atol=1e-3)
    first = everyone.linears(0, "columns")
    assert first["self_attn.q_proj"] is first["self_attn.k_proj"]


def test_who_has_which_sample_and_who_comes_first_does_not_show(tmp_path, loaded, clients):
    texts = [sample for samples in clients for sample in samples]
    kinds = "strategy.statistics='columns,values'"
    alone = collected(tmp_path / "one", loaded, [texts], kinds)
    turned = collected(tmp_path / "many", loaded, [[one] for one in reversed(texts)], kinds)
    for block in range(alone.num_blocks):
        one, many = alone.arrays(block), turned.arrays(block)
        assert one.keys() == many.keys()
        assert all(np.array_equal(one[name], many[name]) for name in one)


@pytest.mark.parametrize("form", ["float32", "float16", "eigen", "nystrom"])
def test_folders_add_up_to_that_of_all_participants(tmp_path, loaded, clients, form):
    options = (ALL, f"strategy.moments={form}")
    whole = collected(tmp_path / "all", loaded, clients, *options)
    collected(tmp_path / "a", loaded, clients[:1], *options)
    collected(tmp_path / "b", loaded, clients[1:], *options, first=1)
    merged = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "merged")
    assert merged.manifest.participants == whole.manifest.participants
    assert merged.manifest.runs == ("run-0-1", "run-1-3")
    for block in range(whole.num_blocks):
        expected, found = whole.arrays(block), merged.arrays(block)
        exact = [name for name in expected if not name.startswith("moments.")]
        assert all(np.array_equal(expected[name], found[name]) for name in exact)
        for name in expected.keys() - set(exact):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-4)
        read = merged.linears(block, "moments")["mlp.down_proj"]
        assert read.moments.shape == (352, 352) and read.tokens == 4 * 2 * 24


def test_what_is_wider_than_allowed_has_column_sums(tmp_path, loaded, clients):
    options = ("strategy.statistics=moments", "strategy.max_width=200")
    whole = collected(tmp_path / "all", loaded, clients, *options)
    collected(tmp_path / "a", loaded, clients[:2], *options)
    collected(tmp_path / "b", loaded, clients[2:], *options, first=2)
    merged = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "merged")
    for folder in (whole, merged):
        found = folder.linears(2, "moments")
        assert found["mlp.down_proj"].sum_squares.shape == (352,)
        assert found["mlp.up_proj"].moments.shape == (128, 128)


def test_what_does_not_add_up_is_refused(tmp_path, loaded, clients, everyone):
    collected(tmp_path / "a", loaded, clients[:2])
    b = collected(tmp_path / "b", loaded, clients[1:], first=1)
    with pytest.raises(ConfigError, match="client 1 of .* have the same texts"):
        merge([tmp_path / "a", b.path], tmp_path / "out")
    with pytest.raises(ConfigError, match="Collect both with the same `strategy.statistics`"):
        merge([tmp_path / "a", everyone.path], tmp_path / "out")
    collected(tmp_path / "c", loaded, clients[3:], "strategy.pooling=clients", first=3)
    with pytest.raises(ConfigError, match="`strategy.pooling` tokens and"):
        merge([tmp_path / "a", tmp_path / "c"], tmp_path / "out")
    model = f"model={opt_folder(tmp_path / 'opt')}"
    other = load_model(config_from_overrides([model]).model)
    collected(tmp_path / "d", other, drawn(other, 1), model, first=5)
    with pytest.raises(ModelError, match="are of another model"):
        merge([tmp_path / "a", tmp_path / "d"], tmp_path / "out")
    with pytest.raises(ConfigError, match="two folders or more"):
        merge([tmp_path / "a"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_statistics_of_another_model_and_what_was_not_collected(everyone, loaded):
    marks, shapes = fingerprint(loaded), loaded.layout.shapes()
    everyone.check_model(marks, shapes)
    with pytest.raises(ModelError, match="are of another model"):
        everyone.check_model(Fingerprint(marks.config, "0" * 64, ""), shapes)
    with pytest.raises(ModelError, match="not of all linears"):
        everyone.check_model(marks, shapes[1:])
    with pytest.raises(ModelError, match="not of all linears"):
        everyone.check_model(marks, [{**one, "more": (1, 1)} for one in shapes])
    everyone.check_model(marks, [dict(list(one.items())[:2]) for one in shapes])  # pruner.ignore
    told = "strategy.statistics=columns,values,moments,cosines"
    with pytest.raises(ConfigError, match=told):
        everyone.require("cosines", "depth")


def damaged(folder: StatisticsFolder, copy) -> dict:
    shutil.copytree(folder.path, copy)
    return json.loads((copy / MANIFEST).read_text())


def test_a_file_that_was_cut_or_edited_is_refused(tmp_path, everyone):
    damaged(everyone, tmp_path / "cut")
    block = tmp_path / "cut" / "block-00001.safetensors"
    data = block.read_bytes()
    block.write_bytes(data[:-1])
    with pytest.raises(ConfigError, match=r"block-00001.*has \d+ bytes, expected \d+"):
        StatisticsFolder.open(tmp_path / "cut")
    block.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    found = StatisticsFolder.open(tmp_path / "cut")
    found.linears(0, "columns")
    with pytest.raises(ConfigError, match="was edited"):
        found.linears(1, "columns")
    block.unlink()
    with pytest.raises(ConfigError, match="is missing"):
        StatisticsFolder.open(tmp_path / "cut")


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        ({"version": 2}, "reads version 1. Solve with the release"),
        ({"format": "other"}, "is not of the format"),
        ({"inputs": 5}, "inputs: Input should be a valid tuple"),
        ({"participants": [{"name": "x"}]}, "participants.0.site: Field required"),
        ({"model": {"config": "", "weights": "", "transformers": "", "other": ""}}, "model.other"),
        ({"files": {}}, "must be those of"),
    ],
)
def test_a_manifest_that_was_edited(tmp_path, everyone, edit, told):
    plain = damaged(everyone, tmp_path / "copy")
    (tmp_path / "copy" / MANIFEST).write_text(json.dumps({**plain, **edit}))
    with pytest.raises(ConfigError, match=told):
        StatisticsFolder.open(tmp_path / "copy")


def test_no_folder_and_no_json(tmp_path, everyone):
    with pytest.raises(ConfigError, match="`fedprune collect` makes one"):
        StatisticsFolder.open(tmp_path)
    damaged(everyone, tmp_path / "copy")
    (tmp_path / "copy" / MANIFEST).write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        StatisticsFolder.open(tmp_path / "copy")


class Norms(BlockKind):
    """How often a block ran on a token, and the largest norms of what left it, summed."""

    name = "norms"
    exact = True
    together = True

    def specs(self, site):
        return {"count": ArraySpec("int64", (1,)), "order": ArraySpec("int64", (1,))}

    def start(self, site, kept):
        return _Norms(site, kept)


class _Norms:
    def __init__(self, site, kept):
        self._site, self._kept, self._count = site, kept, 0

    def hooks(self):
        return [self._site.module.register_forward_hook(self._add)]

    def _add(self, module, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        self._count += hidden.shape[:-1].numel()

    def close(self):
        self._kept["seen"] = self._kept.get("seen", 0) + 1
        return {"count": np.array([self._count]), "order": np.array([self._kept["seen"]])}


def test_a_statistic_of_whole_blocks(tmp_path, loaded, clients):
    kinds = ("columns", Norms())
    found = collected(tmp_path / "s", loaded, clients, kinds=kinds)
    for block in range(found.num_blocks):
        arrays = found.block(block, "norms")
        assert arrays["count"] == 4 * 2 * 24 and arrays["order"] == 4 * (block + 1)
    assert found.linears(0, "columns")["mlp.up_proj"].tokens == 192


def test_an_answer_that_is_not_whole_is_refused(loaded, clients):
    config = config_from_overrides(["strategy=collect", ALL])
    exchange = Collection(config, ("columns", Norms()))
    model, told = public(loaded), Contributor("x", 1, 48)
    payload = answers(loaded, exchange, clients[0])[0]
    sums = exchange.aggregator(BlockTask(model, 0))
    assert sums.sums_integers and exchange.together and exchange.payload == "sums"
    sums.check(payload, told)
    with pytest.raises(WireError, match="promised 47"):
        sums.check(payload, Contributor("x", 1, 47))
    for wrong in (payload[:-1], b"", encode_arrays({"columns": np.zeros(3, np.uint8)})):
        with pytest.raises(WireError):
            sums.check(wrong, told)
    huge = encode_arrays({"count": np.array([2**62]), "order": np.array([1])})
    part = exchange.parts["norms"].sums(BlockTask(model, 0))
    with pytest.raises(WireError, match="too large"):
        part.check(huge, told)
    state = sums.state()
    sums.add(sums.check(payload, told), told)
    before = exchange.aggregator(BlockTask(model, 0))
    before.restore({name: array.copy() for name, array in sums.state().items()})
    one, two = sums.close().arrays, before.close().arrays
    assert one.keys() == two.keys() and state["counts"] == 0
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_moments_are_told_to_the_operator():
    config = config_from_overrides(["strategy=collect", ALL])
    assert Collection(config, config.strategy.kinds).payload == "moments"
    with pytest.raises(ConfigError, match="There is no statistic 'cubes', only 'columns'"):
        Collection(config, ("cubes",))


def test_a_block_file_is_an_ordinary_safetensors_file(tmp_path):
    from safetensors.numpy import load_file

    write_block(tmp_path, 3, {"columns.a.tokens": np.array([7])})
    assert load_file(tmp_path / "block-00003.safetensors")["columns.a.tokens"] == 7
