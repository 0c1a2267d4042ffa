"""Estimate what dialogues take before their figures are known."""

from llavamed.config.corpus import Dialogues
from llavamed.config.endpoint import Endpoint
from llavamed.corpus.dialogues.check import MAX_TOKENS, check_request
from llavamed.corpus.dialogues.prompt import load_prompt, notes
from llavamed.llm.cost import CostEstimate, Usage, cost
from llavamed.llm.request import Image

CAPTION_WORDS, MENTIONS, MENTION_WORDS = 67, 2, 163
"""Mean words of a caption, mentions of a figure and words of a mention, in 18 real articles."""


def forecast(settings: Dialogues, num_figures: int) -> tuple[CostEstimate, CostEstimate | None]:
    """Return what the dialogues about figures of usual length take, and what their checks do.

    Args:
        settings: The models and the prompt.
        num_figures: Figures to ask about.

    Raises:
        ConfigError: The prompt cannot be read.
    """
    caption = " ".join(["finding"] * CAPTION_WORDS)
    mentions = [" ".join(["finding"] * MENTION_WORDS)] * MENTIONS
    asked = load_prompt(settings.prompt).request(
        caption,
        mentions,
        "",
        num_examples=settings.num_examples,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        seed=settings.seed,
        image=Image(b"", "image/png") if settings.send_image else None,
    )
    writing = _times(
        num_figures,
        asked.prompt_tokens(settings.endpoint),
        settings.max_tokens,
        settings.endpoint,
    )
    if settings.checker is None:
        return writing, None
    checked = check_request((), notes(caption, mentions)).prompt_tokens(settings.checker)
    prompt_tokens = checked + settings.max_tokens
    return writing, _times(num_figures, prompt_tokens, MAX_TOKENS, settings.checker)


def _times(number: int, prompt_tokens: int, max_tokens: int, endpoint: Endpoint) -> CostEstimate:
    usage = Usage(number * prompt_tokens, 0, number * max_tokens, is_estimated=True)
    price = None if endpoint.prices is None else cost(usage, endpoint.prices)
    return CostEstimate(number, usage.prompt_tokens, usage.completion_tokens, price)
