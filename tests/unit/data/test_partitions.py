"""Every document goes to exactly one client, whatever the partition."""

from collections import Counter

import numpy as np
import pytest
from datasets import Dataset
from flwr_datasets.partitioner import DirichletPartitioner
from hypothesis import given
from hypothesis import strategies as st

from fedprune.config import DataConfig
from fedprune.config.keys import value_type
from fedprune.data.documents import Document
from fedprune.data.partitions import partition_documents
from fedprune.errors import DataError
from fedprune.seeds import derive_seed

PLAIN = ["by_group", "iid"]  # never leave a client without documents

corpora = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 50)), min_size=1, max_size=30).map(
    lambda rows: [
        Document("x" * size, f"g{group}", f"k{n}") for n, (group, size) in enumerate(rows)
    ]
)


def partitions(documents, count, how, seed=0):
    return [partition_documents(documents, count, number, how, seed) for number in range(count)]


def size(documents):
    return sum(len(document.text) for document in documents)


@pytest.mark.parametrize("how", PLAIN)
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
    for how in PLAIN:
        assert sorted(map(len, partitions(documents, 6, how))) == [1] * 6


def test_iid_shares_are_equal_seeded_and_independent_of_the_order():
    documents = [Document("x", f"g{n % 3}", f"k{n}") for n in range(100)]
    parts = partitions(documents, 7, "iid", seed=1)
    assert sorted(map(len, parts)) == [14] * 5 + [15] * 2
    assert parts == partitions(documents[::-1], 7, "iid", seed=1)
    assert parts != partitions(documents, 7, "iid", seed=2)
    assert all(len({d.group for d in part}) == 3 for part in parts)


@pytest.mark.parametrize("how", PLAIN)
def test_a_single_client_gets_everything_in_order(how):
    documents = [Document("x", f"g{n % 3}", f"k{n}") for n in range(10)]
    assert partition_documents(documents, 1, 0, how, 0) == documents


@pytest.mark.parametrize(
    ("count", "number", "how", "words"),
    [
        (0, 0, "iid", "`partition-id`.*`num-partitions`.* 0 of 0"),
        (2, 2, "iid", "got 2 of 2"),
        (2, -1, "by_group", "got -1 of 2"),
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


DOCUMENTS = [Document("x", f"owner{n % 4}", f"k{n:03}") for n in range(200)]


def parts(how, count=4, seed=0, alpha=1.0, documents=DOCUMENTS):
    return [
        partition_documents(documents, count, number, how, seed, alpha) for number in range(count)
    ]


SKEWS = sorted({*value_type(DataConfig.model_fields["partition"])[2]} - {"by_group"})


@pytest.mark.parametrize("how", SKEWS)
def test_every_document_once_in_any_order_of_files(how):
    found = parts(how)
    assert Counter(d for part in found for d in part) == Counter(DOCUMENTS)
    assert all(found)
    assert found == parts(how, documents=DOCUMENTS[::-1])


@pytest.mark.parametrize("how", [how for how in SKEWS if how != "natural"])
def test_another_seed_is_another_partition(how):
    assert parts(how, seed=0) != parts(how, seed=1)


@pytest.mark.parametrize(
    ("how", "units"),
    [
        ("iid", [1, 1, 1, 1]),
        ("linear", [1, 2, 3, 4]),
        ("square", [1, 4, 9, 16]),
        ("exponential", [np.exp(n) for n in (1, 2, 3, 4)]),
    ],
)
def test_sizes_grow_with_the_id_as_promised(how, units):
    sizes = [len(part) for part in parts(how)]
    wanted = [len(DOCUMENTS) * unit / sum(units) for unit in units]
    # What rounding down leaves over goes to the last client.
    assert sizes[:-1] == [int(share) for share in wanted[:-1]]
    assert sum(sizes) == len(DOCUMENTS)


def test_natural_clients_are_the_owners():
    assert [{d.group for d in part} for part in parts("natural")] == [
        {f"owner{n}"} for n in range(4)
    ]
    with pytest.raises(DataError, match=r"4 owners, and there are 3.*`federation.num_clients`"):
        parts("natural", count=3)


def test_dirichlet_s_alpha_decides_how_alike_clients_are():
    def largest_share(part):
        return max(Counter(d.group for d in part).values()) / len(part)

    few = np.mean([largest_share(part) for part in parts("dirichlet", alpha=0.05)])
    many = np.mean([largest_share(part) for part in parts("dirichlet", alpha=100.0)])
    assert few > 0.6 and many < 0.4


def test_dirichlet_is_that_of_flower_datasets():
    ordered = sorted(DOCUMENTS, key=lambda d: derive_seed(3, d.key))
    table = Dataset.from_dict(
        {"owner": [int(d.group[-1]) for d in ordered], "key": [d.key for d in ordered]}
    )
    theirs = DirichletPartitioner(
        5, "owner", 0.5, min_partition_size=1, seed=derive_seed(3, "dirichlet")
    )
    theirs.dataset = table
    for number, part in enumerate(parts("dirichlet", 5, seed=3, alpha=0.5)):
        assert [d.key for d in part] == theirs.load_partition(number)["key"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("how", "words"),
    [("exponential", ["'exponential'"]), ("dirichlet", ["`data.alpha` 0.001", "raise"])],
)
def test_a_client_without_documents_names_the_keys(how, words):
    with pytest.raises(DataError) as caught:
        partition_documents(DOCUMENTS, 40, 39, how, 0, 0.001)  # not itself the empty one
    for word in (*words, "`data.partition`", "`data.path`", "`federation.num_clients`"):
        assert word in str(caught.value)
