"""Dialogues of a file -> what a trainer would be given: the way to compare masks with another.

Nothing is prepared and no image is read: each placeholder in the text counts as an image, so the
file needs to name none. Only what no mask can be made for is refused; what `prepare` refuses
besides, such as an empty answer, has labels here.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llavamed.data.record import check_unicode
from llavamed.data.sources import Source
from llavamed.errors import SampleError
from llavamed.processor.encode import Template, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def label_rows(
    source: Source,
    *,
    template: Template,
    tokenizer: "PreTrainedTokenizerBase",
    num_image_tokens: int,
    max_length: int | None,
) -> Iterator[dict[str, Any]]:
    """Encode the rows of a source one by one.

    Yields:
        `id` as the file has it, or the row's number from 0; `input_ids`; `labels`, not shifted;
        `problem`, None or "reason: detail"; the lists are empty where there is nothing to show.

    Raises:
        ConfigError: The tokenizer does not fit the template.
        DataError: The file cannot be read.
    """
    for number, row in enumerate(source.rows()):
        labelled = {"id": row.get("id", number), "input_ids": [], "labels": [], "problem": None}
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
            labelled |= {"input_ids": encoded.input_ids, "labels": encoded.labels}
            encoded.check_supervised()
        except SampleError as error:
            labelled["problem"] = str(error)
        yield labelled
