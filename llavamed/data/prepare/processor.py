"""Make the processor that all datasets of a folder share: tokenizer, chat template, image settings.

A new tokenizer is trained on the texts of the sources.
"""

from collections.abc import Iterator
from itertools import islice

from llavamed.config.run import RunConfig
from llavamed.data.prepare.made_from import check_made_from
from llavamed.data.prepared.dataset import PROCESSOR
from llavamed.data.sources import open_source
from llavamed.errors import SampleError
from llavamed.processor.build import build_processor
from llavamed.processor.templates import get_template
from llavamed.storage.location import MANIFEST, Location, locate
from llavamed.storage.manifest import (
    ProcessorMadeFrom,
    ProcessorManifest,
    ProcessorModel,
    dump,
    find,
)
from llavamed.storage.scratch import scratch_folder

TOKENIZER_SAMPLES = 20_000
"""Number of samples of each dataset whose text trains a new tokenizer."""
_NOT_TEXT = frozenset({"image_folder", "attested", "attested_sha256", "licence"})
"""Settings of a source that do not touch its texts, on which a tokenizer may be trained."""


def ensure_processor(config: RunConfig) -> Location:
    """Return the place of the processor that all datasets of a folder share; create it if absent.

    Raises:
        DataError: The processor in the folder was made with other settings.
    """
    place = locate(config.datasets_directory) / PROCESSOR
    facts = {name: getattr(config.model, name) for name in ProcessorModel.model_fields}
    wanted = ProcessorMadeFrom(model=ProcessorModel(**facts))
    if config.model.weights is None and config.model.tokenizer is None:
        assert config.model.language_model is not None
        if config.model.language_model.weights is None:  # then its tokenizer depends on the text
            texts = {name: dataset.read for name, dataset in config.data.datasets.items()}
            wanted = wanted.replace(datasets=texts)
    there = find(ProcessorManifest, place)
    if there is not None:
        check_made_from(there.made_from, wanted, place, ignored=_NOT_TEXT)
        return place
    processor = build_processor(config.model, _texts(config))
    with scratch_folder() as folder:
        processor.save_pretrained(folder)
        (folder / MANIFEST).write_bytes(dump(ProcessorManifest(made_from=wanted)))
        place.upload(folder)
    return place


def _texts(config: RunConfig) -> Iterator[str]:
    """Yield what a new tokenizer is trained on: the turns of samples, and the template's words."""
    template = get_template(config.model.template)
    for dataset in config.data.datasets.values():
        source = open_source(dataset.read)
        for row in islice(source.rows(), TOKENIZER_SAMPLES):
            try:
                yield from (turn.text for turn in source.parse(row).turns)
                yield from (template.user_open, template.user_close, template.assistant_open)
            except SampleError:
                continue  # counted and quarantined when the dataset is prepared
