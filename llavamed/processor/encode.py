"""Encode dialogues as token ids and labels, without torch, files or randomness.

`templates.render` builds the text of a dialogue from segments that know whether they are trained.
The text is tokenized once, and each token is labelled by the segment it begins in. Nothing searches
the finished text for role names, so an answer may contain any of them.

Text that spells a special token (`</s>` in a question) becomes that token, as in the reference,
because training and serving must tokenize alike. Whether to accept such text from users is for the
server to decide. The same holds for `<image>`, which `check_record` has counted before.

Source: LLaVA-Med v1.0.0 and LLaVA v1.5; the tests compare with their outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from llavamed.errors import SampleError
from llavamed.processor.own_template import own_template
from llavamed.processor.templates import TOKENIZER, Template, bind, render
from llavamed.processor.token_labels import (
    LabeledText,
    Segment,
    Tokens,
    flatten,
    image_token_id,
    rewrite,
    tokenize,
    write_out_first_spaces,
)
from llavamed.processor.turns import IGNORE_INDEX, IMAGE_PLACEHOLDER, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_COUNTED_IMAGE_WIDTH = 258
"""Tokens of an image in LLaVA-Med v1.0: 256 patches between a start and an end token."""

_COUNTED_LEAD = 2
"""Tokens at the start of each user turn ("###") that LLaVA-Med v1.0 trains."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One sample as token ids and labels of equal length; `labels` are not shifted."""

    input_ids: list[int]
    labels: list[int]
    num_truncated: int
    """Text tokens that were cut off to fit `max_length`."""

    def check_supervised(self) -> None:
        """Raise SampleError (`no_supervised_token`) if no token is trained."""
        if all(label == IGNORE_INDEX for label in self.labels):
            raise SampleError(
                "no_supervised_token",
                f"no token of an answer among {len(self.input_ids)}, and {self.num_truncated} more "
                "were cut off",
            )


