"""Keys, and the words that hide a client's own: all by `cryptography`, nothing is made up here.

X25519 (RFC 7748), HKDF with SHA-256 (RFC 5869), AES-256 in counter mode for masks and in Galois
mode for what only one reader may see. Randomness is the operating system's.
"""

import os
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from fedprune.errors import WireError

SEALED = 12 + 16  # bytes that sealing adds: nonce and tag
_NONCE = 12
_PIECE = 1 << 18  # bytes of a mask at a time: they stay in the processor's cache
_ZEROS = bytes(_PIECE)
_COUNTER = bytes(16)  # of a key that is used for one stream only

UInts = NDArray[np.unsignedinteger[Any]]


def new_secret() -> bytes:
    """Return a fresh secret of 32 bytes: a seed, or the private key of X25519."""
    return os.urandom(32)


def private_key(secret: bytes) -> X25519PrivateKey:
    """Return the private key that a secret is."""
    return X25519PrivateKey.from_private_bytes(secret)


def public_key(secret: bytes) -> bytes:
    """Return the public key of a private one."""
    return private_key(secret).public_key().public_bytes_raw()


def is_public_key(public: bytes) -> bool:
    """Whether a public key is no point with which every secret gives the same."""
    try:
        agreed_key(private_key(new_secret()), public, b"")
    except WireError:
        return False
    return True


def agreed_key(private: X25519PrivateKey, public: bytes, info: bytes) -> bytes:
    """Return the key that two parties share for one purpose.

    Raises WireError if the public key is one with which every secret gives the same.
    """
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise WireError("a public key is none of X25519's.") from None
    return own_key(shared, info)


def own_key(secret: bytes, info: bytes) -> bytes:
    """Return the key that a secret gives for one purpose."""
    return HKDF(SHA256(), 32, salt=None, info=info).derive(secret)


def sealed(key: bytes, plain: bytes, bound_to: bytes) -> bytes:
    """Encrypt for the one other who has the key; ``bound_to`` must be given to open it."""
    nonce = os.urandom(_NONCE)
    return nonce + AESGCM(key).encrypt(nonce, plain, bound_to)


def opened(key: bytes, box: bytes, bound_to: bytes) -> bytes | None:
    """Return what was sealed, None if it was not, or not so."""
    try:
        return AESGCM(key).decrypt(box[:_NONCE], box[_NONCE:], bound_to)
    except InvalidTag:
        return None


def add_stream(words: UInts, key: bytes, *, subtract: bool = False) -> None:
    """Add a key's mask to words, or take it off, modulo the words' size.

    `words`: contiguous uint8, uint16, uint32 or uint64 of shape (n,), or for 128 bits uint64 of
    shape (n, 2), the lower half first. Changed in place. `key`: 32 bytes, that are used for nothing
    else: the mask is AES-256-CTR's stream from 0 on, read as little-endian words.
    """
    encryptor = Cipher(AES(key), CTR(_COUNTER)).encryptor()
    buffer = bytearray(_PIECE + 16)
    flat = words.reshape(-1)
    step = _PIECE // words.itemsize
    for start in range(0, flat.size, step):
        piece = flat[start : start + step]
        encryptor.update_into(memoryview(_ZEROS)[: piece.nbytes], buffer)
        mask = np.frombuffer(buffer, piece.dtype.newbyteorder("<"), piece.size)
        add_words(piece.reshape(-1, *words.shape[1:]), mask.reshape(-1, *words.shape[1:]), subtract)


def add_words(total: UInts, words: UInts, subtract: bool = False) -> None:
    """Add words of :func:`add_stream`'s form to others in place, or take them off."""
    change = np.subtract if subtract else np.add
    if total.ndim == 1:
        change(total, words, out=total)
        return
    low, high = total[:, 0], total[:, 1]
    before = low.copy()
    change(low, words[:, 0], out=low)
    change(high, words[:, 1], out=high)
    change(high, low > before if subtract else low < before, out=high, casting="unsafe")
