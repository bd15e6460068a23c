import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprune.errors import WireError
from fedprune.wire.masks import BitMask, decode_block, encode_block


def random_masks(seed: int = 0) -> dict[str, BitMask]:
    draw = np.random.default_rng(seed)
    shapes = {"self_attn.q_proj": (3, 5), "mlp.up_proj": (7, 8), "mlp.down": (1, 1)}
    return {name: BitMask.from_bool(draw.random(shape) < 0.5) for name, shape in shapes.items()}


MASKS = random_masks()
SHAPES = {name: mask.shape for name, mask in MASKS.items()}
DATA = encode_block(MASKS)


def test_round_trip_in_order():
    found = decode_block(DATA, SHAPES)
    assert list(found) == list(MASKS)
    for name, mask in MASKS.items():
        assert np.array_equal(found[name].to_bool(), mask.to_bool())


def test_every_truncation_is_refused():
    for length in range(len(DATA)):
        with pytest.raises(WireError):
            decode_block(DATA[:length], SHAPES)


def test_trailing_bytes_are_refused():
    with pytest.raises(WireError, match="1 bytes follow the last mask"):
        decode_block(DATA + b"\0", SHAPES)


def test_every_flipped_byte_is_refused():
    for place in range(len(DATA)):
        broken = bytearray(DATA)
        broken[place] ^= 0x41
        with pytest.raises(WireError):
            decode_block(bytes(broken), SHAPES)


def test_other_linears_are_refused():
    with pytest.raises(WireError, match="2 linears, got masks for 3"):
        decode_block(DATA, dict(list(SHAPES.items())[:2]))
    reordered = dict(reversed(list(SHAPES.items())))
    with pytest.raises(WireError, match="another linear's"):
        decode_block(DATA, reordered)


def test_wrong_shape_names_the_linear():
    with pytest.raises(WireError, match=r"linear 'mlp\.up_proj'"):
        decode_block(DATA, {**SHAPES, "mlp.up_proj": (8, 7)})


def test_other_version_says_what_to_do():
    with pytest.raises(WireError, match="same release"):
        decode_block(DATA[:4] + b"\x09" + DATA[5:], SHAPES)


@given(st.binary(max_size=300))
def test_noise_is_refused_and_never_crashes(noise):
    with pytest.raises(WireError):
        decode_block(noise, SHAPES)
