"""Make local paths of weights and tokenizers absolute, because workers get them as text.

A worker has a different current folder from the driver, and a relative path that does not exist
looks like a name on the hub.
"""

import os
from pathlib import Path
from typing import Any, TypeVar

from llavamed.config.corpus import Corpus
from llavamed.config.run import RunConfig
from llavamed.config.section import Section
from llavamed.config.sources import PLACES, Read

S = TypeVar("S", bound=Section)


def resolve_paths(config: RunConfig) -> RunConfig:
    """Return the config with every local source of weights or a tokenizer as an absolute path.

    `~` is expanded. URIs, names on the hub and names of stages stay as they are.
    """
    model, tower, language = config.model, config.model.vision_tower, config.model.language_model
    names = {stage.name for stage in config.stages}
    stages = tuple(
        stage
        if stage.initial_weights in names
        else _changed(stage, initial_weights=resolve(stage.initial_weights))
        for stage in config.stages
    )
    sources = _changed(
        model,
        weights=resolve(model.weights),
        tokenizer=resolve(model.tokenizer),
        vision_tower=tower and _changed(tower, weights=resolve(tower.weights)),
        language_model=language and _changed(language, weights=resolve(language.weights)),
    )
    return _changed(config, model=sources, stages=stages)


def resolve_places(config: RunConfig) -> RunConfig:
    """Return the config with every local place of runs and data as an absolute path.

    Workers that Ray starts on a running cluster have a different current folder from the driver.
    """
    data = config.data
    datasets = {
        name: _changed(dataset, read=_resolve_read(dataset.read))
        for name, dataset in data.datasets.items()
    }
    return _changed(
        config,
        storage=absolute(config.storage),
        corpus=config.corpus and _resolve_corpus(config.corpus),
        data=_changed(data, directory=absolute(data.directory), datasets=datasets),
    )


def _resolve_read(read: Read) -> Read:
    places = {key: absolute(value) for key, value in read if key in PLACES}
    return _changed(read, **places)


def _resolve_corpus(corpus: Corpus) -> Corpus:
    harvest, select, model = corpus.harvest, corpus.select, corpus.select.classifier
    return _changed(
        corpus,
        directory=absolute(corpus.directory),
        harvest=_changed(
            harvest, source=absolute(harvest.source), articles=absolute(harvest.articles)
        ),
        select=_changed(
            select,
            lexicon=absolute(select.lexicon),
            evaluation_sets=tuple(map(absolute, select.evaluation_sets)),
            classifier=model and _changed(model, weights=resolve(model.weights)),
        ),
    )


def absolute(uri: str | None) -> str | None:
    """Return a local path as an absolute one; a URI, and no path, stay as they are."""
    if not uri or "://" in uri:
        return uri
    return str(Path(uri).expanduser().absolute())


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


def _changed(section: S, **changes: Any) -> S:
    return section.model_copy(update=changes)
