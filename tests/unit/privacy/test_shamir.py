"""Shares are pycryptodome's, both ways, and too few of them say nothing."""

import numpy as np
import pytest
from Crypto.Protocol.SecretSharing import Shamir

from fedprune.privacy import shamir
from fedprune.privacy.shamir import MOST_HOLDERS, SECRET, combine, split

RNG = np.random.default_rng(0)
MODULUS = (1 << 128) | 0b10000111


def secrets(count):
    return RNG.integers(0, 256, (count, SECRET), np.uint8)


def times(a: int, b: int) -> int:
    """Multiply polynomials over GF(2), then divide by the modulus: the slow, obvious way."""
    product = 0
    for place in range(128):
        if b >> place & 1:
            product ^= a << place
    for place in reversed(range(128, 256)):
        if product >> place & 1:
            product ^= MODULUS << place - 128
    return product


@pytest.mark.parametrize(("threshold", "holders"), [(1, 1), (2, 3), (43, 64), (68, 101), (4, 127)])
def test_pycryptodome_opens_our_shares(threshold, holders):
    some = secrets(5)
    shares = split(some, threshold, holders)
    assert shares.shape == (holders, 5, SECRET)
    chosen = RNG.permutation(holders)[:threshold]
    for number, secret in enumerate(some):
        told = [(int(one) + 1, shares[one, number].tobytes()) for one in chosen]
        assert Shamir.combine(told) == secret.tobytes()


@pytest.mark.parametrize(("threshold", "holders"), [(2, 3), (5, 9), (7, 127)])
def test_we_open_pycryptodomes_shares(threshold, holders):
    some = secrets(4)
    dealt = [Shamir.split(threshold, holders, secret.tobytes()) for secret in some]
    numbers = np.stack([RNG.permutation(holders)[:threshold] + 1 for _ in some])
    shares = [
        [np.frombuffer(dict(shares)[int(number)], np.uint8) for number in row]
        for shares, row in zip(dealt, numbers, strict=True)
    ]
    found = combine(numbers, np.array(shares)[:, :, None])
    assert np.array_equal(found[:, 0], some)


def test_products_and_inverses_are_those_of_the_field():
    left, right = secrets(50), secrets(50)
    found = shamir._bytes(shamir._times(shamir._elements(left), shamir._elements(right), 128))
    for a, b, c in zip(left, right, found, strict=True):
        a, b, c = (int.from_bytes(one.tobytes(), "big") for one in (a, b, c))
        assert times(a, b) == c
    inverses = shamir._bytes(shamir._inverses())
    for number in range(1, MOST_HOLDERS + 1):
        assert times(number, int.from_bytes(inverses[number].tobytes(), "big")) == 1


def test_a_wrong_share_or_number_gives_something_else():
    some = secrets(1)
    shares = split(some, 3, 5)[None, :3].copy()
    numbers = np.array([[1, 2, 3]])
    assert np.array_equal(combine(numbers, shares)[0], some)
    assert not np.array_equal(combine(numbers + 1, shares)[0], some)
    shares[0, 1, 0, 7] ^= 1
    assert not np.array_equal(combine(numbers, shares)[0], some)


def test_too_few_shares_are_noise_whatever_the_secret():
    """Each byte of threshold - 1 shares, over many sharings of all zeros: every value as often."""
    some = np.zeros((8192, SECRET), np.uint8)
    shares = split(some, 3, 4)
    for pair in ([0, 1], [2, 3]):
        joint = shares[pair[0]].astype(np.int64) * 256 + shares[pair[1]]
        counts = np.bincount(joint.reshape(-1), minlength=1 << 16)
        expected = joint.size / (1 << 16)
        statistic = ((counts - expected) ** 2 / expected).sum()
        assert abs(statistic - (1 << 16)) < 6 * np.sqrt(2 * (1 << 16))
    assert not np.array_equal(split(some, 3, 4), shares)  # drawn anew


@pytest.mark.parametrize(("threshold", "holders"), [(0, 3), (4, 3), (2, 128)])
def test_shares_that_there_are_not(threshold, holders):
    with pytest.raises(ValueError, match=f"no {threshold} of {holders} shares"):
        split(secrets(1), threshold, holders)
