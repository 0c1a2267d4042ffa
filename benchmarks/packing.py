"""Measure the share of useful tokens: our packs beside padding, grouping and TRL's packs.

Two numbers for each. `full`: useful tokens / processed tokens, where padding counts, and a pack
counts whole, as memory and compiled shapes see it. `useful`: the same with stragglers: the workers
meet after every forward pass, so all of them last as long as the one with the most tokens.

Lengths are drawn: text log-normal around the means counted for LLaVA-Med's two datasets, plus an
image's tokens. Peers without packs take as many samples a forward pass as fill 4096 tokens on
average, so that all contenders do equal work in it.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from report import Spread, bar_plot, finish, gate

from llavamed.data.feed.order import EpochOrder, order_stage

Integers = npt.NDArray[np.int64]

CAPACITY = 4096
MAX_LENGTH = 2048
RANKS = 8
LANES = 16  # packs a step: 8 workers, accumulation 2
ROW_GROUP = 64
CORPORA = {
    "captions 224 px": (150, 0.70, 256),
    "captions 336 px": (150, 0.70, 576),
    "dialogues 224 px": (400, 0.45, 256),
    "dialogues 336 px": (400, 0.45, 576),
}
"""Mean tokens of text, deviation of their logarithm, tokens of the image."""
TRL_BATCH = 1000
"""`Dataset.map` calls TRL's packer for 1000 samples at a time, its default `batch_size`."""


def draw_lengths(corpus: str, num_samples: int, seed: int = 0) -> Integers:
    """Draw the number of tokens of each sample."""
    mean, sigma, image = CORPORA[corpus]
    random = np.random.default_rng(seed)
    text = random.lognormal(np.log(mean) - sigma**2 / 2, sigma, num_samples)
    return np.clip(text.astype(np.int64) + image, image + 8, MAX_LENGTH)


def order(lengths: Integers) -> EpochOrder:
    """Return one epoch of our order."""
    groups = np.arange(len(lengths)) // ROW_GROUP
    stage = order_stage(groups, lengths, seed=0, num_lanes=LANES, capacity=CAPACITY, num_epochs=1)
    return stage.epochs[0]


