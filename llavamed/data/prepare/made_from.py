"""Say with which settings a dataset is prepared, and compare them with those of before."""

from dataclasses import asdict

from llavamed.config.run import RunConfig
from llavamed.errors import DataError
from llavamed.processor.build import Processor, image_settings, tokenizer_hash
from llavamed.processor.templates import get_template, template_hash
from llavamed.storage.fingerprint import differences
from llavamed.storage.location import Location
from llavamed.storage.manifest import Facts, ImageFacts, MadeFrom


def made_from(config: RunConfig, name: str, processor: Processor) -> MadeFrom:
    """Return the settings a dataset is prepared with, without reading its source."""
    dataset, settings = config.data.datasets[name], config.data
    return MadeFrom(
        read=dataset.read,
        tokenizer=tokenizer_hash(processor),
        template=template_hash(get_template(config.model.template), processor.tokenizer),
        images=ImageFacts(**asdict(image_settings(processor, settings.image_backend))),
        max_length=settings.max_length,
        store_images=settings.store_images,
        rows_per_shard=settings.rows_per_shard,
        row_group_size=settings.row_group_size,
        drop_duplicates=dataset.drop_duplicates,
    )


def check_made_from(
    there: Facts, wanted: Facts, place: Location, ignored: frozenset[str] = frozenset()
) -> None:
    """Check that a dataset or a processor was made with the settings of now. Raises: DataError.

    Args:
        there: The settings that it was made with.
        wanted: Those of now.
        place: Where it is.
        ignored: Keys of sources that may differ.
    """
    before, now = (facts.model_dump(mode="json") for facts in (there, wanted))
    for read in (*(before.get("datasets") or {}).values(), *(now.get("datasets") or {}).values()):
        for key in ignored:
            read.pop(key, None)
    if differing := differences(before, now):
        raise DataError(
            f"{place}: was prepared with other settings: {'; '.join(differing)}; restore them, set "
            "data.directory to another folder, or delete this one to prepare it again"
        )
