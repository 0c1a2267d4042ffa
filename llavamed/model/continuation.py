"""Grow one answer token by token: choose the tokens, decode their text, and say when it ends."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a decoder writes for the first bytes of a character whose other bytes have not come yet."""


COLDEST = 1e-5
"""Lower temperatures mean 0: divided by them, logits would leave the range of float32."""


@dataclass(frozen=True)
class Sampling:
    """How the tokens of an answer are chosen, and where the answer ends."""

    max_new_tokens: int
    """Maximum number of tokens of the answer."""
    temperature: float = 0.0
    """Divisor of the logits. 0 chooses the likeliest token, which is greedy decoding."""
    top_p: float = 1.0
    """Tokens are drawn from the likeliest ones that have this probability together."""
    seed: int | None = None
    """Seed for drawing. By default every answer is drawn with a new seed."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer, in addition to that of the template. They are not part of it."""
    num_logprobs: int | None = None
    """How many of the likeliest tokens are recorded at each place. None records no probability."""


@dataclass(frozen=True)
class TokenLogprobs:
    """The natural logarithms of the probabilities at one place, before temperature and top-p."""

    token: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...]
    """Tokens and their logarithms, the likeliest first."""


class Continuation:
    """An answer that is being generated.

    What `text` has once returned stays a prefix of all it will return. So it holds back what a
    later token may still change: white space at the end, the start of a stop string, and the first
    bytes of a character.
    """

    def __init__(
        self,
        sampling: Sampling,
        tokenizer: PreTrainedTokenizerBase,
        *,
        end_tokens: Sequence[int],
        stop: Sequence[str],
    ) -> None:
        """Begin an answer.

        Args:
            sampling: How its tokens are chosen.
            stop: The texts of the template that end it.
        """
        self.sampling = sampling
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.finish_reason: Literal["stop", "length"] | None = None
        self._tokenizer, self._end_tokens = tokenizer, frozenset(end_tokens)
        self._stop = (*stop, *sampling.stop)
        self._decoded = ""
        self._window, self._read = 0, 0
        self._random = torch.Generator()
        if sampling.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(sampling.seed)

    @property
    def text(self) -> str:
        """Return the answer so far, without white space around it and the text that ends it."""
        if self._read < len(self.token_ids):
            self._decode()
        if self.finish_reason is None:
            shown = self._decoded[: len(self._decoded) - self._held_back()]
        else:
            shown = self._decoded
        return shown.strip()

    def extend(self, logits: torch.Tensor, likeliest: int) -> None:
        """Choose the next token.

        Args:
            logits: float32 tensor of shape [vocabulary], on any device.
            likeliest: The token with the largest logit.
        """
        is_drawn = self.sampling.temperature >= COLDEST
        token = self._draw(logits) if is_drawn else likeliest
        if self.sampling.num_logprobs is not None:
            self.logprobs.append(_record(logits, token, self.sampling.num_logprobs))
        self.token_ids.append(token)
        if token in self._end_tokens:
            self.finish_reason = "stop"
        else:
            if self._stop:  # otherwise the text is read only on request
                self._decode()
            if self.finish_reason is None and len(self.token_ids) >= self.sampling.max_new_tokens:
                self.finish_reason = "length"
        if self.finish_reason is not None:
            self._decode(last=True)

    def _draw(self, logits: torch.Tensor) -> int:
        probabilities = torch.softmax(logits / self.sampling.temperature, dim=-1).cpu()
        likeliest = probabilities.sort(descending=True, stable=True)
        before = likeliest.values.cumsum(0) - likeliest.values
        kept = likeliest.values.where(before < self.sampling.top_p, 0.0)
        return int(likeliest.indices[torch.multinomial(kept, 1, generator=self._random)])

    def _decode(self, *, last: bool = False) -> None:
        """Decode the tokens since the last whole character, and cut the text at a stop string.

        A token may be spelled differently after another one, so the tokens that were decoded
        before are decoded with it.
        """
        before = self._spell(self.token_ids[self._window : self._read])
        now = self._spell(self.token_ids[self._window :])
        if last or not now.endswith(_UNFINISHED):
            start = len(self._decoded)
            self._decoded += now[len(before) :]
            self._window, self._read = self._read, len(self.token_ids)
            self._cut(start)

    def _spell(self, token_ids: list[int]) -> str:
        return str(
            self._tokenizer.decode(
                token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def _cut(self, start: int) -> None:
        """Cut the text at the first stop string that ends after `start`."""
        found = [
            place
            for stop in self._stop
            if (place := self._decoded.find(stop, max(0, start - len(stop) + 1))) >= 0
        ]
        if found:
            self._decoded = self._decoded[: min(found)]
            self.finish_reason = "stop"

    def _held_back(self) -> int:
        """Return the characters at the end of the text that may be the start of a stop string."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(self._decoded)), 0, -1):
            if any(stop.startswith(self._decoded[-length:]) for stop in self._stop):
                return length
        return 0


def _record(logits: torch.Tensor, token: int, number: int) -> TokenLogprobs:
    logprobs = logits.log_softmax(-1)
    best = logprobs.topk(number)
    likeliest = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return TokenLogprobs(token, float(logprobs[token]), tuple(likeliest))
