"""A caption as a dialogue: a question of ours about the figure, and the caption as its answer."""

import zlib

from llavamed.processor.turns import IMAGE_PLACEHOLDER, Turn

DETAILED_WORDS = 30
"""Captions of so many words or more answer a question for detail. Source: LLaVA-Med, section 3."""

_BRIEF = (
    "What does this figure show, in a few words?",
    "Sum the figure up in a sentence or two.",
    "Which short caption fits this figure?",
    "Tell me only the main point of this figure.",
)
_DETAILED = (
    "What does this figure show? Leave nothing important out.",
    "Go through this figure and report what is seen in it.",
    "Which full caption fits this figure?",
    "Explain this figure to a colleague who cannot see it.",
)


def caption_turns(id: str, caption: str, num_images: int) -> tuple[Turn, Turn]:
    """A question and the caption; the sample's `id` alone decides between words and places.

    The images stand before the question or behind it, as often the one as the other.
    """
    questions = _DETAILED if len(caption.split()) >= DETAILED_WORDS else _BRIEF
    choice, is_first = divmod(zlib.crc32(id.encode(errors="replace")), 2)
    asked = questions[choice % len(questions)]
    images = [IMAGE_PLACEHOLDER] * num_images
    lines = [*images, asked] if is_first else [asked, *images]
    return Turn("user", "\n".join(lines)), Turn("assistant", caption.strip())
