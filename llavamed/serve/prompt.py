"""Turn the messages of a conversation into a prompt, or say what is wrong with them.

Nothing is changed in silence: a text that spells a token of the template, such as `</s>`, would end
a turn in the middle of a question, so it is refused.
"""

import re
from collections.abc import Sequence

from llavamed.errors import RequestError, SampleError
from llavamed.llm.request import Image, Message
from llavamed.model.generation import Generator, Prompt
from llavamed.model.running_batch import EncodedPrompt
from llavamed.processor.dicom import read_dicom
from llavamed.processor.image_files import Pixels, is_dicom
from llavamed.processor.images import ImageSettings, to_pixels
from llavamed.processor.token_labels import special_token_pattern
from llavamed.processor.turns import IMAGE_PLACEHOLDER, Turn

_EXCERPT = 40


def encode_messages(
    messages: Sequence[Message], generator: Generator, *, max_new_tokens: int | None, default: int
) -> tuple[EncodedPrompt, int]:
    """Encode a conversation whose last message is to be answered.

    Args:
        messages: The conversation.
        generator: What will answer it.
        max_new_tokens: The most tokens of the answer that are asked for, or None.
        default: The most tokens of an answer where none are asked for.

    Returns:
        The encoded prompt, and the most tokens of its answer.

    Raises:
        RequestError: A message breaks a rule, an image cannot be read, or the conversation and its
            answer do not fit the context of the model.
    """
    if not messages:
        raise RequestError(
            "messages=[]: holds no question; send at least one message of the user",
            code="empty_messages",
            param="messages",
        )
    turns, images = [], []
    for number, message in enumerate(messages):
        turns.append(Turn(message.role, _text(message, number, generator)))
        for part in message.parts:
            if isinstance(part, Image):
                images.append(read_image(part.data, generator.images, f"messages[{number}]"))
    try:
        prompt = generator.encode(Prompt(turns, images))
    except SampleError as error:
        raise RequestError(
            f"messages: {error.detail}; correct the conversation",
            code=error.reason,
            param="messages",
        ) from error
    return prompt, _room(prompt, generator, max_new_tokens, default)


def read_image(data: bytes, settings: ImageSettings, key: str) -> Pixels:
    """Decode a picture, or the first image of a DICOM file, as training would.

    Raises:
        RequestError: It cannot be read, or is too large.
    """
    try:
        return to_pixels(read_dicom(data) if is_dicom(data) else data, settings)
    except SampleError as error:
        raise _unusable(key, error) from error


def show_dicom(data: bytes) -> bytes:
    """Return the first image of a DICOM file as PNG, from which the pixels of a model are made.

    Raises:
        RequestError: It is not a DICOM file, or has no image that can be shown.
    """
    if not is_dicom(data):
        raise RequestError(
            "body: is not a DICOM file; a browser shows other images itself", code="no_dicom"
        )
    try:
        return read_dicom(data)
    except SampleError as error:
        raise _unusable("body", error) from error


def _unusable(key: str, error: SampleError) -> RequestError:
    return RequestError(
        f"{key}: the image cannot be used: {error.detail}; send another",
        code=error.reason,
        param=key,
    )


def _text(message: Message, number: int, generator: Generator) -> str:
    """Return the text of a turn, with a placeholder for each of its images."""
    key = f"messages[{number}]"
    num_images = sum(isinstance(part, Image) for part in message.parts)
    texts = [part for part in message.parts if isinstance(part, str)]
    if num_images and message.role != "user":
        raise RequestError(
            f"{key}: the {message.role} has {num_images} images, and only the user sends images; "
            "move them into a message of the user",
            code="misplaced_image",
            param=key,
        )
    for text in texts:
        _check_text(text, key, generator)
    num_named = sum(text.count(IMAGE_PLACEHOLDER) for text in texts)
    if num_named not in {0, num_images}:
        raise RequestError(
            f"{key}: its text names {IMAGE_PLACEHOLDER} {num_named} times and it has {num_images} "
            f"images; send an image for each, or leave {IMAGE_PLACEHOLDER} out",
            code="image_count",
            param=key,
        )
    if num_named:
        return "\n".join(texts)
    words = [IMAGE_PLACEHOLDER if isinstance(part, Image) else part for part in message.parts]
    return "\n".join(words)


def _check_text(text: str, key: str, generator: Generator) -> None:
    if re.search("[\ud800-\udfff]", text):
        raise RequestError(
            f"{key}: its text holds half a character (a lone surrogate); send valid Unicode",
            code="invalid_text",
            param=key,
        )
    for found in re.finditer(special_token_pattern(generator.tokenizer), text):
        if found[0] != IMAGE_PLACEHOLDER:
            raise RequestError(
                f"{key}: its text spells the special token {found[0][:_EXCERPT]}, with which "
                "the model marks turns; write a space into it",
                code="special_token",
                param=key,
            )


def _room(prompt: EncodedPrompt, generator: Generator, asked: int | None, default: int) -> int:
    """Return the most tokens of an answer to a prompt."""
    context, num_prompt = generator.context_length, len(prompt.input_ids)
    room = context - num_prompt
    if room < (asked or 1):
        wanted = f", and max_tokens={asked} come after it" if asked else ""
        raise RequestError(
            # LiteLLM and others know this error by the first words.
            f"messages: this model's maximum context length is {context} tokens; the prompt has "
            f"{num_prompt}, of which its {len(prompt.image_sizes)} images take "
            f"{prompt.num_image_tokens}{wanted}; shorten the conversation",
            code="context_length_exceeded",
            param="messages",
        )
    return asked or min(default, room)
