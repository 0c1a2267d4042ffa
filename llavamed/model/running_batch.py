"""Continue several prompts together, which join and leave the batch between two tokens.

Sequences of different lengths are padded on the left. Padding is masked, and every sequence counts
its positions from its own first token, so its tokens are those it would get alone, up to the order
in which floats are summed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad
from transformers import DynamicCache

from llavamed.errors import LogitsError
from llavamed.model.continuation import Continuation
from llavamed.model.llava import Llava, image_arguments


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the model reads it."""

    input_ids: list[int]
    """Token ids, with all image tokens."""
    pixel_values: torch.Tensor
    """float32 tensor of shape [tiles, 3, size, size], normalized."""
    image_sizes: torch.Tensor
    """int64 tensor of shape [images, 2], the height and width of each image."""
    num_image_tokens: int
    """Tokens of all images together."""


class RunningBatch:
    """The sequences that a model is continuing, and their keys and values."""

    def __init__(self, model: Llava, pad_token: int) -> None:
        self._model, self._pad_token = model, pad_token
        self._rows: list[Continuation] = []
        # Without a config every layer keeps all tokens; masks apply the sliding windows.
        self._cache = DynamicCache()
        self._mask = torch.zeros(0, 0, dtype=torch.long, device=model.device)

    def __len__(self) -> int:
        return len(self._rows)

    @torch.inference_mode()
    def join(
        self, prompts: Sequence[EncodedPrompt], answers: Sequence[Sequence[Continuation]]
    ) -> None:
        """Read prompts and choose the first token of each answer to them.

        If this fails, for example because memory runs out, the batch is unchanged.

        Args:
            answers: The answers to begin, one or more to each prompt.

        Raises:
            LogitsError: The first token of an answer cannot be chosen.
        """
        device, length = self._model.device, max(len(prompt.input_ids) for prompt in prompts)
        padding = [length - len(prompt.input_ids) for prompt in prompts]
        ids = [
            [self._pad_token] * number + prompt.input_ids
            for number, prompt in zip(padding, prompts, strict=True)
        ]
        mask = torch.tensor([[0] * n + [1] * (length - n) for n in padding], device=device)
        pixels = torch.cat([prompt.pixel_values for prompt in prompts])
        sizes = torch.cat([prompt.image_sizes for prompt in prompts])
        images = image_arguments(self._model, pixels.to(device, self._model.dtype), sizes)
        cache = DynamicCache()
        logits = self._model(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            **(images if len(pixels) else {}),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        copies = [place for place, rows in enumerate(answers) for _ in rows]
        rows = [row for each in answers for row in each]
        if failed := _choose(rows, logits[copies]):
            raise _without_token(failed)
        going = [number for number, row in enumerate(rows) if row.finish_reason is None]
        if going:
            copies = [copies[number] for number in going]
            self._append([rows[number] for number in going], mask[copies], cache, copies)

    @torch.inference_mode()
    def step(self) -> None:
        """Choose one more token of each answer. Answers that end with it leave the batch.

        After any other error than LogitsError no answer of the batch can continue.

        Raises:
            LogitsError: The token of some answers cannot be chosen. They have left the batch.
        """
        last = [[row.token_ids[-1]] for row in self._rows]
        self._mask = pad(self._mask, (0, 1), value=1)
        logits = self._model(
            input_ids=torch.tensor(last, device=self._mask.device),
            attention_mask=self._mask,
            position_ids=self._mask.sum(1, keepdim=True) - 1,
            past_key_values=self._cache,
            use_cache=True,
        ).logits[:, -1]
        failed = _choose(self._rows, logits)
        self._leave(frozenset(map(id, failed)))
        if failed:
            raise _without_token(failed)

    @torch.inference_mode()
    def remove(self, answers: Sequence[Continuation]) -> None:
        """Remove abandoned answers from the batch; those that have ended are ignored.

        If this fails, no answer of the batch can continue.
        """
        self._leave(frozenset(map(id, answers)))

    def _append(
        self, rows: list[Continuation], mask: torch.Tensor, cache: DynamicCache, copies: list[int]
    ) -> None:
        """Put new rows below those of the batch, and pad the shorter ones of the two.

        Layers are replaced one by one, because two whole caches may not fit into memory. If one
        fails, those that are replaced already are cut back to their former rows.
        """
        before, width = len(self._rows), self._mask.shape[1]
        length = max(width, mask.shape[1])
        if not before:
            self._cache, self._mask = DynamicCache(), mask[:0]
        joined = torch.cat([pad(each, (length - each.shape[1], 0)) for each in (self._mask, mask)])
        try:
            for number, theirs in enumerate(cache.layers):
                new = (theirs.keys[copies], theirs.values[copies])
                if before:
                    ours = self._cache.layers[number]
                    ours.keys, ours.values = (
                        _stack(above, below, length)
                        for above, below in zip((ours.keys, ours.values), new, strict=True)
                    )
                else:
                    self._cache.update(*new, number)
        except Exception:
            for ours in self._cache.layers:
                ours.keys = ours.keys[:before, :, -width:]
                ours.values = ours.values[:before, :, -width:]
            raise
        self._mask = joined
        self._rows += rows

    def _leave(self, unwanted: frozenset[int] = frozenset()) -> None:
        """Remove the answers that have ended, and columns that hold nothing but padding then."""
        places = [
            place
            for place, row in enumerate(self._rows)
            if row.finish_reason is None and id(row) not in unwanted
        ]
        if len(places) == len(self._rows):
            return
        self._rows = [self._rows[place] for place in places]
        mask = self._mask[places]
        first = int(mask.any(0).long().argmax()) if places else mask.shape[1]
        self._mask = mask[:, first:]
        for layer in self._cache.layers:
            layer.keys = layer.keys[places, :, first:]
            layer.values = layer.values[places, :, first:]


def _choose(rows: Sequence[Continuation], logits: torch.Tensor) -> list[Continuation]:
    """Choose the next token of each answer, and return those whose logits are not finite."""
    logits = logits.float()
    best, places = logits.max(-1)  # a row with NaN has the maximum NaN
    likeliest = places.where(best.isfinite(), -1).tolist()  # one transfer for all rows
    failed = []
    for row, own, token in zip(rows, logits, likeliest, strict=True):
        if token < 0:
            failed.append(row)
        else:
            row.extend(own, token)
    return failed


def _without_token(answers: Sequence[Continuation]) -> LogitsError:
    return LogitsError(
        f"logits: are NaN or infinite for {len(answers)} answers, so the model has no next token "
        "for them; evaluate with --precision fp32, or take an export whose weights are finite",
        answers,
    )


def _stack(above: torch.Tensor, below: torch.Tensor, length: int) -> torch.Tensor:
    """Stack keys or values of shape [rows, heads, tokens, size], padded on the left to a length."""
    return torch.cat([pad(each, (0, 0, length - each.shape[2], 0)) for each in (above, below)])
