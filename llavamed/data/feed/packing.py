"""Samples -> packs as full as they can be.

Which weights the waiting samples can make together is one integer with a bit for each sum, and a
dozen of lengths mostly make the very room that is left. Best fit, the heaviest first, would leave
the lightest to the end: where an image is most of a sample they are alike, and fill nothing. On
drawn lengths it filled 0.94 of 4096 tokens at 576 tokens an image, this fills 0.998.
"""

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

_PATIENCE = 64
"""Samples that may be tried in a row for a pack without bringing it nearer to full."""


def fill_packs(places: Integers, weights: Integers, capacity: int) -> list[Integers]:
    """Fill pack after pack: a sample, and of those that follow the ones that fill it best.

    Args:
        places: The samples, by their place in `weights`; their order is the only randomness.
        weights: What samples weigh, each at most `capacity`.
        capacity: Weight a pack holds.

    Returns:
        Packs that together hold each sample once.
    """
    # Samples over half a pack go first, while there is most to fill up the pack that each needs.
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
