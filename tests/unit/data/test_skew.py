"""Skewed partitions: every document once, the promised sizes, and the same for everybody."""

from collections import Counter

import numpy as np
import pytest
from datasets import Dataset
from flwr_datasets.partitioner import DirichletPartitioner

from fedprune.config import DataConfig
from fedprune.config.keys import value_type
from fedprune.data.documents import Document
from fedprune.data.partitions import HOWS, SKEWS, partition_documents
from fedprune.errors import DataError
from fedprune.seeds import derive_seed

DOCUMENTS = [Document("x", f"owner{n % 4}", f"k{n:03}") for n in range(200)]


def parts(how, count=4, seed=0, alpha=1.0, documents=DOCUMENTS):
    return [
        partition_documents(documents, count, number, how, seed, alpha) for number in range(count)
    ]


def test_the_configuration_offers_what_the_code_has():
    assert value_type(DataConfig.model_fields["partition"])[2] == HOWS


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
