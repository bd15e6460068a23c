"""Each client's samples and held-out share of a corpus."""

import pytest
import torch

from fedprune.config import compose_config, config_from_overrides, replace
from fedprune.data.clients import client_samples, heldout_shares
from fedprune.data.documents import Document
from fedprune.data.partitions import partition_documents
from fedprune.data.samples import packed_samples, published_samples
from fedprune.data.texts import load_documents
from fedprune.errors import DataError
from fedprune.seeds import derive_seed

BOS = -1


class Words:
    """Tokens are the numbers in a text, after one special token if asked for."""

    eos_token_id = 0

    def encode(self, text, *, add_special_tokens, verbose):
        assert not verbose
        return [BOS] * add_special_tokens + [int(word) for word in text.split()]


def corpus(lengths):
    found, first = [], 1
    for number, length in enumerate(lengths):
        text = " ".join(str(token) for token in range(first, first + length))
        found.append(Document(text, f"g{number % 3}", f"k{number:02}"))
        first += length
    return found


CORPUS = corpus([5, 60, 7, 45, 9, 80, 3, 52, 8, 70] * 3)


def config(**data):
    base = compose_config({"overrides": "pruner.num_calibration_samples=2 pruner.seq_len=20"})
    return replace(base, data=replace(base.data, **data))


def taken(samples):
    return [(sample.id, sample.tokens.tolist()) for sample in samples]


def test_published_samples_are_windows_of_documents_longer_than_them():
    samples = published_samples(CORPUS, Words(), range(60), 20, 7)
    texts = {d.key: [BOS, *map(int, d.text.split())] for d in CORPUS}
    for sample in samples:
        text = texts[sample.key]
        assert len(text) > 20 and sample.offset < len(text) - 20
        assert sample.tokens.tolist() == text[sample.offset : sample.offset + 20]
        assert sample.tokens.dtype == torch.int64
    assert len({sample.key for sample in samples}) == 15  # every long document, some twice
    assert len({sample.offset for sample in samples}) > 20
    assert any(sample.tokens[0] == BOS for sample in samples)


def test_published_samples_have_numbers_of_their_own():
    whole = taken(published_samples(CORPUS, Words(), range(12), 20, 7))
    assert whole == [
        one
        for start in range(0, 12, 3)
        for one in taken(published_samples(CORPUS[::-1], Words(), range(start, start + 3), 20, 7))
    ]
    assert whole != taken(published_samples(CORPUS, Words(), range(12), 20, 8))


def test_no_document_is_long_enough():
    with pytest.raises(DataError, match=r"`data.sampling`.*`pruner.seq_len` 80 .*none of 30"):
        published_samples(corpus([79, 5] * 15), Words(), range(1), 80, 0)


def test_iid_clients_get_slices_of_the_published_samples():
    chosen = config(sampling="published", partition="iid")
    clients = [client_samples(chosen, CORPUS, Words(), number, 4) for number in range(4)]
    seed = derive_seed(0, "calibration")
    assert [one for client in clients for one in taken(client)] == taken(
        published_samples(CORPUS, Words(), range(8), 20, seed)
    )
    # However many clients share them.
    halves = replace(chosen, pruner=replace(chosen.pruner, num_calibration_samples=4))
    assert taken(client_samples(halves, CORPUS, Words(), 1, 2)) == taken(clients[2] + clients[3])


def test_other_partitions_draw_from_the_client_s_own_documents():
    chosen = config(sampling="published", partition="by_group")
    for number in range(3):
        share = partition_documents(CORPUS, 3, number, "by_group", 0)
        found = client_samples(chosen, CORPUS, Words(), number, 3)
        assert {sample.key for sample in found} <= {d.key for d in share}


def test_a_node_with_its_own_texts_uses_all_of_them():
    for sampling in ("packed", "published"):
        chosen = config(source="node", sampling=sampling)
        found = client_samples(chosen, CORPUS[1:2], Words(), 3, 4)
        assert {sample.key for sample in found} == {"k01"}


