"""Seed, save and restore the random numbers of a rank."""

from pathlib import Path

import numpy as np
import torch

RANDOM = "random_of_rank_{}_.pt"
"""Name of the file of a rank's state in a checkpoint."""


def seed_random_state(seed: int, *, step: int, rank: int) -> None:
    """Seed the random numbers of a rank from a step on, the same in every run."""
    words = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(words[0]))


def random_state() -> dict[str, torch.Tensor]:
    """Return the state of this rank's random number generators."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(file: Path) -> None:
    """Set this rank's random number generators to the state in a file."""
    state = torch.load(file)
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
