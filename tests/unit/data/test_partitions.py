"""Partitions: every document exactly once, balanced, and the same in every process."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprune.data.documents import Document
from fedprune.data.partitions import partition_documents
from fedprune.errors import DataError

HOWS = ["by_group", "iid"]  # never leave a client without documents

corpora = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 50)), min_size=1, max_size=30).map(
    lambda rows: [
        Document("x" * size, f"g{group}", f"k{n}") for n, (group, size) in enumerate(rows)
    ]
)


def partitions(documents, count, how, seed=0):
    return [partition_documents(documents, count, number, how, seed) for number in range(count)]


def size(documents):
    return sum(len(document.text) for document in documents)


@pytest.mark.parametrize("how", HOWS)
@given(corpora, st.integers(1, 30), st.integers(0, 3))
def test_every_document_goes_to_exactly_one_client_and_none_is_empty(how, documents, count, seed):
    count = min(count, len(documents))
    parts = partitions(documents, count, how, seed)
    assert Counter(d for part in parts for d in part) == Counter(documents)
    assert all(parts)


@given(corpora, st.integers(1, 6))
def test_groups_stay_whole_where_there_are_enough(documents, count):
    count = min(count, len({d.group for d in documents}))
    parts = partitions(documents, count, "by_group")
    owners = {(d.group, number) for number, part in enumerate(parts) for d in part}
    assert len(owners) == len({d.group for d in documents})


@given(corpora, st.integers(1, 30))
def test_a_client_of_many_has_one_group_only(documents, count):
    groups = len({d.group for d in documents})
    count = max(groups, min(count, len(documents)))
    assert all(
        len({d.group for d in part}) == 1 for part in partitions(documents, count, "by_group")
    )


def test_by_group_balances_characters():
    sizes = [100, 90, 80, 70, 60, 50, 40, 30, 20, 10]
    documents = [Document("x" * n, f"g{n}", f"k{n}") for n in sizes]
    loads = [size(part) for part in partitions(documents, 3, "by_group")]
    assert sum(loads) == 550 and max(loads) - min(loads) <= 20


def test_large_groups_are_shared_in_proportion():
    documents = [Document("x" * 10, "large", f"l{n}") for n in range(60)]
    documents += [Document("x" * 10, "small", f"s{n}") for n in range(20)]
    parts = partitions(documents, 8, "by_group")
    assert [{d.group for d in part} for part in parts] == [{"large"}] * 6 + [{"small"}] * 2
    assert [size(part) for part in parts] == [100] * 8


def test_parts_of_a_group_are_consecutive_and_even():
    documents = [Document("x" * (1 + n % 5), "g", f"k{n:03}") for n in range(300)]
    parts = partitions(documents, 7, "by_group")
    assert [d for part in parts for d in part] == documents
    loads = [size(part) for part in parts]
    assert max(loads) - min(loads) <= 10


def test_one_document_each_at_the_limit():
    documents = [Document("x" * 10**n, "g", f"k{n}") for n in range(6)]
    for how in HOWS:
        assert sorted(map(len, partitions(documents, 6, how))) == [1] * 6


def test_iid_shares_are_equal_seeded_and_independent_of_the_order():
    documents = [Document("x", f"g{n % 3}", f"k{n}") for n in range(100)]
    parts = partitions(documents, 7, "iid", seed=1)
    assert sorted(map(len, parts)) == [14] * 5 + [15] * 2
    assert parts == partitions(documents[::-1], 7, "iid", seed=1)
    assert parts != partitions(documents, 7, "iid", seed=2)
    assert all(len({d.group for d in part}) == 3 for part in parts)


@pytest.mark.parametrize("how", HOWS)
def test_a_single_client_gets_everything_in_order(how):
    documents = [Document("x", f"g{n % 3}", f"k{n}") for n in range(10)]
    assert partition_documents(documents, 1, 0, how, 0) == documents


@pytest.mark.parametrize(
    ("count", "number", "how", "words"),
    [
        (0, 0, "iid", "`partition-id`.*`num-partitions`.* 0 of 0"),
        (2, 2, "iid", "got 2 of 2"),
        (2, -1, "by_group", "got -1 of 2"),
        (2, 0, "random", "`data.partition` must be one of 'by_group', 'iid', .* got 'random'"),
        (4, 0, "by_group", "3 documents cannot be shared by 4 clients"),
        (4, 0, "iid", "3 documents cannot be shared by 4 clients"),
    ],
)
def test_what_does_not_fit_is_refused(count, number, how, words):
    documents = [Document("x", "g", f"k{n}") for n in range(3)]
    with pytest.raises(DataError, match=words):
        partition_documents(documents, count, number, how, 0)
    with pytest.raises(DataError):
        partition_documents([], 1, 0, "iid", 0)
