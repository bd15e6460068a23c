"""Held-out texts go to who calibrates on the same owners', each to one client."""

import pytest

from fedprune.config import config_from_overrides, replace
from fedprune.data.clients import heldout_shares
from fedprune.data.documents import Document
from fedprune.data.partitions import partition_documents
from fedprune.data.texts import load_documents
from fedprune.seeds import derive_seed


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
