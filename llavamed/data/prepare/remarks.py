"""Remark on what a user should know of a dataset for which no sample is refused."""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from llavamed.errors import SampleError
from llavamed.processor.own_template import end_of_answers
from llavamed.processor.templates import TEMPLATES, TOKENIZER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_SHOWN = 12


def remarks(
    dataset: str, unread: Counter[str], spelled: Counter[str], names: dict[str, int]
) -> Iterator[str]:
    """Yield remarks about a source.

    Args:
        unread: What is not used of samples, with the number of these.
        spelled: Special tokens that texts spell out, with the number of samples.
        names: The counts of `SampleTables.count_names`.
    """
    if unread:
        yield f"prepare {dataset}: not used, with the number of samples: {_listed(unread)}"
    if spelled:
        yield (
            f"prepare {dataset}: texts that spell tokens which end an answer or mark a turn, and "
            f"are read as these, with the number of samples: {_listed(spelled)}"
        )
    if names["num_unnamed"] or names["num_repeated_names"]:
        yield (
            f"prepare {dataset}: {names['num_unnamed']:,} samples have no id, and "
            f"{names['num_repeated_names']:,} the id of an earlier one"
        )


def warn_of_endless_answers(template: str, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Warn of a chat template that does not teach a model to end its answers."""
    with suppress(SampleError):  # nothing is known of a template that refuses the probe
        if template == TOKENIZER and not end_of_answers(tokenizer):
            logger.warning(
                "model.template=%s: the chat template of %s writes no special token after an "
                "answer, so a model does not learn to end one; write eos_token there, or use one "
                "of %s",
                template,
                tokenizer.name_or_path,
                ", ".join(TEMPLATES),
            )


def _listed(counts: Counter[str]) -> str:
    shown = ", ".join(f"{name} ({count:,})" for name, count in counts.most_common(_SHOWN))
    return f"{shown} and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else shown
