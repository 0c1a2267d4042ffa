"""Attend within each sample of a pack by itself, so that no mask is computed or held.

Transformers keeps the samples of a pack apart by a mask of [T, T], and computes all of the products
that the mask discards. Here each sample of a row is one causal call instead, which needs no mask.
"""

from contextlib import suppress
from copy import deepcopy
from itertools import accumulate
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from llavamed.errors import ConfigError

PER_SAMPLE = "llavamed_per_sample"
"""The name under which transformers knows this attention. No config is saved with it."""
VARLEN = "llavamed_varlen"
"""The same in one call for all samples, on GPUs."""

_NOTED = "llavamed_noted"
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}


class Samples:
    """The samples of the rows of a forward pass.

    It is no dataclass and no tuple, because `torch.compile` would make a graph for each value.
    """

    def __init__(self, lengths: tuple[tuple[int, ...], ...], device: torch.device | None) -> None:
        """Describe the samples.

        Args:
            lengths: For each row, the tokens of each of its samples.
            device: Where `bounds` are needed; None if nowhere.
        """
        self.lengths = lengths
        self.longest = max(map(max, lengths))
        self.bounds: torch.Tensor | None = None
        if device is not None:
            starts = [0, *accumulate(length for row in lengths for length in row)]
            bounds = torch.tensor(starts, dtype=torch.int32)
            if device.type == "cuda":  # otherwise the copy would wait for the GPU
                bounds = bounds.pin_memory()
            self.bounds = bounds.to(device, non_blocking=True)
            """Where each sample of all rows begins, and where the last one ends."""


def attend_per_sample(model: Any, *, varlen: bool = False) -> None:
    """Let the language model of a LLaVA attend within each sample by itself, if it can.

    Only PyTorch's `sdpa` is replaced. A language model is left unchanged if its attention cannot be
    exchanged, or if some layer sees other tokens than the preceding ones or a window of them.

    Args:
        model: A LLaVA; it then needs `per_sample_arguments` in every forward pass without a cache.
        varlen: Whether the samples of all rows are one call, which is for GPUs and bfloat16.
    """
    decoder = model.model.language_model
    if is_exchangeable(decoder):
        decoder.set_attn_implementation(VARLEN if varlen else PER_SAMPLE)


def check_attention(model: Any, attn_implementation: str, key: str) -> None:
    """Check that a LLaVA on `meta` has PyTorch's attention, if a run asks for it, and use it.

    Whether it can use other kernels depends on packages and GPUs that only workers may have.

    Args:
        model: The LLaVA.
        attn_implementation: The attention kernels of the run.
        key: The config key that names it, for errors.

    Raises:
        ConfigError: Its language model has no such attention.
    """
    if attn_implementation != "sdpa":
        return
    try:
        model.set_attn_implementation(attn_implementation)
    except ValueError as error:
        raise ConfigError(
            f"model.attn_implementation=sdpa: {key}: {model.config.text_config.model_type} has no "
            "such attention in transformers; set it to eager"
        ) from error


def avoid_cudnn() -> None:
    """Disable cuDNN for attention in this process, because it makes a plan for each new shape.

    Samples differ in length, so nearly every call has a new shape. With cuDNN a training step took
    three times as long on an H200.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def is_exchangeable(decoder: Any) -> bool:
    """Return whether a language model can attend within each sample by itself."""
    config = decoder.config
    is_causal = not getattr(config, "use_bidirectional_attention", None)
    layers = set(getattr(config, "layer_types", None) or _KNOWN_LAYERS)
    is_known = layers <= _KNOWN_LAYERS and getattr(config, "attention_chunk_size", None) is None
    uses_sdpa = config._attn_implementation == "sdpa" and decoder._supports_attention_backend
    return bool(uses_sdpa and is_causal and is_known and _hands_on_arguments(decoder))


def _hands_on_arguments(decoder: Any) -> bool:
    """Return whether a language model hands its arguments on to its attention, and no mask of its
    own; tried on `meta`."""
    found = []

    def note(
        _: Any, query: torch.Tensor, key: Any, value: torch.Tensor, attention_mask: Any, **more: Any
    ) -> tuple[torch.Tensor, None]:
        found.append("samples" in more and attention_mask is None)
        rows, heads, tokens, _ = query.shape
        return query.new_zeros(rows, tokens, heads, value.shape[-1]), None

    AttentionInterface.register(_NOTED, note)
    with suppress(Exception), torch.device("meta"):  # the code of a model may raise anything
        config = deepcopy(decoder.config)
        model = type(decoder)._from_config(config, attn_implementation=_NOTED)
        embeddings = torch.zeros(1, 1, config.hidden_size)
        places = torch.zeros(1, 1, dtype=torch.long)
        model(inputs_embeds=embeddings, position_ids=places, use_cache=False, samples=None)
        return bool(found) and all(found)
    return False


def per_sample_arguments(
    model: Any, sample_lengths: tuple[tuple[int, ...], ...], device: torch.device
) -> dict[str, Samples]:
    """Return what a forward pass of this model needs to keep the samples of its rows apart.

    Args:
        model: A LLaVA, or DeepSpeed's engine around one.
        sample_lengths: For each row, the tokens of each of its samples; padding counts to the last.
        device: Where the model computes.
    """
    model = getattr(model, "module", model)
    if not keeps_apart(model):
        return {}
    is_varlen = model.config.get_text_config()._attn_implementation == VARLEN
    return {"samples": Samples(sample_lengths, device if is_varlen else None)}


def keeps_apart(model: Any) -> bool:
    """Return whether the language model of a LLaVA attends within each sample by itself."""
    return model.config.get_text_config()._attn_implementation in (PER_SAMPLE, VARLEN)


def _attend_in_calls(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    samples: Samples,
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
        samples: The samples of the R rows, of T tokens each.
        sliding_window: The number of tokens that a token sees, counting itself; None for all.
        **kwargs: Passed to transformers' `sdpa`.

    Returns:
        [R, T, heads, D], and no weights.
    """
    assert attention_mask is None
    if all(len(lengths) == 1 for lengths in samples.lengths):  # one call for all rows
        rows, pieces = [slice(None)], [samples.lengths[0]]
    else:
        rows, pieces = [slice(row, row + 1) for row in range(len(query))], list(samples.lengths)
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


def _attend_in_one_call(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    samples: Samples,
    sliding_window: int | None = None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each sample as `_attend_in_calls` does, by one kernel for all of them."""
    assert attention_mask is None
    assert samples.bounds is not None
    rows = len(query)
    q, k, v = (each.transpose(1, 2).flatten(0, 1) for each in (query, key, value))
    attended: Any = varlen_attn(
        q,
        k,
        v,
        samples.bounds,
        samples.bounds,
        samples.longest,
        samples.longest,
        scale=scaling,
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return attended.unflatten(0, (rows, -1)), None


def _window_mask(query: torch.Tensor, window: int | None) -> torch.Tensor | None:
    """Return the mask of a sample that is longer than its sliding window, else None."""
    length = query.shape[2]
    if window is None or length <= window:
        return None
    ones = torch.ones(length, length, dtype=torch.bool, device=query.device)
    return ones.tril() & ones.triu(1 - window)


# `torch.compile` would make a graph for each number of samples.
AttentionInterface.register(PER_SAMPLE, torch.compiler.disable(_attend_in_calls))
AttentionInterface.register(VARLEN, torch.compiler.disable(_attend_in_one_call))
