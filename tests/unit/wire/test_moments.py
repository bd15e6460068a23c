"""Second moments on the wire: exact where float32, close where float16, and only what can be."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.errors import WireError
from fedprune.wire.moments import (
    Columns,
    InputMoments,
    Sketch,
    Triangle,
    decode_moments,
    encode_moments,
)
from tests.support.damage import check_damage, check_resealed_damage, resealed


def moments(width, tokens=5, seed=0, spread=3.0):
    draw = np.random.default_rng(seed)
    inputs = draw.standard_normal((tokens, width)) * draw.lognormal(0, spread, width)
    gram = (inputs.T @ inputs).astype(np.float32)
    return np.triu(gram) + np.triu(gram, 1).T


def there_and_back(body, width):
    data = encode_moments([InputMoments(("a",), 3, body)])
    (found,) = decode_moments(data, {"a": (2, width)})
    assert (found.linears, found.tokens) == (("a",), 3)
    again = decode_moments(encode_moments([found]), {"a": (2, width)})[0].body
    assert encode_moments([InputMoments(("a",), 3, again)]) == data  # what is rounded stays so
    return found.body


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(0, 99))
def test_float32_triangle_is_exact(width, seed):
    gram = moments(width, seed=seed)
    triangle = Triangle.from_matrix(gram)
    assert triangle.values.tolist() == [gram[i, j] for i in range(width) for j in range(i, width)]
    assert np.array_equal(triangle.diagonal, gram.diagonal()) and triangle.width == width
    found = there_and_back(triangle, width)
    assert found.precision == "float32" and np.array_equal(found.matrix(), gram)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(0, 99), st.sampled_from([0.1, 3.0, 12.0]))
def test_float16_triangle_is_close_on_every_scale(width, seed, spread):
    gram = moments(width, seed=seed, spread=spread)
    found = there_and_back(Triangle.from_matrix(gram, "float16"), width)
    roots = np.sqrt(gram.diagonal().astype(np.float64))
    error = np.abs(found.matrix().astype(np.float64) - gram) / np.outer(roots, roots)
    assert found.precision == "float16"
    assert np.array_equal(found.diagonal, gram.diagonal())
    assert error.max() <= 2.0**-12 + 1e-6


def test_columns_of_zeros_and_subnormals_stay_finite():
    inputs = np.array([[0, 1e-23, 1e-22, 3e18], [0, 1e-23, -1e-22, 3e18]], dtype=np.float32)
    gram = inputs.T @ inputs
    found = there_and_back(Triangle.from_matrix(gram, "float16"), 4).matrix()
    assert np.array_equal(found.diagonal(), gram.diagonal())
    assert not found[0].any() and np.isfinite(found).all()


def test_matrix_is_mirrored_across_strips():
    gram = moments(600, tokens=8)
    assert np.array_equal(Triangle.from_matrix(gram).matrix(), gram)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.data())
def test_sketches_are_rounded_a_vector(width, data):
    rank = data.draw(st.integers(0, width))
    draw = np.random.default_rng(width)
    vectors = (draw.standard_normal((width, rank)) * draw.lognormal(0, 9, rank)).astype(np.float32)
    vectors[:, :1] = 0
    diagonal = draw.lognormal(0, 5, width).astype(np.float32)
    kind = data.draw(st.sampled_from(["eigen", "nystrom"]))
    found = there_and_back(Sketch(vectors, diagonal, kind), width)
    assert found.kind == kind and found.rank == rank
    assert np.array_equal(found.diagonal, diagonal)
    largest = np.abs(vectors).max(axis=0)
    assert found.vectors.shape == vectors.shape
    assert (np.abs(found.vectors - vectors) <= largest * 2.0**-12 * 1.001).all()
    assert np.array_equal(np.abs(found.vectors).max(axis=0), largest)


def test_columns_are_exact():
    sums = np.array([0, 1e-45, 3e38], dtype=np.float32)
    assert there_and_back(Columns(sums), 3).sums.tobytes() == sums.tobytes()


@pytest.mark.parametrize(
    ("body", "size"),
    [
        (Triangle.from_matrix(moments(9)), 4 * 45),
        (Triangle.from_matrix(moments(9), "float16"), 4 * 9 + 2 * 36),
        (Sketch(np.ones((9, 2), "f4"), np.ones(9, "f4"), "eigen"), 4 * 9 + 2 * (4 + 2 * 9)),
        (Columns(np.ones(9, "f4")), 4 * 9),
    ],
)
def test_bytes(body, size):
    data = encode_moments([InputMoments(("a",), 3, body)])
    bare = encode_moments([InputMoments(("a",), 3, Columns(np.ones(0, "f4")))])
    assert len(data) - len(bare) == size


SHAPES = {"q": (4, 5), "k": (2, 5), "o": (5, 4), "gate": (3, 3), "down": (2, 6)}
GROUPS = [
    InputMoments(("q", "k"), 9, Triangle.from_matrix(moments(5))),
    InputMoments(("o",), 9, Triangle.from_matrix(moments(4), "float16")),
    InputMoments(("gate",), 9, Sketch(np.eye(3, 2, dtype="f4"), np.ones(3, "f4"), "nystrom")),
    InputMoments(("down",), 9, Columns(np.arange(6, dtype="f4"))),
]
DATA = encode_moments(GROUPS)


def decode(data):
    return decode_moments(data, SHAPES)


def test_a_block_has_a_body_of_its_own_for_each_input():
    found = decode(DATA)
    assert [each.linears for each in found] == [each.linears for each in GROUPS]
    assert [type(each.body) for each in found] == [type(each.body) for each in GROUPS]


def test_every_damage_is_refused():
    check_damage(decode, DATA)


def test_resealed_damage_never_fails_otherwise():
    check_resealed_damage(decode, DATA)


def one_input(body, offset, value, width=3):
    """Decode a message of one input, with a part of its body replaced."""
    data = encode_moments([InputMoments(("a",), 3, body)])
    start = 10 + 2 + 10 + 3
    return decode_moments(resealed(data, start + offset, value), {"a": (1, width)})


TRIANGLE = Triangle.from_matrix(np.ones((3, 3), "f4"))
HALF = Triangle.from_matrix(np.ones((3, 3), "f4"), "float16")
SKETCH = Sketch(np.ones((3, 2), "f4"), np.ones(3, "f4"), "eigen")
INF, NAN, MINUS, MORE = (struct.pack("<f", x) for x in (np.inf, np.nan, -1, 1.5))
HALVES = tuple(struct.pack("<e", x) for x in (np.inf, np.nan, 1.001, -1.001))


@pytest.mark.parametrize(
    ("body", "offset", "value", "words"),
    [
        (TRIANGLE, 0, b"\5", "form 5 and rank 0"),
        (TRIANGLE, 1, b"\1", "form 0 and rank 1"),
        (SKETCH, 1, b"\4", "form 2 and rank 4"),
        (TRIANGLE, 5, INF, "must be finite"),
        (TRIANGLE, 9, NAN, "must be finite"),
        (TRIANGLE, 5, MINUS, "not negative"),
        (HALF, 5, INF, "not negative"),
        *((HALF, 5 + 12, half, "from -1 to 1") for half in HALVES),
        (SKETCH, 5, MINUS, "not negative"),
        (SKETCH, 5 + 12, NAN, "Scales must be finite"),
        *((SKETCH, 5 + 20, half, "from -1 to 1") for half in HALVES),
        (Columns(np.ones(3, "f4")), 5, MINUS, "not negative"),
    ],
)
def test_well_sealed_nonsense_is_refused(body, offset, value, words):
    with pytest.raises(WireError, match=f"the input of 'a': .*{words}"):
        one_input(body, offset, value)


def test_what_may_be_off_the_diagonal_is_read():
    found = one_input(TRIANGLE, 9, MINUS)[0].body.matrix()
    assert found[0, 1] == found[1, 0] == -1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Triangle(np.zeros(5, "f4")), r"d \* \(d \+ 1\) / 2"),
        (lambda: Triangle(np.zeros(0, "f4")), r"d \* \(d \+ 1\) / 2"),
        (lambda: Triangle(np.zeros(6)), "float64"),
        (lambda: Triangle(np.array([1, np.nan, 1], "f4")), "finite"),
        (lambda: Triangle(np.array([1, 0, -1], "f4")), "not negative"),
        (lambda: Sketch(np.zeros((3, 4), "f4"), np.ones(3, "f4"), "eigen"), "not more columns"),
        (lambda: Sketch(np.zeros((2, 1), "f4"), np.ones(3, "f4"), "eigen"), "3 inputs"),
        (lambda: Sketch(np.zeros((3, 1)), np.ones(3, "f4"), "eigen"), "float64"),
        (lambda: Sketch(np.full((3, 1), np.inf, "f4"), np.ones(3, "f4"), "eigen"), "finite"),
        (lambda: Columns(-np.ones(3, "f4")), "not negative"),
        (lambda: Columns(np.ones((3, 1), "f4")), "vector"),
        (lambda: InputMoments((), 3, TRIANGLE), "one linear or more"),
        (lambda: InputMoments(("a",), 0, TRIANGLE), "tokens"),
    ],
)
def test_what_cannot_be_is_not_made(make, words):
    with pytest.raises(WireError, match=words):
        make()
