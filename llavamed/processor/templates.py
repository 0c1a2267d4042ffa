"""Define prompt templates, the words around the turns of a dialogue, as data.

A `Template` is defined once and used twice: by `render` in training, and by the Jinja text of
`chat_template` (whose body is `chat_template.j2`), which an exported processor carries to other
programs. A test keeps the two equal. Segments are marked as trained while the text is built;
nothing searches the finished text for answers.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from llavamed.errors import ConfigError, SampleError
from llavamed.processor.token_labels import Segment, any_of
from llavamed.processor.turns import IMAGE_PLACEHOLDER, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BOS, EOS = "{bos}", "{eos}"
"""Placeholders in a template for the tokenizer's first and last token."""

TOKENIZER = "tokenizer"
"""The name of the chat template that comes with a tokenizer."""

GREETING = "an answer before the first question"
"""Part of a dialogue that a template may leave out."""
OWN_SYSTEM = "the template's own system prompt, which a blank system turn replaces"
"""Text of a template that a dialogue may leave out."""


@dataclass(frozen=True)
class Template:
    """How a dialogue becomes one text. The model begins to write after `assistant_open`."""

    name: str
    system: str = ""
    """Default system text, which a system turn at the start of a dialogue replaces."""
    begin: str = BOS
    system_open: str = ""
    system_close: str = ""
    system_in_user_turn: bool = False
    """Whether the system text is put inside the first user turn instead of before it."""
    user_open: str = ""
    user_close: str = ""
    user_empty: str = ""
    """Replaces a question without text, unless it is the first and carries the system text."""
    assistant_open: str = ""
    answer_open: str = " "
    """Text before an answer, trained with it: sentencepiece joins the space to the word."""
    answer_close: str = EOS
    end: str = ""
    """Text after the last turn; it is trained, and absent from prompts."""
    stop: str = ""
    """Text that ends an answer; empty if the tokenizer's end token ends it."""
    images: Literal["in_place", "first", "alone"] = "first"
    """Where images are placed. `in_place`: where they were, without the white space around them;
    `first`: before their turn, one line above its text; `alone`: the rest of the user turn is
    dropped."""
    alternates: bool = True
    """Whether user and assistant must alternate; an assistant turn before the first question is
    dropped."""
    labels_by_count: bool = False
    """Whether labels are counted as in LLaVA-Med v1.0; see `encode`."""


_SYSTEM = (
    "A chat between a curious {0} and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the {0}'s questions."
)
_VICUNA = Template(
    name="vicuna_v1",
    system=_SYSTEM.format("user"),
    system_close=" ",
    user_open="USER: ",
    user_close=" ",
    user_empty="USER:",
    assistant_open="ASSISTANT:",
)
_MISTRAL = Template(
    name="mistral_instruct",
    system_open="<<SYS>>\n",
    system_close="\n<</SYS>>\n\n",
    system_in_user_turn=True,
    user_open="[INST] ",
    user_close=" [/INST]",
    answer_close=" " + EOS,
)
_DEFINITIONS = (
    Template(
        name="llava_med_v0",
        system=_SYSTEM.format("human"),
        system_close="\n\n",
        user_open="### Human: ",
        user_close="\n",
        assistant_open="### Assistant:",
        answer_close="\n",
        end="### ",
        stop="###",
        images="in_place",
        alternates=False,
        labels_by_count=True,
    ),
    replace(_VICUNA, name="llava_med_vicuna_v1_1", images="in_place"),
    _VICUNA,
    _MISTRAL,
    replace(
        _MISTRAL,
        name="llama_2",
        system="You are a helpful language and vision assistant. You are able to understand the "
        "visual content that the user provides, and assist the user with a variety of tasks using "
        "natural language.",
        begin="",
        user_open=BOS + "[INST] ",
    ),
    Template(name="plain", answer_open="", answer_close="\n", stop="\n", images="alone"),
)
TEMPLATES: Mapping[str, Template] = MappingProxyType({each.name: each for each in _DEFINITIONS})
"""All templates defined here, by name."""


