"""Mark the characters of a text as trained or not, and let its tokens inherit the marks.

All knowledge about tokenizers that `encode` needs is here: where they split a text, what they do
with spaces there, and which token represents an image.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from llavamed.errors import ConfigError, SampleError
from llavamed.processor.turns import IMAGE_PLACEHOLDER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_RENAMED = 0.02
"""Largest share of its vocabulary that a tokenizer of the same language model may have renamed."""


class Segment(NamedTuple):
    """A piece of a text, and whether its tokens are trained."""

    text: str
    trained: bool
    excluded: bool = False
    """Whether the piece is an answer that the data excludes from training."""


@dataclass(frozen=True, slots=True)
class LabeledText:
    """A text, and for each character whether it is trained."""

    words: str
    trained: list[bool]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids, with a single one for each image, and for each token whether it is trained."""

    ids: list[int]
    trained: list[bool]


def flatten(segments: Iterable[Segment]) -> LabeledText:
    """Join segments to one text."""
    words, trained = "", []
    for segment in segments:
        words += segment.text
        trained += [segment.trained] * len(segment.text)
    return LabeledText(words, trained)


def rewrite(text: LabeledText, pattern: str, replacement: str) -> LabeledText:
    """Replace matches in a text; new characters are trained if the last one they replace is."""
    words, trained, done = "", [], 0
    for match in re.finditer(pattern, text.words):
        new = match.expand(replacement)
        words += text.words[done : match.start()] + new
        trained += text.trained[done : match.start()] + [text.trained[match.end() - 1]] * len(new)
        done = match.end()
    return LabeledText(words + text.words[done:], trained + text.trained[done:])


def write_out_first_spaces(text: LabeledText, tokenizer: "PreTrainedTokenizerBase") -> LabeledText:
    """Double a space after a special token if the tokenizer would otherwise lose it.

    Sentencepiece puts a space before each stretch of text between two special tokens, even if that
    begins with a space. For such a vocabulary the fast class of transformers 5 adds none there, so
    `<image> The` has one space, and two in the reference. A probe tells the two apart; it leaves
    vocabularies alone that never add a space (`legacy=False`, byte-level ones).
    """
    special = special_token_pattern(tokenizer)
    found = re.search(f"({special})[ \u2581]", text.words)
    if not found:
        return text
    probes = (f"{found[1]}a", f"{found[1]} a")
    plain, spaced = (tokenizer(probe, add_special_tokens=False)["input_ids"] for probe in probes)
    return text if plain != spaced else rewrite(text, f"({special})([ \u2581])", r"\1 \2")


def tokenize(text: LabeledText, tokenizer: "PreTrainedTokenizerBase") -> Tokens:
    """Tokenize a text such that the text before each answer has the same tokens as by itself.

    A model gets those tokens as its prompt and continues them, whatever the answer is. A token is
    trained if its first character that is not white space is trained, since the space at the end of
    one turn is often part of the first token of the next. The text spells its own first token, as
    in a chat template, so none is added.

    Raises:
        ConfigError: The tokenizer cannot map tokens to places in the text.
        SampleError: `prompt_tokens`, if an answer changes the tokens of the prompt before it.
    """
    check_fast(tokenizer)
    tokens = Tokens([], [])
    edges = pairwise([True, *text.trained])
    starts = [place for place, (before, here) in enumerate(edges) if here and not before]
    for stop in [*starts, len(text.words)]:
        part = LabeledText(text.words[:stop], text.trained[:stop])
        tokens = _continue(tokens, _tokenize_once(part, tokenizer), tokenizer)
    return tokens


def _tokenize_once(text: LabeledText, tokenizer: "PreTrainedTokenizerBase") -> Tokens:
    found = tokenizer(text.words, add_special_tokens=False, return_offsets_mapping=True)
    trained, done = [], 0
    for start, stop in found["offset_mapping"]:
        # Some tokenizers do not count white space as part of a token: it is between two tokens.
        place = min(start, done, len(text.words) - 1)
        space = text.words[place:stop]
        place += len(space) - len(space.lstrip()) if space.strip() else 0
        trained.append(text.trained[place])
        done = max(done, stop)
    return Tokens(found["input_ids"], trained)


