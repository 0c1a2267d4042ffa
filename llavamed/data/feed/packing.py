"""Pack samples into bins of fixed capacity that are as full as possible.

The set of weights that the waiting samples can add up to is one integer with a bit for each sum,
and a dozen different lengths can nearly always fill the remaining room exactly. Best fit
decreasing leaves the lightest samples to the end, and where an image is most of a sample these
are all alike and fill nothing: on drawn lengths with 576 tokens per image it fills 0.94 of 4096
tokens, while this fills 0.998.
"""

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

_PATIENCE = 64
"""Consecutive samples to try for a pack without filling it further before it is closed."""


def fill_packs(places: Integers, weights: Integers, capacity: int) -> list[Integers]:
    """Fill one pack after another with a first sample and the later ones that fill it best.

    Args:
        places: int64 array of shape [samples], positions in `weights`. Their order is the only
            source of randomness.
        weights: int64 array, the weight of each sample, at most `capacity`.
        capacity: The weight that a pack holds.

    Returns:
        The packs, each an int64 array of places. Together they hold every place once.
    """
    # Each sample over half a pack needs a pack of its own. These go first, while most of the
    # samples that can fill the rest are still waiting.
    heavy_first = places[np.argsort(2 * weights[places] <= capacity, kind="stable")]
    waiting = dict(zip(heavy_first.tolist(), weights[heavy_first].tolist(), strict=True))
    packs: list[Integers] = []
    while waiting:
        first = next(iter(waiting))
        room = capacity - waiting.pop(first)
        within = (2 << room) - 1
        sums = [1]
        tried: list[tuple[int, int]] = []
        best_at = 0
        for place, weight in waiting.items():
            if sums[-1] >> room or len(tried) == best_at + _PATIENCE:
                break
            if weight > room:
                continue
            tried.append((place, weight))
            sums.append((sums[-1] | sums[-1] << weight) & within)
            if sums[-1].bit_length() > sums[-2].bit_length():
                best_at = len(tried)
        left = sums[-1].bit_length() - 1
        pack = [first]
        for (place, weight), without in zip(reversed(tried), reversed(sums[:-1]), strict=True):
            if not without >> left & 1:
                pack.append(place)
                left -= weight
                del waiting[place]
        packs.append(np.array(pack, dtype=np.int64))
    return packs
