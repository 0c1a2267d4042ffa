"""A disk that is full at the export costs no step: the last one lies in a checkpoint."""

import resource
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from fsspec.implementations.local import LocalFileSystem

from llavamed.config.run import RunConfig
from llavamed.errors import CheckpointError
from llavamed.storage.location import locate
from llavamed.storage.manifest import ExportManifest, find
from llavamed.train import worker
from llavamed.train.checkpoint.listing import complete_checkpoints
from llavamed.train.metrics import StepRecord
from tests.support.training_setup import (
    LEARNING,
    assert_same_weights,
    exported_weights,
    make_job,
    run_stage,
    small_config,
)


@contextmanager
def full_from_now_on() -> Iterator[None]:
    """No file may grow beyond a few bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def fill_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    write_export = worker.write_export

    def write_to_full_disk(*args: object) -> None:
        with full_from_now_on():
            write_export(*args)

    monkeypatch.setattr(worker, "write_export", write_to_full_disk)


def fill_target(monkeypatch: pytest.MonkeyPatch) -> None:
    put_file = LocalFileSystem.put_file

    def put_on_full_disk(fs: LocalFileSystem, source: str, target: str) -> None:
        if "/export/" in target:
            raise OSError(28, "No space left on device")
        put_file(fs, source, target)

    monkeypatch.setattr(LocalFileSystem, "put_file", put_on_full_disk)


FULL = {
    "scratch": (fill_scratch, rf"{tempfile.gettempdir()}: cannot write there: .*free space there"),
    "target": (fill_target, r"/export/\S+: cannot write it: OSError: .*No space left on device"),
}


@pytest.mark.parametrize("place", FULL)
def test_no_space_for_the_export_costs_no_step(
    tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    fill, reason = FULL[place]
    quiet = make_job(small_config(tiny_config, *LEARNING, f"name=quiet-{place}"))
    run_stage(quiet)
    settings = ("checkpoint.every_steps=1000", f"name=full-{place}")
    job = make_job(small_config(tiny_config, *LEARNING, *settings))
    message = (
        rf"full-{place}/stages/align/export: the export cannot be written or read back: .*{reason}"
        r".*; all 6 steps are in the last checkpoint; start the same command again to go on"
    )
    with monkeypatch.context() as patch:
        fill(patch)
        with pytest.raises(CheckpointError, match=message):
            run_stage(job)
    assert find(ExportManifest, locate(job.export)) is None
    assert complete_checkpoints(locate(job.checkpoints)) == ["step-000006"]
    reported: list[StepRecord] = []
    report: Callable[[list[StepRecord]], None] = reported.extend
    assert run_stage(job, report).steps == 6
    assert [record["step"] for record in reported] == [1, 2, 3, 4, 5, 6], "none was taken again"
    assert_same_weights(exported_weights(job), exported_weights(quiet))
