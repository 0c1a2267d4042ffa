"""Compute the training loss of a batch, and the logits by which two models are compared."""

import torch
from torch import nn
from torch.nn import functional

from llavamed.data.feed.loader import Batch
from llavamed.model.attention import per_sample_arguments
from llavamed.model.llava import image_arguments
from llavamed.processor.turns import IGNORE_INDEX

NUM_SAMPLED = 64
"""Positions of a batch whose logits are compared; those of all positions would fill a GPU."""


def supervised_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the summed cross entropy of a batch's supervised tokens, a float32 scalar.

    The caller divides the sum by the supervised tokens of the whole global step, so that every
    token has the same weight however samples are packed and distributed.
    """
    columns = batch.supervised
    return functional.cross_entropy(
        column_logits(model, batch, columns).float().flatten(0, 1),
        batch.targets[:, columns].flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="sum",
    )


@torch.no_grad()
def sampled_logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the logits of a batch at up to `NUM_SAMPLED` positions, evenly spaced.

    Returns:
        float32 tensor on the CPU, of shape [rows, positions, vocabulary].
    """
    last = batch.input_ids.shape[1] - 1
    columns = torch.linspace(0, last, NUM_SAMPLED).long().unique()
    return column_logits(model, batch, columns.to(batch.input_ids.device)).float().cpu()


def column_logits(model: nn.Module, batch: Batch, columns: torch.Tensor) -> torch.Tensor:
    """Return the logits of some columns of a batch, of shape [rows, columns, vocabulary].

    There is no cache and no attention mask, because only then do `position_ids`, or
    `samples`, keep the samples of a pack apart.
    """
    logits: torch.Tensor = model(
        input_ids=batch.input_ids,
        **image_arguments(model, batch.pixel_values, batch.image_sizes),
        position_ids=batch.position_ids,
        use_cache=False,
        logits_to_keep=columns,
        **per_sample_arguments(model, batch.sample_lengths, batch.input_ids.device),
    ).logits
    return logits
