"""The prompt of a language model: instructions, examples of the modality, and the notes.

The texts are data, `prompt.yaml` in the package or a file of one's own in the same form. Whatever
a request depends on is in its key, so a changed text is asked again and an unchanged one never is.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from llavamed.corpus.shipped import load_shipped
from llavamed.llm.request import Image, Message, Request, strict
from llavamed.storage.fingerprint import fingerprint

MAX_NOTES_CHARACTERS = 8000
"""Maximum number of characters of mentions to show; paragraphs beyond that are left out."""

Speaker = Literal["user", "assistant"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SpokenTurn(_Part):
    """One turn."""

    speaker: Speaker
    text: str


class WrittenDialogue(_Part):
    """A dialogue about an image, turn by turn."""

    # Endpoints show the docstrings of an answer's form to the model.

    turns: list[SpokenTurn]


class Example(_Part):
    """Notes on an invented image, and a good dialogue about it. Question and answer alternate."""

    domain: str
    caption: str
    mentions: tuple[str, ...] = ()
    turns: Annotated[tuple[str, ...], Field(min_length=2)]

    def written(self) -> WrittenDialogue:
        """Return the dialogue as a model should write it."""
        speakers: tuple[Speaker, Speaker] = ("user", "assistant")
        return WrittenDialogue(
            turns=[
                SpokenTurn(speaker=speakers[number % 2], text=text)
                for number, text in enumerate(self.turns)
            ]
        )


class DialoguePrompt(_Part):
    """Instructions and examples."""

    system: str
    examples: tuple[Example, ...] = ()

    @property
    def hash(self) -> str:
        """Return the hash of all that is the same in every request."""
        return fingerprint([self.model_dump(mode="json"), strict(WrittenDialogue)])

    def request(
        self,
        caption: str,
        mentions: Sequence[str],
        domain: str,
        *,
        num_examples: int,
        max_tokens: int,
        temperature: float | None,
        seed: int | None,
        image: Image | None = None,
    ) -> Request:
        """Return the request for one figure's dialogue.

        Args:
            caption: Its caption.
            mentions: Paragraphs that mention it.
            domain: Its modality, whose examples come nearest to the question.
            num_examples: Number of examples to show.
            max_tokens: Maximum number of tokens of the answer.
            temperature: 0 asks for the likeliest answer; None leaves it to the endpoint.
            seed: Seed for endpoints that have one.
            image: The picture, for models that see.
        """
        others = [each for each in self.examples if each.domain != domain]
        own = [each for each in self.examples if each.domain == domain]
        shown = [*others, *own][-num_examples:] if num_examples else []
        messages = [Message("system", (self.system,))]
        for each in shown:
            messages.append(Message("user", (notes(each.caption, each.mentions),)))
            messages.append(Message("assistant", (each.written().model_dump_json(),)))
        asked = notes(caption, mentions)
        messages.append(Message("user", (asked,) if image is None else (image, asked)))
        return Request(
            tuple(messages),
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            schema=WrittenDialogue,
        )


def notes(caption: str, mentions: Sequence[str]) -> str:
    """Return a figure's caption and mentions as the model reads them."""
    lines = [f"Notes beneath the image: {caption}"]
    left = MAX_NOTES_CHARACTERS
    for mention in mentions:
        left -= len(mention)
        if left < 0:
            break
        lines.append(f"Where the authors refer to it: {mention}")
    return "\n".join(lines)


def load_prompt(path: str | None) -> DialoguePrompt:
    """Read the prompt of a file at any URI, or the package's own.

    Raises:
        ConfigError: The file cannot be read or is not a prompt.
    """
    return load_shipped(
        DialoguePrompt,
        path,
        package="llavamed.corpus.dialogues",
        key="prompt",
        verdict="is not a prompt",
        parts="system and examples",
    )
