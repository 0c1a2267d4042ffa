"""Make local paths of weights and tokenizers absolute, because workers get them as text.

A worker has a different current folder from the driver, and a relative path that does not exist
looks like a name on the hub.
"""

import os
from pathlib import Path

from llavamed.config.corpus import Select
from llavamed.config.model import Pretrained
from llavamed.config.run import RunConfig
from llavamed.config.sources import PLACES


def resolve_paths(config: RunConfig) -> RunConfig:
    """Return the config with every local source of weights or a tokenizer as an absolute path.

    `~` is expanded. URIs, names on the hub and names of stages stay as they are.
    """
    model = config.model
    names = {stage.name for stage in config.stages}
    stages = tuple(
        stage
        if stage.initial_weights in names
        else stage.model_copy(update={"initial_weights": resolve(stage.initial_weights)})
        for stage in config.stages
    )
    sources = {
        "weights": resolve(model.weights),
        "tokenizer": resolve(model.tokenizer),
        "vision_tower": _resolve_part(model.vision_tower),
        "language_model": _resolve_part(model.language_model),
    }
    return config.model_copy(update={"model": model.model_copy(update=sources), "stages": stages})


def resolve_places(config: RunConfig) -> RunConfig:
    """Return the config with every local place of runs and data as an absolute path.

    Workers that Ray starts on a running cluster have a different current folder from the driver.
    """
    datasets = {
        name: dataset.model_copy(
            update={
                "read": dataset.read.model_copy(
                    update={
                        key: absolute(value)
                        for key in PLACES
                        if (value := getattr(dataset.read, key, None)) is not None
                    }
                )
            }
        )
        for name, dataset in config.data.datasets.items()
    }
    corpus = config.corpus
    if corpus is not None:
        harvest = corpus.harvest.model_copy(
            update={
                "source": absolute(corpus.harvest.source),
                "articles": corpus.harvest.articles and absolute(corpus.harvest.articles),
            }
        )
        own = corpus.directory and absolute(corpus.directory)
        select = _resolve_select(corpus.select)
        steps = {"directory": own, "harvest": harvest, "select": select}
        corpus = corpus.model_copy(update=steps)
    directory = config.data.directory
    places = {
        "directory": None if directory is None else absolute(directory),
        "datasets": datasets,
    }
    return config.model_copy(
        update={
            "storage": absolute(config.storage),
            "corpus": corpus,
            "data": config.data.model_copy(update=places),
        }
    )


def _resolve_select(select: Select) -> Select:
    """Return the section with local places as absolute paths; a worker reads them."""
    model = select.classifier
    places = {
        "lexicon": select.lexicon and absolute(select.lexicon),
        "evaluation_sets": tuple(map(absolute, select.evaluation_sets)),
        "classifier": model and model.model_copy(update={"weights": resolve(model.weights)}),
    }
    return select.model_copy(update=places)


def absolute(uri: str) -> str:
    """Return a local path as an absolute one; a URI stays as it is."""
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


def resolve(source: str | None) -> str | None:
    """Return one source, absolute where it is a local path.

    A source is a path if it cannot be a name on the hub, or if it is a folder here: transformers
    looks for a folder first too. A GGUF file is where its folder is.
    """
    if source is not None and source.endswith(".gguf"):
        folder, name = os.path.split(source)
        return os.path.join(str(resolve(folder or ".")), name)
    if source is None or "://" in source.removeprefix("file://"):
        return source
    path = os.path.expanduser(source.removeprefix("file://"))
    is_path = source.startswith(("/", ".", "~", "file://")) or source.count("/") > 1
    if is_path or os.path.isdir(path):  # false for a name that is too long for a path
        return str(Path(path).absolute())
    return source


def _resolve_part(part: Pretrained | None) -> Pretrained | None:
    return part and part.model_copy(update={"weights": resolve(part.weights)})
