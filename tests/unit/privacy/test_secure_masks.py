"""Masks are AES-256-CTR's stream read as words; keys are those of the standards."""

import numpy as np
import pytest
from Crypto.Cipher import AES
from Crypto.Hash import SHA256
from Crypto.Protocol.KDF import HKDF

from fedprune.errors import WireError
from fedprune.privacy.secure_masks import (
    add_stream,
    add_words,
    agreed_key,
    is_public_key,
    new_secret,
    opened,
    own_key,
    private_key,
    public_key,
    sealed,
)
from fedprune.privacy.secure_sums import BITS, WordSpec
from tests.support.secure_sums import drawn, integers

# RFC 7748, section 6.1.
ALICE = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
# A point of order 8 and its small kin: with them every secret gives zeros.
LOW_ORDER = [
    bytes(32),
    (1).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (2**255 - 20).to_bytes(32, "little"),
]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("length", [1, 3, 40_000])
def test_a_mask_is_the_stream_of_its_key_and_comes_off_again(bits, length):
    words = WordSpec(length, bits)
    before = drawn(words, ["a"])["a"]
    key = new_secret()
    stream = AES.new(key, AES.MODE_CTR, nonce=b"", initial_value=0).encrypt(
        bytes(length * bits // 8)
    )
    size = bits // 8
    mask = [int.from_bytes(stream[n * size : (n + 1) * size], "little") for n in range(length)]
    after = before.copy()
    add_stream(after, key)
    expected = [(a + b) % (1 << bits) for a, b in zip(integers(before), mask, strict=True)]
    assert integers(after) == expected
    add_stream(after, key, subtract=True)
    assert np.array_equal(after, before)
    add_stream(after, key, subtract=True)
    expected = [(a - b) % (1 << bits) for a, b in zip(integers(before), mask, strict=True)]
    assert integers(after) == expected


@pytest.mark.parametrize("bits", [8, 128])
def test_a_mask_of_more_than_a_piece_is_one_stream(bits):
    words = WordSpec((1 << 22) // bits + 3, bits)  # two pieces and a bit
    masked = np.zeros(words.spec.shape, words.spec.dtype)
    key = new_secret()
    add_stream(masked, key)
    stream = AES.new(key, AES.MODE_CTR, nonce=b"", initial_value=0).encrypt(bytes(masked.nbytes))
    assert masked.tobytes() == stream


def test_carries_and_borrows_of_wide_words():
    most = (1 << 64) - 1
    left = np.array([[most, most], [most, 0], [0, 0], [0, 5]], np.uint64)
    right = np.array([[1, 0], [most, most], [1, 0], [1, 5]], np.uint64)
    total = left.copy()
    add_words(total, right)
    wrapped = zip(integers(left), integers(right), strict=True)
    assert integers(total) == [(a + b) % (1 << 128) for a, b in wrapped]
    add_words(total, right, subtract=True)
    assert np.array_equal(total, left)
    add_words(total, right, subtract=True)
    wrapped = zip(integers(left), integers(right), strict=True)
    assert integers(total) == [(a - b) % (1 << 128) for a, b in wrapped]


def test_two_agree_on_a_key_that_depends_on_what_it_is_for():
    bob = new_secret()
    info = b"sum 1"
    key = agreed_key(private_key(ALICE), public_key(bob), info)
    assert key == agreed_key(private_key(bob), public_key(ALICE), info) and len(key) == 32
    assert key != agreed_key(private_key(bob), public_key(ALICE), b"sum 2")
    assert own_key(bob, info) != own_key(bob, b"sum 2") != own_key(ALICE, b"sum 2")


def test_keys_are_those_of_the_standard():
    """RFC 7748, section 6.1, and HKDF of the shared secret as pycryptodome computes it."""
    told = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert public_key(ALICE).hex() == told
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    shared = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    found = agreed_key(private_key(bob), public_key(ALICE), b"info")
    assert found == HKDF(shared, 32, b"", SHA256, context=b"info")


@pytest.mark.parametrize("point", LOW_ORDER)
def test_keys_with_which_all_secrets_agree_alike_are_none(point):
    assert not is_public_key(point) and is_public_key(public_key(new_secret()))
    with pytest.raises(WireError, match="none of X25519's"):
        agreed_key(private_key(new_secret()), point, b"")


def test_what_is_sealed_opens_with_its_key_for_its_purpose_only():
    key = new_secret()
    box = sealed(key, b"shares", b"from a to b")
    assert opened(key, box, b"from a to b") == b"shares"
    assert opened(new_secret(), box, b"from a to b") is None
    assert opened(key, box, b"from a to c") is None
    assert sealed(key, b"shares", b"from a to b") != box
    for place in range(len(box)):
        damaged = bytearray(box)
        damaged[place] ^= 1
        assert opened(key, bytes(damaged), b"from a to b") is None
