"""Random streams that depend on a seed, a purpose and a place in the sequence, and on nothing else.

Draws are made in blocks. A block has its own generator, found from (seed, purpose, block number), and its size is
fixed by the problem alone. So draw number 7000 is the same number whether one worker makes all draws or ten share
them, and whatever memory there is. The purpose keeps functions apart: directions drawn with seed 0 to be tested must
not be the very directions that the null with seed 0 is made of.
"""

import zlib
from collections.abc import Callable

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest

# One whole number, or several: (seed, layer, head) gives every head its own stream.
Seed = int | tuple[int, ...]


def generator(seed: Seed, purpose: str, block: int = 0) -> np.random.Generator:
    """The generator of one block of one purpose under a seed.

    Same arguments, same stream, on every machine; different arguments, independent streams. The bit generator is
    named (Philox) because numpy may change its default. Raises BadRequest for a seed that is negative or empty.
    """
    entropy = (seed,) if isinstance(seed, int) else seed
    if not entropy or any(part < 0 for part in entropy):
        raise BadRequest(f"a seed is a whole number >= 0, or several, got {seed!r}; pass for example 0 or (0, 3)")
    # Only the first part is entropy: numpy pads it with zeros, so that (1,) and (1, 0) would be one stream.
    key = (*entropy[1:], zlib.crc32(purpose.encode()), block)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy[0], spawn_key=key)))


def in_blocks(
    draw_block: Callable[[int], Float[np.ndarray, " draws"]], *, size: int, draws: int, first: int = 0
) -> Float[np.ndarray, " draws"]:
    """Draws `first` … `first + draws − 1` of the sequence that `draw_block(0)`, `draw_block(1)`, … make up.

    Whole blocks are computed and cut, so any way of sharing the range between calls gives the same bits.
    Raises BadRequest if draws < 1 or first < 0.
    """
    if draws < 1 or first < 0:
        raise BadRequest(f"draws >= 1 and first >= 0 were expected, got draws = {draws}, first = {first}")
    last = first + draws - 1
    blocks = [draw_block(block) for block in range(first // size, last // size + 1)]
    start = first % size
    return np.concatenate(blocks)[start : start + draws]
