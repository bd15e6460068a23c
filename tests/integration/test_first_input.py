"""The words of a client's texts are told by its first inputs, unless these are public text's."""

import numpy as np
import pytest
import torch

from client_app.app import app
from fedprune.errors import WireError
from fedprune.methods import public_text
from fedprune.methods.public_text import decode_samples, encode_samples, token_inputs
from fedprune.privacy.words import recovered_counts, score
from fedprune.pruning.blocks import BlockWalk, StandIn
from fedprune.wire.sums import decode_sums
from tests.support.architectures import tiny_model, token_samples
from tests.support.damage import check_damage, check_sealed_damage
from tests.support.grid import LocalGrid
from tests.support.jobs import job, masks_of, same_masks, samples_of, whole_model

pytestmark = pytest.mark.usefixtures("three_blocks")

TEXT = ("strategy=fedstats", "pruner.num_calibration_samples=1", "pruner.seq_len=32")
FIRST = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]


@pytest.fixture(autouse=True)
def short_text(monkeypatch):
    monkeypatch.setattr(public_text, "_SAMPLES", 4)
    monkeypatch.setattr(public_text, "_ROUNDS", 2)


def recovered(folder, *overrides):
    """Attack what the first of two clients sends of the first block's inputs."""
    loaded, sent = whole_model(), {}

    def keep(partition, reply):
        if reply.metadata.message_type == "train.prune" and partition == 0:
            sent.update({n: bytes(a.data) for n, a in reply.content["arrays"].items()})
        return reply

    job(folder, *TEXT, *overrides, grid=LocalGrid(app, 2, tamper=keep))
    first = sent[min(sent)]
    found = decode_sums(first, loaded.layout.shapes()[0])
    (sums,) = (one for one in found if "self_attn.q_proj" in one.linears)
    layer, table = loaded.layout.blocks[0], loaded.model.get_input_embeddings().weight
    with torch.no_grad():
        vectors = layer.input_layernorm(table).double().numpy()
    counts = recovered_counts(np.square(vectors), sums.sums.to_float64(), sums.tokens)
    own, other = (
        np.bincount(torch.cat(samples).numpy(), minlength=len(vectors))
        for samples in samples_of(2, *TEXT)
    )
    return score(counts, own, other)


def test_words_are_found_in_sums_and_not_behind_public_text(tmp_path):
    plain = recovered(tmp_path / "plain")
    assert plain.recall > 0.95 and plain.precision > 0.95
    hidden = recovered(tmp_path / "hidden", "privacy.first_input=public")
    assert hidden.recall < 0.5 and hidden.recall < plain.recall / 2
    assert hidden.precision < plain.precision / 2


@pytest.mark.parametrize(
    "options",
    [
        ("strategy=fedprllm",),
        ("strategy=fedstats", "schedule=iterative"),
        ("strategy=fedstats", "allocation=owl"),
        ("strategy=fedhessian", "pruner=sparsegpt"),
    ],
)
def test_every_method_takes_public_text_for_the_first_inputs(tmp_path, options):
    for name, seed in (("one", 0), ("other", 5)):  # other samples of the same texts, too
        more = ("privacy.first_input=public", f"privacy.public_text={public(tmp_path)}")
        job(tmp_path / name, *options, *more, f"data.partition={'iid' if seed else 'by_group'}")
    one, other = masks_of(tmp_path / "one"), masks_of(tmp_path / "other")
    if "allocation=owl" not in options:  # whose sparsities follow from the texts
        assert same_masks(*({key: m[key] for key in m if key in first()} for m in (one, other)))
    assert not same_masks(one, other)


def first():
    return {(0, name) for name in FIRST}


def public(folder):
    path = folder / "public.txt"
    path.write_text("This is public: it stands in a book that anybody may read. " * 60)
    return path


def test_a_walk_records_another_text_where_it_is_told_to():
    loaded = tiny_model("llama")
    own, other = token_samples(3, 12), token_samples(4, 12, seed=5)
    walk, plain, wanted = BlockWalk(loaded, own), BlockWalk(loaded, own), BlockWalk(loaded, other)
    walk.stand_in = StandIn(tuple(other), token_inputs(loaded))
    for number in range(2):
        for kind in ("columns", "moments"):
            found, usual = walk.collect(kind), plain.collect(kind)
            expected = BlockWalk(loaded, other[:3]).collect(kind)  # as many tokens as its own
            for name in found:
                source = expected if number == 0 and name in FIRST else usual
                one, two = _numbers(found[name]), _numbers(source[name])
                assert torch.equal(one, two), name
                assert found[name].tokens == 36
            assert found[FIRST[0]] is found[FIRST[1]]
        for each in (walk, plain, wanted):
            each.advance({})


def _numbers(statistic):
    return statistic.moments if hasattr(statistic, "moments") else statistic.sums


@pytest.mark.parametrize(("most", "lengths"), [(5, [5]), (12, [12]), (20, [12, 8]), (99, [12] * 3)])
def test_no_more_of_a_text_is_taken_than_there_is_of_ones_own(most, lengths):
    found = StandIn(tuple(token_samples(3, 12)), frozenset()).cut(most)
    assert list(map(len, found)) == lengths


def test_samples_survive_the_way_and_nothing_else_does():
    samples = token_samples(3, 12)
    data = encode_samples(samples)
    assert all(map(torch.equal, decode_samples(data, 100), samples))
    with pytest.raises(WireError):
        decode_samples(data, 3)  # of a larger vocabulary
    check_damage(lambda some: decode_samples(some, 100), data)
    check_sealed_damage(lambda some: decode_samples(some, 100), data)
