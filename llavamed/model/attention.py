"""Attend within each sample of a pack by itself, so that no mask is computed or held.

Transformers keeps the samples of a pack apart by a mask of [T, T], and computes all of the products
that the mask discards. Here each sample of a row is one causal call instead, which needs no mask.
"""

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

PER_SAMPLE = "llavamed_per_sample"
"""The name under which transformers knows this attention. No config is saved with it."""

_KNOWN_LAYERS = {"full_attention", "sliding_attention"}


def attend_per_sample(model: Any) -> None:
    """Let the language model of a LLaVA attend within each sample by itself, if it can.

    Only PyTorch's `sdpa` is replaced. A language model stays as it is if its attention is not
    exchangeable, or if some of its layers see something else than the tokens before, or a window of
    them.

    Args:
        model: A LLaVA; it then needs `sample_lengths` in every forward pass that has no cache.
    """
    decoder = model.model.language_model
    config = decoder.config
    is_causal = not getattr(config, "use_bidirectional_attention", None)
    layers = set(getattr(config, "layer_types", None) or _KNOWN_LAYERS)
    is_known = layers <= _KNOWN_LAYERS and getattr(config, "attention_chunk_size", None) is None
    is_exchangeable = decoder._supports_attention_backend
    if config._attn_implementation == "sdpa" and is_causal and is_known and is_exchangeable:
        decoder.set_attn_implementation(PER_SAMPLE)


def per_sample_arguments(
    model: Any, sample_lengths: tuple[tuple[int, ...], ...]
) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Return what a forward pass of this model needs to keep the samples of its rows apart.

    Args:
        model: A LLaVA, or DeepSpeed's engine around one.
        sample_lengths: For each row, the tokens of each of its samples; padding counts to the last.
    """
    is_ours = keeps_apart(getattr(model, "module", model))
    return {"sample_lengths": sample_lengths} if is_ours else {}


def keeps_apart(model: Any) -> bool:
    """Return whether the language model of a LLaVA attends within each sample by itself."""
    config = model.config.get_text_config()
    return bool(config._attn_implementation == PER_SAMPLE)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    sample_lengths: tuple[tuple[int, ...], ...],
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each sample; transformers calls it in every layer.

    Args:
        module: The attention layer.
        query: [R, heads, T, D].
        key: [R, heads of keys, T, D].
        value: [R, heads of keys, T, D].
        attention_mask: None.
        sample_lengths: For each of the R rows, the tokens of each sample, T in all.
        sliding_window: The number of tokens that a token sees, counting itself; None for all.
        **kwargs: Passed to transformers' `sdpa`.

    Returns:
        [R, T, heads, D], and no weights.
    """
    assert attention_mask is None
    if all(len(lengths) == 1 for lengths in sample_lengths):  # one call for all rows
        rows, pieces = [slice(None)], [sample_lengths[0]]
    else:
        rows, pieces = [slice(row, row + 1) for row in range(len(query))], list(sample_lengths)
    outputs = []
    for row, lengths in zip(rows, pieces, strict=True):
        # Backward, a split is one copy of all pieces; slices would each fill a tensor of its own.
        parts = (each[row].split(lengths, dim=2) for each in (query, key, value))
        attended = [
            sdpa_attention_forward(
                module, q, k, v, _window_mask(q, sliding_window), is_causal=True, **kwargs
            )[0]
            for q, k, v in zip(*parts, strict=True)
        ]
        outputs.append(torch.cat(attended, dim=1))
    return torch.cat(outputs), None


def _window_mask(query: torch.Tensor, window: int | None) -> torch.Tensor | None:
    """Return the mask of a sample that is longer than its sliding window, else None."""
    length = query.shape[2]
    if window is None or length <= window:
        return None
    ones = torch.ones(length, length, dtype=torch.bool, device=query.device)
    return ones.tril() & ones.triu(1 - window)


AttentionInterface.register(PER_SAMPLE, _attention)
