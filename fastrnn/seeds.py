"""Seeds of random streams.

Each purpose of regularisation has its own stream, so that, for example, the dropout masks of the
word vectors and those of the hidden states are independent although they have the same seed.
"""

from __future__ import annotations

EMBED, VOCAB, MIX = 1, 2, 3
"""RNG stream ids, one per purpose: the dropout of the word vectors, the dropout of the hidden
states that the vocabulary layer reads, and scheduled sampling."""


def stream_seed(seed: int, stream: int) -> int:
    """Return the 64-bit seed of a stream."""
    return (seed + stream * 0x9E3779B97F4A7C15) % 2**64


def draw_seed(seed: int) -> int:
    """Return the seed of the draws of `fastrnn.decoding.sample`: another one for 0.

    The hash of ``src_c/random.h`` maps zeros to zero. With the seed 0, the first draw of the first
    image would always be the first word of the vocabulary, however improbable that is.
    """
    return seed or 0x9E3779B97F4A7C15