@pytest.mark.parametrize("partition", ["by_group", "dirichlet"])
def test_packed_is_the_default_and_follows_from_seed_and_partition(partition):
    chosen = config(partition=partition, alpha=0.7)
    share = partition_documents(CORPUS, 3, 1, partition, derive_seed(0, "partition"), 0.7)
    wanted = packed_samples(share, Words(), 2, 20, derive_seed(0, "calibration", 1))
    found = client_samples(chosen, CORPUS, Words(), 1, 3)
    assert [s.tokens.tolist() for s in found] == [s.tokens.tolist() for s in wanted]
    again = client_samples(chosen, CORPUS[::-1], Words(), 1, 3)
    if partition == "dirichlet":  # 'by_group' cuts groups in the order of the source
        assert taken(again) == taken(found)
    other = client_samples(replace(chosen, seed=1), CORPUS, Words(), 1, 3)
    assert {s.id for s in other} != {s.id for s in found}


def test_ids_tell_the_place_of_a_packed_sample_s_first_token():
    texts = {d.key: [int(word) for word in d.text.split()] for d in CORPUS}
    samples = packed_samples(CORPUS, Words(), 40, 20, 5)
    for sample in samples:
        if sample.tokens[0] != Words.eos_token_id:
            assert texts[sample.key][sample.offset] == sample.tokens[0]
    ids = [sample.id for sample in samples]
    assert len(set(ids)) == len(ids)
    assert all(len(name) == 16 and int(name, 16) >= 0 for name in ids)


def documents(prefix, sizes, groups):
    return [
        Document("x" * size, group, f"{prefix}{number}")
        for number, (size, group) in enumerate(zip(sizes, groups, strict=True))
    ]


TRAIN = documents("t", [400, 300, 200, 100, 90], ["law", "law", "mail", "code", "mail"])


def shares(heldout, clients=2, train=TRAIN, **data):
    config = config_from_overrides([])
    config = replace(config, data=replace(config.data, **data))
    return heldout_shares(config, train, heldout, clients)


def test_an_owner_s_texts_stay_with_who_has_the_owner():
    heldout = documents("h", [10, 900, 20, 30], ["mail", "law", "code", "mail"])
    assert [[d.key for d in part] for part in shares(heldout)] == [["h1"], ["h0", "h2", "h3"]]


def test_texts_of_an_unknown_owner_go_by_how_much_one_has():
    heldout = documents("h", [70, 10, 10, 10], ["news"] * 4)
    parts = shares(heldout)
    assert [[d.key for d in part] for part in parts] == [["h0"], ["h1", "h2", "h3"]]


@pytest.mark.parametrize("how", ["by_group", "iid", "dirichlet"])
def test_every_text_goes_to_one_client_of_its_kind(how):
    config = config_from_overrides([f"data.partition={how}"])
    train, heldout = (load_documents(config.data, part) for part in ("train", "heldout"))
    parts = heldout_shares(config, train, heldout, 3)
    assert sorted(d.key for part in parts for d in part) == sorted(d.key for d in heldout)
    assert parts == heldout_shares(config, train[::-1] if how == "iid" else train, heldout, 3)
    seed = derive_seed(config.seed, "partition")
    for number, part in enumerate(parts):
        own = partition_documents(train, 3, number, how, seed, config.data.alpha)
        everybody = {d.group for d in train}
        assert {d.group for d in part} & everybody <= {d.group for d in own}
        assert not {d.key for d in part} & {d.key for d in own}
        share = sum(len(d.text) for d in part) / sum(len(d.text) for d in heldout)
        wanted = sum(len(d.text) for d in own) / sum(len(d.text) for d in train)
        assert how != "iid" or share == pytest.approx(wanted, abs=0.01)


def test_a_client_may_come_away_with_nothing():
    assert shares(documents("h", [10], ["law"])) == [documents("h", [10], ["law"]), []]
