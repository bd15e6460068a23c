"""Second moments on the wire: exact where float32, close where float16, and only what can be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.errors import WireError
from fedprune.wire.arrays import encode_arrays
from fedprune.wire.moments import (
    Columns,
    Cross,
    InputMoments,
    Sketch,
    Triangle,
    decode_moments,
    encode_moments,
)
from tests.support.damage import check_damage, check_sealed_damage


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
    assert there_and_back(Columns(sums), 3).diagonal.tobytes() == sums.tobytes()


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
    assert size + 100 < len(data) < size + 500


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


def test_damage_is_refused():
    check_damage(decode, DATA)
    check_sealed_damage(decode, DATA)


TOKENS = {"a.tokens": np.array(3, dtype=np.int64)}


def one_input(width=3, **parts):
    """Decode a message of one input with these arrays."""
    named = {f"a.{name}": np.asarray(array) for name, array in parts.items()}
    return decode_moments(encode_arrays(TOKENS | named), {"a": (1, width)})


def triangle(*entries):
    return np.array(entries, dtype="f4")


ONES = np.ones(3, "f4")
VECTORS = np.ones((2, 3), "f2")
SKETCH = {"diagonal": ONES, "scales": ONES[:2]}
OUTSIDE = (np.inf, np.nan, 1.001, -1.001)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({}, "'a.diagonal' is missing"),
        ({"triangle": triangle(1, 1, 1, 1, 1)}, r"must be float32\[6\], got float32\[5\]"),
        ({"triangle": np.ones(6)}, r"must be float32\[6\], got float64"),
        ({"triangle": triangle(np.inf, 1, 1, 1, 1, 1)}, "must be finite"),
        ({"triangle": triangle(1, np.nan, 1, 1, 1, 1)}, "must be finite"),
        ({"triangle": triangle(-1, 1, 1, 1, 1, 1)}, "not negative"),
        ({"triangle": np.ones(6, "f4"), "diagonal": ONES}, "1 arrays came"),
        ({"diagonal": -ONES}, "not negative"),
        ({"diagonal": ONES * np.inf, "correlations": ONES.astype("f2")}, "not negative"),
        ({"diagonal": ONES, "correlations": np.ones(4, "f2")}, r"must be float16\[3\]"),
        *(
            ({"diagonal": ONES, "correlations": np.array([1, 0, one], "f2")}, "from -1 to 1")
            for one in OUTSIDE
        ),
        ({"diagonal": ONES, "correlations": np.ones(3, "f2"), "scales": ONES}, "1 arrays came"),
        ({"diagonal": ONES, "eigen": VECTORS}, "'a.scales' is missing"),
        (SKETCH | {"eigen": VECTORS, "diagonal": -ONES}, "not negative"),
        (SKETCH | {"eigen": VECTORS, "scales": ONES[:2] * np.nan}, "Scales must be finite"),
        (SKETCH | {"eigen": VECTORS, "scales": ONES}, r"must be float32\[2\], got float32\[3\]"),
        (SKETCH | {"eigen": VECTORS.astype("f4")}, r"must be float16\[2, 3\], got float32"),
        (
            SKETCH | {"nystrom": np.ones((4, 3), "f2")},
            "3 inputs has as many vectors at most, got 4",
        ),
        (SKETCH | {"nystrom": np.ones((2, 4), "f2")}, r"must be float16\[2, 3\]"),
        (SKETCH | {"nystrom": np.ones(2, "f2")}, r"must be float16\[2, 3\], got float16\[2\]"),
        (SKETCH | {"nystrom": np.array(1, "f2")}, r"must be float16\[0, 3\]"),
        (SKETCH | {"eigen": VECTORS, "nystrom": VECTORS}, "1 arrays came"),
        *(({**SKETCH, "eigen": VECTORS * np.float16(one)}, "from -1 to 1") for one in OUTSIDE),
    ],
)
def test_sound_arrays_that_are_no_moments_are_refused(parts, words):
    with pytest.raises(WireError, match=words):
        one_input(**parts)


def test_what_may_be_off_the_diagonal_is_read():
    found = one_input(triangle=triangle(1, -1, 1, 1, 1, 1))[0].body.matrix()
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
        (lambda: InputMoments((), 3, Columns(ONES)), "one linear or more"),
        (lambda: InputMoments(("a",), 0, Columns(ONES)), "tokens"),
    ],
)
def test_what_cannot_be_is_not_made(make, words):
    with pytest.raises(WireError, match=words):
        make()


def crossed(width: int, precision: str, seed: int = 0) -> InputMoments:
    draw = np.random.default_rng(seed)
    own = (draw.standard_normal((9, width)) * draw.lognormal(0, 3, width)).astype(np.float32)
    away = (own * draw.lognormal(-1, 1, own.shape)).astype(np.float32)
    cross = Cross(away.T @ own, np.square(away).sum(0), precision)
    gram = own.T @ own
    triangle = Triangle.from_matrix(np.triu(gram) + np.triu(gram, 1).T, precision)
    return InputMoments(("a",), 9, triangle, cross)


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("width", [1, 7, 20])
def test_cross_moments_arrive(precision, width):
    sent = crossed(width, precision)
    (found,) = decode_moments(encode_moments([sent]), {"a": (2, width)})
    assert np.array_equal(found.cross.squares, sent.cross.squares)
    assert found.cross.precision == precision
    if precision == "float32":
        assert np.array_equal(found.cross.values, sent.cross.values)
    roots = np.sqrt(np.outer(sent.cross.squares, sent.body.diagonal).astype(np.float64))
    error = np.abs(found.cross.values.astype(np.float64) - sent.cross.values) / roots
    assert error.max() < 2.0**-11 + 1e-5


def test_damaged_cross_moments_are_refused():
    group = crossed(6, "float16")
    check_damage(lambda data: decode_moments(data, {"a": (2, 6)}), encode_moments([group]))
    nan = np.full((6, 6), np.nan, dtype=np.float32)
    with pytest.raises(WireError, match="finite"):
        Cross(nan, group.cross.squares)
    with pytest.raises(WireError, match="negative"):
        Cross(group.cross.values, -group.cross.squares)
    with pytest.raises(WireError, match="triangle"):
        InputMoments(("a",), 9, Columns(group.cross.squares), group.cross)
    with pytest.raises(WireError, match="no tokens"):
        InputMoments(("a",), 0, Triangle.from_matrix(np.zeros((6, 6), "f4")), group.cross)
    halves = np.full((6, 6), 2.0, dtype=np.float16)
    with pytest.raises(WireError, match="from -1 to 1"):
        Cross.from_correlations(group.body.diagonal, group.cross.squares, halves)