def get_template(name: str) -> Template:
    """Return a template; `tokenizer` means the chat template of the tokenizer.

    Raises:
        ConfigError: There is no template of this name.
    """
    if name == TOKENIZER:
        return Template(name=TOKENIZER)
    if name not in TEMPLATES:
        known = ", ".join((*TEMPLATES, TOKENIZER))
        raise ConfigError(f"template={name}: is not a template of llavamed; use one of {known}")
    return TEMPLATES[name]


def stop_strings(template: Template) -> tuple[str, ...]:
    """Return the strings at which generation stops; none if the tokenizer's end token stops it."""
    return (template.stop,) if template.stop else ()


def marks_of_turns(
    template: Template, tokenizer: "PreTrainedTokenizerBase"
) -> Callable[[str], list[str]]:
    """Return a function that finds the special tokens and stop words that a text spells out."""
    marks = {*tokenizer.all_special_tokens, template.stop.strip()} - {"", IMAGE_PLACEHOLDER}
    return re.compile(any_of(marks)).findall


def left_out(turns: Sequence[Turn], template: Template) -> Iterator[str]:
    """Yield what a template leaves out: `GREETING`, and `OWN_SYSTEM` for a blank system turn.

    A system turn is written as it is, as language models' own templates do, so a blank one asks for
    no system text. A row that only has an empty `system` key has no system turn.
    """
    spoken = [turn.role for turn in turns if turn.role != "system"]
    if template.alternates and template.name != TOKENIZER and spoken[:1] == ["assistant"]:
        yield GREETING
    if template.system and any(t.role == "system" and not t.text.strip() for t in turns[:1]):
        yield OWN_SYSTEM


