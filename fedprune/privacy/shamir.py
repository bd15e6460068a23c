"""Shamir's secret sharing over GF(2**128), for thousands of secrets at once.

Shares are those of ``Crypto.Protocol.SecretSharing.Shamir`` of pycryptodome, whose tests the tests
here use: a secret of 16 bytes is a polynomial over GF(2) modulo 1 + x + x**2 + x**7 + x**128, the
highest power first, and share number i is the value at i of a random polynomial over that field
which is the secret at 0 (Shamir, How to share a secret, CACM 1979). pycryptodome takes 20 ms a
secret for 64 holders, and a client has hundreds.
"""

import os
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

SECRET = 16
"""Bytes of a secret, and of a share."""
MOST_HOLDERS = 127

_MODULUS = (1 << 128) | 0x87
_FOLD = np.uint64(0x87)
_ONE, _TOP = np.uint64(1), np.uint64(63)
_NUMBER_BITS = MOST_HOLDERS.bit_length()
_ELEMENT_BITS = 128

Elements = NDArray[np.uint64]  # shape (2, ...), the upper halves first


def split(secrets: NDArray[np.uint8], threshold: int, holders: int) -> NDArray[np.uint8]:
    """Return shares of secrets, of which any ``threshold`` give them and fewer say nothing.

    `secrets`: shape (secrets, 16). `threshold`: 1 to ``holders``. Returns shape (holders, secrets,
    16); the first holder's are shares number 1. Raises ValueError if there are no such shares.
    """
    if not 1 <= threshold <= holders <= MOST_HOLDERS:
        raise ValueError(f"no {threshold} of {holders} shares, there are {MOST_HOLDERS} at most")
    drawn = os.urandom((threshold - 1) * secrets.size)
    coefficients = np.frombuffer(drawn, np.uint8).reshape(threshold - 1, *secrets.shape)
    numbers = np.zeros((2, holders, 1), np.uint64)
    numbers[1, :, 0] = np.arange(1, holders + 1)
    values = np.zeros((2, holders, len(secrets)), np.uint64)
    for coefficient in (*coefficients, secrets):
        values = _times(values, numbers, _NUMBER_BITS)
        values ^= _elements(coefficient)[:, None]
    return _bytes(values)


def combine(numbers: NDArray[np.int64], shares: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the secrets that shares give, whether right or wrong.

    `numbers`: the shares' numbers, different in each row, shape (dealers, threshold). `shares`:
    shape (dealers, threshold, secrets, 16). Returns shape (dealers, secrets, 16).
    """
    unique, places = np.unique(numbers, axis=0, return_inverse=True)
    weights = _weights(unique)[:, places.reshape(-1)]
    terms = _times(_elements(shares), weights[..., None], _ELEMENT_BITS)
    return _bytes(np.bitwise_xor.reduce(terms, axis=2))


def _weights(numbers: NDArray[np.int64]) -> Elements:
    """Return what each share counts in Lagrange's formula at 0, shape (2, dealers, threshold)."""
    found = np.zeros((2, *numbers.shape), np.uint64)
    found[1] = 1
    for column in range(numbers.shape[1]):
        other = numbers[:, column, None]
        distances = numbers ^ other
        found = _times(found, _inverses()[:, distances], _ELEMENT_BITS)
        factors = np.zeros((2, *numbers.shape), np.uint64)
        factors[1] = np.where(distances == 0, 1, other)
        found = _times(found, factors, _NUMBER_BITS)
    return found


@lru_cache(maxsize=1)
def _inverses() -> Elements:
    """Return the inverses of the numbers of shares, by number; that of 0 is 1 here."""
    found = [1, *(_inverse(number) for number in range(1, MOST_HOLDERS + 1))]
    words = [[one >> 64 for one in found], [one & (1 << 64) - 1 for one in found]]
    return np.array(words, np.uint64)


def _inverse(number: int) -> int:
    """Return an inverse by Euclid's algorithm: ``rest = times * number`` modulo the modulus."""
    rest, times, other, others = number, 1, _MODULUS, 0
    while rest != 1:
        shift = other.bit_length() - rest.bit_length()
        if shift < 0:
            rest, times, other, others = other, others, rest, times
        else:
            other ^= rest << shift
            others ^= times << shift
    return times


def _times(elements: Elements, factors: Elements, bits: int) -> Elements:
    """Return products with factors that have no power of x from ``bits`` on."""
    shape = np.broadcast_shapes(elements.shape, factors.shape)[1:]
    high, low = np.zeros(shape, np.uint64), np.zeros(shape, np.uint64)
    for place in reversed(range(bits)):
        fold = high >> _TOP
        fold *= _FOLD
        high <<= _ONE
        high |= low >> _TOP
        low <<= _ONE
        low ^= fold
        word, shift = factors[0 if place >= 64 else 1], np.uint64(place % 64)
        taken = -((word >> shift) & _ONE)  # all ones where the power is there
        high ^= elements[0] & taken
        low ^= elements[1] & taken
    return np.stack([high, low])


def _elements(plain: NDArray[np.uint8]) -> Elements:
    words = np.ascontiguousarray(plain).view(">u8")
    return np.ascontiguousarray(np.moveaxis(words, -1, 0), dtype=np.uint64)


def _bytes(elements: Elements) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.moveaxis(elements, 0, -1), dtype=">u8").view(np.uint8)
