"""How many samples a loader has in memory."""

import threading
import weakref
from typing import Any

from llavamed.data.feed.loader import StageLoader
from llavamed.data.feed.packing import Integers


class SamplesHeld:
    """Counts the samples that a loader has read and that are still in memory."""

    def __init__(self, loader: StageLoader) -> None:
        self.now, self.most = 0, 0
        self._lock = threading.RLock()  # a sample may be collected while another one is counted
        self._read = loader.read
        loader.read = self._counted_read  # type: ignore[method-assign]

    def _counted_read(self, samples: Integers) -> Any:
        kept = self._read(samples)
        for sample in kept.values():
            weakref.finalize(sample, self._add, -1)
        self._add(len(kept))
        return kept

    def _add(self, count: int) -> None:
        with self._lock:
            self.now += count
            self.most = max(self.most, self.now)
