"""A prepared dataset stands alone: its source is read again only where somebody asks for it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llavamed.config.load import dump_config
from llavamed.config.run import RunConfig
from llavamed.data.prepare.job import prepare
from tests.support.training_setup import make_job, prepared, run_stage, small_config


def write_rows(file: Path, num_rows: int) -> None:
    turns = ["What is seen?", "A small lesion in the left lower lobe."]
    dialogue = [{"from": who, "value": turns[who == "gpt"]} for who in ("human", "gpt")]
    rows = [{"id": f"row-{number}", "conversations": dialogue} for number in range(num_rows)]
    file.write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    write_rows(file, 8)
    return file


@pytest.fixture
def config(tiny_config: RunConfig, tmp_path: Path, source: Path) -> RunConfig:
    read = f"{{source: llava_json, path: {source}, image_folder: {tmp_path}}}"
    return small_config(
        tiny_config,
        f"data.datasets.captions.read={read}",
        f"data.directory={tmp_path}/datasets",
        f"name=alone-{tmp_path.name}",
        "stages.align.max_steps=1",
        "stages.align.trainable=[language_model]",  # no sample has an image
    )


@pytest.fixture
def check(config: RunConfig, tmp_path: Path, llavamed: Callable[..., tuple[int, str, str]]):
    """Run `llavamed prepare --check`; gives its exit code and what it says."""

    def call(*words: str) -> tuple[int, str]:
        file = tmp_path / "run.yaml"
        file.write_text(dump_config(config))
        options = ("--config", str(file), "--dataset", "captions")
        code, out, err = llavamed("prepare", "--check", *options, *words)
        return code, out + err

    return call


def test_a_run_with_finished_datasets_does_not_read_their_sources(
    config: RunConfig, source: Path
) -> None:
    made = prepared(config)
    source.unlink()
    assert prepare(config, ["captions"])["captions"].manifest == made.manifest
    assert run_stage(make_job(config)).steps == 1


def test_an_unchanged_source_says_so(config: RunConfig, check) -> None:
    prepared(config)
    code, text = check()
    assert code == 0, text
    assert "captions: its source has not changed, 8 rows" in text


def test_a_changed_source_is_found_and_changes_nothing(
    config: RunConfig, source: Path, check
) -> None:
    made = prepared(config)
    write_rows(source, 9)
    code, text = check()
    assert code == 1
    assert (
        f"error: data.datasets.captions: its source has changed since {made.location} was prepared "
        "(then 8 rows, now 9); set data.directory to another folder, or delete the dataset's, to "
        "prepare again"
    ) in text
    assert prepared(config).manifest == made.manifest
    source.unlink()
    code, text = check()
    assert code == 1
    assert f"path={source}: no such file; check the dataset's path" in text


def test_the_advice_for_a_changed_source_is_accepted(
    config: RunConfig, source: Path, check, tmp_path: Path
) -> None:
    prepared(config)
    write_rows(source, 9)
    assert check()[0] == 1
    elsewhere = f"data.directory={tmp_path}/elsewhere"
    moved = config.model_copy(
        update={"data": config.data.model_copy(update={"directory": f"{tmp_path}/elsewhere"})}
    )
    assert prepared(moved).manifest.num_rows == 9
    assert check(elsewhere)[0] == 0


def test_what_is_not_prepared_or_not_named_is_refused(check) -> None:
    code, text = check()
    assert code == 1
    assert "captions: no prepared dataset there (manifest.json is missing); run `llavamed" in text
    code, text = check("--dataset", "scans")
    assert code == 2
    assert "scans" in text
