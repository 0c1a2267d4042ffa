"""The training loss of a batch, and the logits that tell whether two models are the same."""

import torch
from torch import nn
from torch.nn import functional

from llavamed.data.feed.loader import Batch
from llavamed.processor.turns import IGNORE_INDEX

NUM_SAMPLED = 64
"""Positions whose logits tell whether two models are the same; all of a pack's would fill a GPU."""


def supervised_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The summed cross-entropy of a batch's supervised tokens: a scalar, float32.

    The sum, not the mean: divided by the supervised tokens of the whole global step it weighs every
    token equally, however the samples were packed and shared out. `use_cache=False` and no
    attention mask, because only then do `position_ids` keep the samples of a pack apart.
    """
    columns = (batch.targets != IGNORE_INDEX).any(dim=0).nonzero().squeeze(1)
    if not len(columns):  # an empty pack still runs, for the workers must run alike
        columns = torch.zeros(1, dtype=torch.int64, device=batch.targets.device)
    logits = model(
        input_ids=batch.input_ids,
        pixel_values=batch.pixel_values,
        position_ids=batch.position_ids,
        use_cache=False,
        logits_to_keep=columns,
    ).logits
    return functional.cross_entropy(
        logits.float().flatten(0, 1),
        batch.targets[:, columns].flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="sum",
    )


@torch.no_grad()
def sampled_logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The logits of a batch at `NUM_SAMPLED` positions from its first to its last.

    Returns:
        float32 on the CPU, of shape [rows, at most NUM_SAMPLED, vocabulary].
    """
    last = batch.input_ids.shape[1] - 1
    columns = torch.linspace(0, last, NUM_SAMPLED).long().unique()
    logits = model(
        input_ids=batch.input_ids,
        pixel_values=batch.pixel_values,
        position_ids=batch.position_ids,
        use_cache=False,
        logits_to_keep=columns.to(batch.input_ids.device),
    ).logits
    return logits.float().cpu()
