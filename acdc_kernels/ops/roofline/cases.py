"""Shapes and edges of the roofline loops: below, at and above a vector, a mask byte and a chunk."""

from __future__ import annotations

SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "scalar": ((),),
    "empty_among_others": ((3,), (0, 4), (5,)),
    "around_a_vector": ((7,), (8,), (9,), (15,), (16,), (17,), (63,), (64,), (65,)),
    "convolutions": ((16, 3, 3, 3), (32, 16, 1, 1), (10, 33)),
    "around_a_chunk": ((65535,), (65536,), (65537,), (1000, 263)),
}
