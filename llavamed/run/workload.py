"""Sum up the samples of a stage: from the index of its datasets, or from what is declared."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llavamed.config.data import Declared
from llavamed.config.run import RunConfig
from llavamed.config.stage import Stage
from llavamed.data.prepared.dataset import PreparedDataset
from llavamed.data.prepared.mixture import Mixture
from llavamed.errors import ConfigError
from llavamed.model.cost.flops import Workload
from llavamed.model.cost.padding import Floats, lognormal_lengths, longest_moment, padded_packs
from llavamed.processor.pretrained import config_tiling
from llavamed.train.job import order_of


@dataclass(frozen=True)
class StageWorkload:
    """What a stage processes, over all of its epochs."""

    num_samples: int
    """Samples of all of its datasets."""
    samples_seen: float
    """Samples that its steps take, counted as often as they are taken."""
    steps: int
    longest: float
    """Tokens of the longest sample."""
    tiles_per_token: float
    """Tiles of images, divided by tokens, of the sample with most of them."""
    work: Workload
    """What the samples cost by themselves."""
    padded: Workload
    """The same, with padding counted as tokens. A pack has none unless its layers are compiled."""
    processed: float
    """Tokens for which the forward passes have room."""


def measured_workload(config: RunConfig, stage: Stage, data: Mixture) -> StageWorkload:
    """Return the workload of a stage whose datasets are all prepared."""
    order = order_of(stage, data, config.seed)
    tokens = data.column("num_tokens")
    packs = [pack for k in range(order.num_steps) for pack in order.samples(k) if len(pack)]
    seen = np.concatenate(packs)
    work = Workload(
        num_tiles=float(data.column("num_tiles")[seen].sum()),
        num_tokens=float(tokens[seen].sum()),
        num_supervised=float(data.column("num_supervised")[seen].sum()),
        sum_squared_tokens=float((tokens[seen] ** 2).sum()),
    )
    padded = work
    if not stage.packing:
        rows = np.array([len(pack) for pack in packs])
        longest = np.array([tokens[pack].max() for pack in packs])
        padded = replace(
            work,
            num_tokens=float((rows * longest).sum()),
            sum_squared_tokens=float((rows * longest**2).sum()),
        )
    elif config.row_tokens(stage):
        number = order.num_steps * stage.num_lanes
        full, squared = padded_packs([tokens[pack] for pack in packs], number, stage.pack_tokens)
        padded = replace(work, num_tokens=full, sum_squared_tokens=squared)
    room = order.num_steps * stage.num_lanes * stage.pack_tokens
    return StageWorkload(
        num_samples=data.num_samples,
        samples_seen=len(seen),
        steps=order.num_steps,
        longest=int(tokens.max()),
        tiles_per_token=float((data.column("num_tiles") / tokens).max()),
        work=work,
        padded=padded,
        processed=room if stage.packing else padded.num_tokens,
    )


def declared_workload(
    config: RunConfig, stage: Stage, model: Any, prepared: dict[str, PreparedDataset]
) -> StageWorkload:
    """Return the workload of a stage of which some datasets are only declared.

    Raises:
        ConfigError: One is neither prepared nor declared.
    """
    tiles = config_tiling(model.config, "model")
    image_tokens = tiles.most_tokens
    shares = [
        (_declared(config, name, prepared, image_tokens), passes)
        for name, passes in stage.mixture.items()
    ]
    epoch = sum(declared.num_samples * passes for declared, passes in shares)

    def mean(key: str) -> float:
        """Return the mean over the samples of an epoch."""
        total = sum(getattr(each, key) * each.num_samples * passes for each, passes in shares)
        return total / epoch

    mean_images = mean("mean_images")
    length = mean_images * image_tokens + mean("mean_text_tokens")
    per_pass = stage.pack_tokens / length if stage.packing else stage.micro_batch_size
    per_step = per_pass * stage.num_lanes  # samples
    steps = stage.max_steps or stage.num_train_epochs * math.ceil(epoch / per_step)
    seen = steps * per_step
    if stage.max_steps is None:
        seen = min(seen, epoch * stage.num_train_epochs)
    lengths, weights = _declared_lengths(config, shares, image_tokens)
    work = Workload(
        num_tiles=seen * mean_images * tiles.most_tiles,
        num_tokens=seen * length,
        num_supervised=seen * mean("mean_supervised_tokens"),
        sum_squared_tokens=seen * longest_moment(lengths, weights, 1, power=2),
    )
    padded = work
    if not stage.packing:
        rows = stage.micro_batch_size
        padded = replace(
            work,
            num_tokens=seen * max(length, longest_moment(lengths, weights, rows)),
            sum_squared_tokens=seen * longest_moment(lengths, weights, rows, power=2),
        )
    room = steps * stage.num_lanes * stage.pack_tokens
    if config.row_tokens(stage):
        # The padding is of the last step, where it is counted as further samples.
        full = max(1.0, room / work.num_tokens)
        padded = replace(
            work,
            num_tokens=full * work.num_tokens,
            sum_squared_tokens=full * work.sum_squared_tokens,
        )
    return StageWorkload(
        num_samples=sum(declared.num_samples for declared, _ in shares),
        samples_seen=seen,
        steps=steps,
        longest=float(lengths.max()),
        tiles_per_token=tiles.most_tiles / image_tokens,  # text takes none
        work=work,
        padded=padded,
        processed=room if stage.packing else padded.num_tokens,
    )


def _declared_lengths(
    config: RunConfig, shares: list[tuple[Declared, float]], image_tokens: int
) -> tuple[Floats, Floats]:
    """Return the lengths of the samples of an epoch in tokens, and how often each occurs."""
    lengths, weights = [], []
    for declared, passes in shares:
        text = lognormal_lengths(declared.mean_text_tokens, declared.text_tokens_spread)
        images = declared.mean_images * image_tokens
        lengths.append(np.minimum(images + text, config.data.max_length))
        weights.append(np.full(len(text), declared.num_samples * passes))
    return np.concatenate(lengths), np.concatenate(weights)


def _declared(
    config: RunConfig, name: str, prepared: dict[str, PreparedDataset], image_tokens: int
) -> Declared:
    """Return what is known about a dataset: its counts if it is prepared, else its declaration."""
    if name in prepared:
        facts, num_samples = prepared[name].manifest, prepared[name].num_samples
        lengths = Mixture((prepared[name],)).column("num_tokens")
        mean_images = facts.num_images / num_samples
        text_tokens = max(1.0, facts.num_tokens / num_samples - mean_images * image_tokens)
        return Declared(
            num_samples=num_samples,
            mean_text_tokens=text_tokens,
            mean_images=mean_images,
            text_tokens_spread=min(10.0, float(lengths.std()) / text_tokens),
            mean_supervised_tokens=facts.num_supervised / num_samples,
        )
    declared = config.data.datasets[name].declared
    if declared is None:
        raise ConfigError(
            f"data.datasets.{name}.declared=null: the dataset is neither prepared nor declared; "
            "run `llavamed prepare`, or declare num_samples, mean_text_tokens and "
            "mean_supervised_tokens"
        )
    return declared