def template_hash(template: Template, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the SHA-256 of a template: of its definition, or of the tokenizer's Jinja text.

    Raises:
        ConfigError: The tokenizer should have a template of its own and has none.
    """
    own = template.name == TOKENIZER
    text = own_chat_template(tokenizer) if own else json.dumps(asdict(template), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def own_chat_template(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the Jinja text that comes with a tokenizer.

    Raises:
        ConfigError: The tokenizer has none, or several without a default.
    """
    if not tokenizer.chat_template:
        raise ConfigError(
            f"template={TOKENIZER}: the tokenizer {tokenizer.name_or_path} has no chat template; "
            f"use one of {', '.join(TEMPLATES)}"
        )
    if isinstance(tokenizer.chat_template, dict) and "default" not in tokenizer.chat_template:
        raise ConfigError(
            f"template={TOKENIZER}: the tokenizer {tokenizer.name_or_path} has the chat templates "
            f"{', '.join(sorted(tokenizer.chat_template))}, none of which is named default; "
            f"rename one to default, or use one of {', '.join(TEMPLATES)}"
        )
    return str(tokenizer.get_chat_template())


def bind(template: Template, tokenizer: "PreTrainedTokenizerBase") -> Template:
    """Replace `BOS` and `EOS` by the first and last token of the tokenizer.

    Raises:
        ConfigError: The template ends answers with a token that the tokenizer does not have.
    """
    texts: dict[str, Any] = {
        key: field for key, field in asdict(template).items() if isinstance(field, str)
    }
    if any(EOS in text for text in texts.values()) and not tokenizer.eos_token:
        raise ConfigError(
            f"template={template.name}: ends each answer with eos_token, and the tokenizer "
            f"{tokenizer.name_or_path} has none; set its eos_token, or use template=llava_med_v0"
        )
    bos, eos = tokenizer.bos_token or "", tokenizer.eos_token or ""
    return replace(
        template, **{key: text.replace(BOS, bos).replace(EOS, eos) for key, text in texts.items()}
    )


def render(turns: Sequence[Turn], template: Template, *, prompt: bool = False) -> list[Segment]:
    """Render a dialogue in a bound template. Raises: SampleError.

    The first segment is the header, and each further one a turn or a part of a turn. With `prompt`,
    the text stops where the model would answer.
    """
    system, dialogue = _split_system(turns, template)
    block = f"{template.system_open}{system}{template.system_close}" if system else ""
    outside, inside = ("", block) if template.system_in_user_turn else (block, "")
    segments = [Segment(template.begin + outside, False)]
    for number, turn in enumerate(dialogue):
        text = _place_images(turn, template)
        if turn.role == "user":
            opening = template.user_open + (inside if number == 0 else "")
            question = f"{opening}{text}{template.user_close}"
            if not (text or template.stop or (number == 0 and template.system_in_user_turn)):
                question = template.user_empty
            segments.append(Segment(question, False))
            continue
        answer = f"{template.answer_open}{text}{template.answer_close}"
        if not (text or template.stop):
            # The reference writes nothing after the opening of an empty answer, not even its end,
            # and we do the same within a dialogue. In the last turn the reference then masks the
            # whole sample; we train the end of that turn and leave the others as they are.
            answer = template.answer_close.strip() if number == len(dialogue) - 1 else ""
        opening = template.assistant_open
        if template.labels_by_count:
            opening, answer = "", opening + answer
        segments += [
            *([Segment(opening, False)] if opening else []),
            Segment(answer, turn.trained, excluded=not turn.trained),
        ]
    if prompt:
        segments.append(Segment(template.assistant_open, False))
    else:
        segments.append(Segment(template.end, not segments[-1].excluded))
    return segments


def _split_system(turns: Sequence[Turn], template: Template) -> tuple[str, Sequence[Turn]]:
    system = template.system
    if turns and turns[0].role == "system":
        system, turns = turns[0].text, turns[1:]
    if any(turn.role == "system" for turn in turns):
        raise SampleError("misplaced_system", "a system turn must be the first turn")
    if template.alternates:
        if turns and turns[0].role == "assistant":
            if IMAGE_PLACEHOLDER in turns[0].text:
                raise SampleError("image_in_greeting", "an image precedes the first question")
            turns = turns[1:]
        for number, turn in enumerate(turns):
            if turn.role != ("user", "assistant")[number % 2]:
                raise SampleError(
                    "roles_out_of_turn",
                    f"two {turn.role} turns in a row, which template {template.name} cannot hold",
                )
    if template.images == "alone" and (
        system or len(turns) > 2 or not (turns and IMAGE_PLACEHOLDER in turns[0].text)
    ):
        raise SampleError(
            "not_a_caption",
            f"template {template.name} takes one question with an image and one answer",
        )
    return system, turns


def _place_images(turn: Turn, template: Template) -> str:
    images = IMAGE_PLACEHOLDER * turn.text.count(IMAGE_PLACEHOLDER)
    if template.images == "alone" and turn.role == "user":
        return images
    if template.images == "first" and images:
        # The reference keeps one image of a turn; we move all of them to the front, in order.
        rest = turn.text.replace(IMAGE_PLACEHOLDER, "").strip()
        return f"{images}\n{rest}".strip()
    return turn.text


def chat_template(template: Template) -> str:
    """Return a template as the Jinja text that Hugging Face processors and servers render.

    Raises:
        ValueError: The template is the tokenizer's own, which already has a Jinja text.
    """
    if template.name == TOKENIZER:
        raise ValueError("the tokenizer's own template needs no other Jinja text")
    body = files("llavamed.processor").joinpath("chat_template.j2").read_text(encoding="utf-8")
    return "\n".join(_jinja_definitions(template)) + "\n" + body.rstrip("\n")


def _jinja_definitions(template: Template) -> Iterator[str]:
    """Yield a definition of each field of the template as a Jinja variable of the same name."""
    for key, field in asdict(template).items():
        value = json.dumps(field)
        value = value.replace(BOS, '" ~ (bos_token or "") ~ "').replace(EOS, '" ~ eos_token ~ "')
        yield f"{{%- set {key} = {value} -%}}"
