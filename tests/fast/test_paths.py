"""Paths that travel as text mean the same everywhere."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavamed.config.load import dump_config, load_config
from llavamed.config.paths import resolve, resolve_places
from llavamed.config.run import RunConfig
from tests.conftest import CONFIGS

PARTS = st.lists(st.text("ab~.", min_size=1, max_size=3), min_size=1, max_size=4)


@given(PARTS, st.sampled_from(["", "/", "./", "../", "~/", "file://", "file:///"]))
def test_what_is_resolved_is_absolute_or_as_it_was_and_stays(parts: list[str], start: str) -> None:
    source = start + "/".join(parts)
    found = resolve(source)
    assert found is not None
    assert resolve(found) == found
    assert found == source or Path(found).is_absolute()
    if start:
        assert Path(found).is_absolute()


@pytest.mark.parametrize(
    "source",
    ["s3://bucket/clip", "gs://bucket/a/b", "openai/clip-vit-large", "gpt2", "a" * 5000, None],
    ids=lambda source: str(source)[:20],
)
def test_uris_and_names_on_the_hub_stay_as_they_are(source: str | None) -> None:
    assert resolve(source) == source


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("model.gguf", "{here}/model.gguf"),
        ("folder/model.gguf", "{here}/folder/model.gguf"),
        ("/model.gguf", "/model.gguf"),
        ("a/b/model.gguf", "a/b/model.gguf"),
        ("./a/b/model.gguf", "{here}/a/b/model.gguf"),
        ("s3://bucket/a/model.gguf", "s3://bucket/a/model.gguf"),
    ],
)
def test_a_gguf_file_is_where_its_folder_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, found: str
) -> None:
    """Below a name on the hub, it is on the hub."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert resolve(source) == found.format(here=tmp_path)


def test_local_paths_of_a_config_are_absolute(
    tiny_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for folder in ("clip", "org/llava", "vqa"):
        Path(folder).mkdir(parents=True)
    file = tmp_path / "run.yaml"
    file.write_text(dump_config(tiny_config))
    config = load_config(
        file,
        [
            "model.vision_tower={weights: clip}",
            "model.language_model={weights: ./llama}",
            "model.tokenizer=~/tokenizer",
            "stages.align.initial_weights=org/llava",
            "stages.vqa.initial_weights=align",
        ],
    )
    model = config.model
    assert model.vision_tower is not None
    assert model.language_model is not None
    assert model.vision_tower.weights == str(tmp_path / "clip")
    assert model.language_model.weights == str(tmp_path / "llama")
    assert model.tokenizer == str(tmp_path / "home" / "tokenizer")
    starts = [stage.initial_weights for stage in config.stages]
    assert starts == [str(tmp_path / "org/llava"), None, "align"], "a stage's name is no folder"
    os.chdir("/")
    file.write_text(dump_config(config))
    assert load_config(file) == config


def test_local_places_of_a_corpus_are_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("clip").mkdir()
    config = load_config(
        CONFIGS / "demo-corpus.yaml",
        [
            "corpus.directory=here",
            "corpus.select.lexicon=words.yaml",
            "corpus.select.evaluation_sets=[sets/vqa, 's3://bucket/vqa']",
            "corpus.select.classifier={weights: ./clip}",
        ],
    )
    corpus = resolve_places(config).corpus
    assert corpus is not None
    assert corpus.select.classifier is not None
    assert corpus.directory == str(tmp_path / "here")
    assert corpus.harvest.source == str(tmp_path / "runs/demo-corpus/mirror")
    assert corpus.select.lexicon == str(tmp_path / "words.yaml")
    assert corpus.select.evaluation_sets == (str(tmp_path / "sets/vqa"), "s3://bucket/vqa")
    assert corpus.select.classifier.weights == str(tmp_path / "clip")