def check_template(template: Template, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise ConfigError unless the tokenizer can render the template.

    Raises:
        ConfigError: The tokenizer lacks a token or a chat template, or its chat template is not
            valid Jinja.
    """
    image_token_id(tokenizer)
    if template.name == TOKENIZER:
        own_template(tokenizer)
    else:
        bind(template, tokenizer)


def encode(
    turns: Sequence[Turn],
    *,
    template: Template,
    tokenizer: "PreTrainedTokenizerBase",
    num_image_tokens: int | Sequence[int],
    max_length: int | None,
) -> Encoded:
    """Encode a dialogue as token ids and labels.

    Args:
        turns: The dialogue, with an image placeholder at the place of each image.
        template: The template that joins the turns to one text.
        tokenizer: A fast tokenizer with the image token.
        num_image_tokens: Number of image tokens for each image, in order, or one number for all.
        max_length: The longest sample in tokens, or None. Text is cut off at the end to fit; images
            are never cut, because a sample must hold all images it is stored with.

    Raises:
        SampleError: `too_long`, or a reason why the template cannot render these turns.
        ConfigError: The tokenizer does not fit the template.
    """
    if template.name == TOKENIZER:
        tokens = tokenize(own_template(tokenizer).label(turns), tokenizer)
    else:
        bound = bind(template, tokenizer)
        segments = render(turns, bound)
        label = _label_by_count if bound.labels_by_count else _label_by_segment
        tokens = label(segments, bound, tokenizer)
    return _expand_images(tokens, image_token_id(tokenizer), num_image_tokens, max_length)


def encode_prompt(
    turns: Sequence[Turn],
    *,
    template: Template,
    tokenizer: "PreTrainedTokenizerBase",
    num_image_tokens: int | Sequence[int],
) -> list[int]:
    """Encode a dialogue that ends with a question, as token ids for the model to continue.

    They are a prefix of the ids that `encode` returns for the same turns followed by any answer. So
    the space before an answer belongs to the answer: a sentencepiece vocabulary joins it to the
    first word.

    Args:
        turns: The dialogue, with an image placeholder at the place of each image.
        template: The template that joins the turns to one text.
        tokenizer: A fast tokenizer with the image token.
        num_image_tokens: Number of image tokens for each image, in order, or one number for all.

    Raises:
        SampleError: The last turn is not a question, or the template cannot render these turns.
        ConfigError: The tokenizer does not fit the template.
    """
    if not turns or turns[-1].role != "user":
        raise SampleError(
            "no_question", "the last turn must be the user's for a model to answer it"
        )
    if template.name == TOKENIZER:
        tokens = tokenize(own_template(tokenizer).label(turns, prompt=True), tokenizer)
    else:
        bound = bind(template, tokenizer)
        tokens = _label_by_segment(render(turns, bound, prompt=True), bound, tokenizer)
    return _expand_images(tokens, image_token_id(tokenizer), num_image_tokens, None).input_ids


def _expand_images(
    tokens: Tokens, image_id: int, num_image_tokens: int | Sequence[int], max_length: int | None
) -> Encoded:
    """Repeat each image token, and cut off the last text tokens to fit `max_length`."""
    num_images = tokens.ids.count(image_id)
    if isinstance(num_image_tokens, int):
        numbers = [num_image_tokens] * num_images
    else:
        numbers = list(num_image_tokens)
    if len(numbers) != num_images:
        raise SampleError(
            "placeholder_mismatch",
            f"{num_images} {IMAGE_PLACEHOLDER} in the rendered text, {len(numbers)} images",
        )
    num_text = len(tokens.ids) - num_images
    room = num_text if max_length is None else max_length - sum(numbers)
    if room < 0:
        raise SampleError(
            "too_long",
            f"{num_images} images of {' and '.join(map(str, dict.fromkeys(numbers)))} tokens do "
            f"not fit max_length={max_length}",
        )
    each = iter(numbers)
    num_truncated = max(0, num_text - room)
    ids: list[int] = []
    labels: list[int] = []
    for token, trained in zip(tokens.ids, tokens.trained, strict=True):
        if token == image_id:
            number = next(each)
            ids += [token] * number
            labels += [IGNORE_INDEX] * number
        elif room:
            room -= 1
            ids.append(token)
            labels.append(token if trained else IGNORE_INDEX)
    return Encoded(ids, labels, num_truncated)


def _label_by_segment(
    segments: Sequence[Segment], template: Template, tokenizer: "PreTrainedTokenizerBase"
) -> Tokens:
    """Label each token by the segment it begins in."""
    text = flatten(segments)
    if template.images == "in_place":
        # The slow tokenizer of LLaVA-Med v1.0 drops the white space on both sides of image tokens,
        # and of no other special token.
        text = rewrite(text, rf"\s*{IMAGE_PLACEHOLDER}\s*", IMAGE_PLACEHOLDER)
    if template.labels_by_count:  # the trained segments do not begin where prompts end
        text = LabeledText(text.words, [False] * len(text.words))
    return tokenize(write_out_first_spaces(text, tokenizer), tokenizer)


def _label_by_count(
    segments: Sequence[Segment], template: Template, tokenizer: "PreTrainedTokenizerBase"
) -> Tokens:
    """Label tokens as LLaVA-Med v1.0 did: by the lengths of the turns, each tokenized separately.

    A separate turn has one token more, the tokenizer's first token. With the LLaMA vocabulary it
    also has one token less, since "###" is a single token only at the start of a text, and the two
    cancel. With another vocabulary every turn shifts the labels by one token. This is the behaviour
    of the template, and it is kept for those who choose it by name.
    """
    image_id = image_token_id(tokenizer)

    def lengths(*parts: Segment) -> list[int]:
        ids = _label_by_segment(parts, template, tokenizer).ids
        return [_COUNTED_IMAGE_WIDTH if token == image_id else 1 for token in ids]

    place = sum(lengths(segments[0]))
    masked = [range(place)]
    for previous, turn in pairwise(segments):
        after = place + sum(lengths(Segment(template.begin, False), turn))
        if not turn.trained:
            # The lead of a turn ends the previous answer, and is trained if that answer is.
            is_lead_trained = not (turn.excluded or previous.excluded)
            masked.append(range(place + _COUNTED_LEAD * is_lead_trained, after))
        place = after
    ids = _label_by_segment(segments, template, tokenizer).ids
    places = accumulate(lengths(*segments), initial=0)
    trained = [
        not any(place in span for span in masked) for _, place in zip(ids, places, strict=False)
    ]
    return Tokens(ids, trained)
