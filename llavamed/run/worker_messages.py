"""Messages from workers to the driver while a stage trains.

The process of the queue loads this module for every stage, so it imports nothing heavy.
"""

import logging
from dataclasses import dataclass

from llavamed.errors import LlavaMedError
from llavamed.train.job import Workers
from llavamed.train.metrics import StepRecord


@dataclass(frozen=True)
class Started:
    """A worker has started, so nothing waits for resources any longer."""

    rank: int
    workers: Workers


@dataclass(frozen=True)
class Steps:
    """Records of the last steps, from rank 0."""

    records: list[StepRecord]


@dataclass(frozen=True)
class Died:
    """A worker has died for a reason that is not ours, from Ray's controller."""

    reason: str


@dataclass(frozen=True)
class Failed:
    """An error of ours that ends the stage, from Ray's controller."""

    error: LlavaMedError


Message = Started | Steps | Died | Failed | logging.LogRecord
"""A message to the driver while a stage trains; any worker may send log records."""
