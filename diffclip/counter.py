"""Random numbers as a function of a key: the n-th number of (seed, index, stream) can be made alone, anywhere.

The embedded world has to be the same on every machine and with every version of NumPy, and scene 5 000 000 must not
cost five million scenes. Both follow from a counter-based generator whose whole definition stands here: splitmix64
(Steele, Lea and Flood 2014) applied to key + n * golden ratio. Only integer arithmetic modulo 2**64 is used.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")
_MASK = 0xFFFF_FFFF_FFFF_FFFF
_GOLDEN = 0x9E37_79B9_7F4A_7C15
_BLOCK = 64
_STEPS = np.arange(1, _BLOCK + 1, dtype=np.uint64) * np.uint64(_GOLDEN)  # wraps, as it should
_A, _B = np.uint64(0xBF58_476D_1CE4_E5B9), np.uint64(0x94D0_49BB_1331_11EB)
_S30, _S27, _S31, _S11 = (np.uint64(s) for s in (30, 27, 31, 11))


def mix(value: int) -> int:
    """One splitmix64 output for a 64-bit integer: a bijection that scatters neighbouring values."""
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58_476D_1CE4_E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D0_49BB_1331_11EB) & _MASK
    return value ^ (value >> 31)


class Draws:
    """A stream of uniform numbers in [0, 1), fixed by its integer keys: ``Draws(seed, index, stream)``."""

    __slots__ = ("_base", "_left")

    def __init__(self, *keys: int):
        base = 0
        for key in keys:
            base = mix(base ^ (key & _MASK))
        self._base = base
        self._left: list[float] = []

    def _refill(self) -> list[float]:
        self._left = self._block(_STEPS).tolist()[::-1]
        self._base = (self._base + _BLOCK * _GOLDEN) & _MASK
        return self._left

    def _block(self, steps: np.ndarray) -> np.ndarray:
        z = steps + np.uint64(self._base)
        z = (z ^ (z >> _S30)) * _A
        z = (z ^ (z >> _S27)) * _B
        z ^= z >> _S31
        return (z >> _S11) * (1.0 / (1 << 53))

    def u(self) -> float:
        """One number in [0, 1)."""
        return (self._left or self._refill()).pop()

    def array(self, n: int) -> np.ndarray:
        """n fresh numbers at once, as float64 [n]; what is left of a block begun before is skipped."""
        steps = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
        out = self._block(steps)
        self._base = (self._base + n * _GOLDEN) & _MASK
        self._left = []
        return out

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.u()

    def chance(self, probability: float) -> bool:
        return self.u() < probability

    def below(self, n: int) -> int:
        """An integer in [0, n)."""
        return int(self.u() * n)

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self.u() * len(items))]

    def weighted(self, shares: Mapping[T, float]) -> T:
        """A key, each with the probability that stands beside it; the last one takes what is missing to 1."""
        left = self.u()
        for item, share in shares.items():  # noqa: B007
            left -= share
            if left < 0:
                break
        return item

    def sample(self, items: Sequence[T], k: int) -> list[T]:
        """k different items, in random order."""
        pool = list(items)
        return [pool.pop(int(self.u() * len(pool))) for _ in range(k)]
