"""Show the token labels of the dialogues in a file, to compare the masks with another trainer's.

Nothing is prepared and no image is read: each placeholder in the text counts as an image, so the
file need not name any. A row is refused only if no mask can be computed for it; rows that `prepare`
refuses for other reasons, such as an empty answer, have labels here.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypedDict

from llavamed.data.record import check_unicode
from llavamed.data.sources import Source
from llavamed.errors import SampleError
from llavamed.processor.encode import encode
from llavamed.processor.templates import Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class LabelledRow(TypedDict):
    """The labels of one row. `problem` is "reason: detail"; an unreadable row has empty lists."""

    id: Any
    input_ids: list[int]
    labels: list[int]
    problem: str | None


def label_rows(
    source: Source,
    *,
    template: Template,
    tokenizer: "PreTrainedTokenizerBase",
    num_image_tokens: int,
    max_length: int | None,
) -> Iterator[LabelledRow]:
    """Encode the rows of a source one by one.

    Args:
        max_length: The longest sample in tokens, or None.

    Yields:
        The labels of each row, not shifted. Its `id` is from the file, or the row number from 0.

    Raises:
        ConfigError: The tokenizer does not fit the template.
        DataError: The file cannot be read.
    """
    for number, row in enumerate(source.rows()):
        labelled: LabelledRow = {
            "id": row.get("id", number),
            "input_ids": [],
            "labels": [],
            "problem": None,
        }
        try:
            record = source.parse(row)
            check_unicode(record)
            encoded = encode(
                record.turns,
                template=template,
                tokenizer=tokenizer,
                num_image_tokens=num_image_tokens,
                max_length=max_length,
            )
            labelled["input_ids"], labelled["labels"] = encoded.input_ids, encoded.labels
            encoded.check_supervised()
        except SampleError as error:
            labelled["problem"] = str(error)
        yield labelled