def _continue(prompt: Tokens, whole: Tokens, tokenizer: "PreTrainedTokenizerBase") -> Tokens:
    """Keep the tokens of a prompt if the tokens of the whole text begin with others.

    A token of the whole text that reaches over the end of the prompt is cut there, and the
    vocabulary spells the rest of it.

    Raises:
        SampleError: `prompt_tokens`.
    """
    same = count_shared(prompt.ids, whole.ids)
    if same == len(prompt.ids):
        return whole
    kept = "".join(tokenizer.convert_ids_to_tokens(prompt.ids[same:]))
    pieces = tokenizer.convert_ids_to_tokens(whole.ids[same:])
    lengths = list(accumulate(map(len, pieces)))
    number = bisect_left(lengths, len(kept)) + 1  # pieces that hold the end of the prompt
    spelled = "".join(pieces[:number])
    if not spelled.startswith(kept):
        raise SampleError(
            "prompt_tokens",
            f"the tokenizer spells {kept!r} at the end of a prompt as {spelled!r} when the answer "
            "follows",
        )
    rest = [token.id for token in tokenizer.backend_tokenizer.model.tokenize(spelled[len(kept) :])]
    after = same + number
    return Tokens(
        [*prompt.ids, *rest, *whole.ids[after:]],
        [*prompt.trained, *[True] * len(rest), *whole.trained[after:]],
    )


def count_shared(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Return the number of items that both sequences have in common at their start."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(first), len(second)))


def check_fast(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise ConfigError unless the tokenizer can map tokens to places in the text."""
    if not tokenizer.is_fast:
        raise ConfigError(
            f"tokenizer={tokenizer.name_or_path}: is a slow tokenizer, which cannot map tokens to "
            "places in the text; use a folder with tokenizer.json"
        )


def check_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise ConfigError unless a tokenizer that was loaded knows words and their places in a text.

    For a folder without one, transformers makes some kinds of tokenizers with no words at all.
    """
    check_fast(tokenizer)
    if not tokenizer.get_vocab().keys() - {
        *tokenizer.all_special_tokens,
        *tokenizer.get_added_vocab(),
    }:
        raise ConfigError(
            f"tokenizer={tokenizer.name_or_path}: knows no word, as if its files were not there; "
            "save the tokenizer there with `save_pretrained`"
        )


def differing_ids(tokenizer: "PreTrainedTokenizerBase", own: "PreTrainedTokenizerBase") -> str:
    """Return how many ids stand for other tokens than in the tokenizer of a language model.

    Returns:
        A part of a sentence; empty if they are few, as where someone has renamed spare tokens.
    """
    ours, theirs = (
        {number: token for token, number in each.get_vocab().items()} for each in (tokenizer, own)
    )
    common = ours.keys() & theirs.keys()
    num_others = sum(ours[number] != theirs[number] for number in common)
    if num_others <= _RENAMED * len(common):
        return ""
    return f"{num_others:,} of {len(common):,} ids stand for other tokens"


def repair_merges(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Let a tokenizer spell each text as its model was trained with, once after it is loaded.

    Some are saved with the dropout of merges they were trained with, and spell a text in another
    way each time. Others are read from a bare `tokenizer.model`. Sentencepiece merges the pair with
    the best score first; transformers 5 orders the pairs by token id, which only differs for runs
    of spaces: LLaMA and Mistral give these low ids and the worst score, so two spaces before a word
    would become other tokens than the model was trained on. Folders with a `tokenizer.json` list
    the pairs in the right order.
    """
    if tokenizer.is_fast and getattr(tokenizer.backend_tokenizer.model, "dropout", None):
        tokenizer.backend_tokenizer.model.dropout = None
    path = str(getattr(tokenizer, "vocab_file", None) or "")
    if not path.endswith(".model") or not tokenizer.is_fast:
        return
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer

    pieces = SentencePieceProcessor(model_file=path)
    scores = {pieces.id_to_piece(each): pieces.get_score(each) for each in range(len(pieces))}
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    if definition["model"]["type"] == "BPE":
        # Among pairs with the same piece or score, the one with the longest left part goes first:
        # a run of spaces then grows from the left, as in sentencepiece.
        definition["model"]["merges"].sort(
            key=lambda pair: (scores[pair[0] + pair[1]], len(pair[0]), len(pair[1])), reverse=True
        )
        tokenizer.backend_tokenizer.model = Tokenizer.from_str(json.dumps(definition)).model


def special_token_pattern(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return a pattern of the tokens at which a tokenizer splits a text."""
    return any_of(tokenizer.get_added_vocab())


def any_of(words: Iterable[str]) -> str:
    """Return a pattern that matches the longest of these words; without any, it matches nothing."""
    return "|".join(map(re.escape, sorted(words, key=len, reverse=True))) or "(?!)"


def image_token_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the id of the token that represents a part of an image. Raises: ConfigError."""
    token_id = tokenizer.get_added_vocab().get(IMAGE_PLACEHOLDER)
    if token_id is None:
        raise ConfigError(
            f"tokenizer={tokenizer.name_or_path}: has no image token {IMAGE_PLACEHOLDER}; "
            "add it as a special token"
        )
    return int(token_id)
