"""Compiled loops over packed masks and the weights that they keep, without a branch a weight.

Written for numba. Weights are seen as unsigned integers: they are moved, never computed with.
"""

import numpy as np
from numpy.typing import NDArray

from fedprune.jit import jit

Words = NDArray[np.uint16] | NDArray[np.uint32]


@jit
def compress(words: Words, bits: NDArray[np.uint8], kept: Words) -> None:
    """Copy the words whose bit is set, one bit a word, lowest first.

    ``kept`` has one place for each and one more, which holds nothing afterwards.
    """
    place = 0
    whole = words.size // 8
    for byte in range(whole):
        flags = bits[byte]
        for lane in range(8):
            kept[place] = words[byte * 8 + lane]
            place += flags >> lane & 1
    for lane in range(words.size - whole * 8):
        kept[place] = words[whole * 8 + lane]
        place += bits[whole] >> lane & 1


@jit
def expand(kept: Words, bits: NDArray[np.uint8], words: Words) -> None:
    """Undo :func:`compress`; words whose bit is not set become zero.

    ``kept`` has one place more than there are set bits, as there.
    """
    place = 0
    whole = words.size // 8
    for byte in range(whole):
        flags = bits[byte]
        for lane in range(8):
            flag = flags >> lane & 1
            words[byte * 8 + lane] = kept[place] * flag
            place += flag
    for lane in range(words.size - whole * 8):
        flag = bits[whole] >> lane & 1
        words[whole * 8 + lane] = kept[place] * flag
        place += flag
