"""Spell single tokens, with the bytes of those that are only part of a character."""

import re
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from llavamed.serve.openai import SpelledToken

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"


class Spelling:
    """How the tokens of one tokenizer are spelled where they follow another."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        # Alone, a token of SentencePiece would lose the space that it begins with.
        self._before = tokenizer.encode("a", add_special_tokens=False)
        self._shown = self._decode(self._before)
        self.spell = lru_cache(maxsize=65_536)(self._spell)

    def _spell(self, token: int) -> SpelledToken:
        text = self._decode([*self._before, token])[len(self._shown) :]
        if token in self._tokenizer.all_special_ids:
            data = None  # the end of an answer is no part of its text
        else:
            data = self._bytes(token) if _UNKNOWN in text else list(text.encode())
        return SpelledToken(text, data)

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, clean_up_tokenization_spaces=False))

    def _bytes(self, token: int) -> list[int] | None:
        """Return the bytes of a token that is no whole text, or None if its name tells none."""
        name = self._tokenizer.convert_ids_to_tokens(token)
        if byte := _BYTE.fullmatch(name):
            return [int(byte[1], 16)]
        if all(letter in _LETTERS for letter in name):
            return [_LETTERS[letter] for letter in name]
        return None


def _byte_letters() -> dict[str, int]:
    """Return the letter that a byte-level vocabulary writes for each byte.

    Printable bytes stand for themselves, and the others for the letters from 256 on.
    Source: GPT-2's byte-level byte-pair encoding (Radford et al., 2019).
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {
        chr(256 + number): byte for number, byte in enumerate(others)
    }


_LETTERS = _byte_letters()