def ours(lengths: Integers) -> dict[str, float]:
    """Score our packs; a lane that has run out counts as an empty pack."""
    epoch = order(lengths)
    steps, lanes = range(epoch.num_steps), range(LANES)
    packs = np.array([[lengths[epoch.pack(lane, step)].sum() for lane in lanes] for step in steps])
    assert packs.sum() == lengths.sum()
    assert packs.max() <= CAPACITY
    ideal = -(-int(lengths.sum()) // (LANES * CAPACITY))
    result = score(packs.ravel(), packs.size * CAPACITY, packs.ravel())
    return result | {"steps": epoch.num_steps, "steps_ideal": ideal}


def trl(lengths: Integers) -> dict[str, float]:
    """Score best-fit decreasing within each 1000 samples of the file, packs in random order.

    Source: TRL's `pack_dataset(..., strategy="bfd")`; written here without its segment tree.
    """
    packs = []
    for start in range(0, len(lengths), TRL_BATCH):
        room: list[int] = []
        for length in sorted(lengths[start : start + TRL_BATCH].tolist(), reverse=True):
            fitting = [number for number, left in enumerate(room) if left >= length]
            if fitting:
                room[min(fitting, key=room.__getitem__)] -= length
            else:
                room.append(CAPACITY - length)
        packs += [CAPACITY - left for left in room]
    filled = np.random.default_rng(0).permutation(np.array(packs))
    assert filled.sum() == lengths.sum()
    return score(filled, len(filled) * CAPACITY, filled)


def pad_to_longest(lengths: Integers) -> dict[str, float]:
    """Score random batches, each padded to its longest sample."""
    return _padded(lengths, np.random.default_rng(0).permutation(len(lengths)))


def pad_to_max_length(lengths: Integers) -> dict[str, float]:
    """Score random batches, padded to `MAX_LENGTH`."""
    return _padded(lengths, np.random.default_rng(0).permutation(len(lengths)), MAX_LENGTH)


def group_by_length(lengths: Integers) -> dict[str, float]:
    """Score Hugging Face's grouping: sorted within megabatches of 50 batches, dealt to ranks.

    Source: transformers, `trainer_pt_utils.get_length_grouped_indices`, as `LengthGroupedSampler`
    calls it for `group_by_length=True`: with the samples of a worker's optimizer step.
    """
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    indices = get_length_grouped_indices(
        lengths.tolist(),
        _batch_size(lengths) * (LANES // RANKS),
        generator=torch.Generator().manual_seed(0),
    )
    return _padded(lengths, np.array(indices))


CONTENDERS: dict[str, Callable[[Integers], dict[str, float]]] = {
    "ours": ours,
    "TRL packs (bfd)": trl,
    "HF group_by_length": group_by_length,
    "pad to longest": pad_to_longest,
    "pad to max_length": pad_to_max_length,
}


def _batch_size(lengths: Integers) -> int:
    return max(1, round(CAPACITY / float(lengths.mean())))


def _padded(lengths: Integers, order: Integers, width: int = 0) -> dict[str, float]:
    size = _batch_size(lengths)
    batches = [lengths[order[i : i + size]] for i in range(0, len(order), size)]
    padded = np.array([len(batch) * max(width, int(batch.max())) for batch in batches])
    return score(np.array([int(batch.sum()) for batch in batches]), int(padded.sum()), padded)


def score(useful: Integers, processed: int, work: Integers) -> dict[str, float]:
    """Score forward passes, listed in the order in which they are dealt to the ranks.

    Args:
        useful: Tokens of samples in each.
        processed: Tokens of all of them, with what counts as padding.
        work: Tokens each computes on.
    """
    work = np.append(work, np.zeros(-len(work) % RANKS, dtype=np.int64)).reshape(-1, RANKS)
    waited = int(work.max(axis=1).sum()) * RANKS
    total = float(useful.sum())
    return {"full": total / processed, "useful": total / waited, "passes": len(work)}


def seconds_per_100k(num_samples: int) -> Iterator[float]:
    """Return the CPU seconds to order an epoch of 100,000 samples, three times."""
    lengths = draw_lengths("captions 224 px", num_samples)
    for _ in range(3):
        start = time.process_time()
        order(lengths)
        yield (time.process_time() - start) * 100_000 / num_samples


def run(num_samples: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return scores by contender and corpus."""
    return {
        name: {corpus: score(draw_lengths(corpus, num_samples)) for corpus in CORPORA}
        for name, score in CONTENDERS.items()
    }


def gates(scores: dict[str, dict[str, float]]) -> list[dict[str, object]]:
    """Return a gate on the useful tokens of our packs for each corpus."""
    measure = f"useful of all tokens, packs of {CAPACITY}"
    return [
        gate(f"{measure}, {corpus}{words}", score[name], at_least=0.97)
        for corpus, score in scores.items()
        for name, words in (("full", ""), ("useful", ", with stragglers"))
    ]


def main() -> int:
    """Run the benchmark, and return 1 if a gate is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20,000 samples, not 200,000")
    quick = parser.parse_args().quick
    num_samples = 20_000 if quick else 200_000
    scores = run(num_samples)
    for name, by_corpus in scores.items():
        for corpus, score in by_corpus.items():
            print(f"{name:20} {corpus:18}", *(f"{key}={score[key]:.4g}" for key in score))
    seconds = sorted(seconds_per_100k(num_samples))[1]
    print(f"ordering: {seconds:.2f} CPU seconds per 100,000 samples")
    result = {
        "quick": quick,
        "num_samples": num_samples,
        "capacity": CAPACITY,
        "scores": scores,
        "ordering_cpu_seconds_per_100k_samples": seconds,
        "gates": gates(scores["ours"]),
    }
    useful: dict[str, dict[str, Spread]] = {
        name: {corpus: (score["useful"],) * 3 for corpus, score in by_corpus.items()}
        for name, by_corpus in scores.items()
    }
    name = "packing-quick" if quick else "packing"
    title = f"Useful tokens of all, packs of {CAPACITY}, {RANKS} workers that wait for each other"
    bar_plot(name, title, useful, unit="of all tokens")
    return finish(name, result)


if __name__ == "__main__":
    sys.exit(main())
