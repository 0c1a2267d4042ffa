"""`scaling.launcher: local` trains in this process, where a breakpoint works."""

import os
from pathlib import Path

import pytest

from llavamed.config.load import override_config
from llavamed.config.run import RunConfig
from llavamed.errors import ConfigError
from llavamed.run.fit import fit
from llavamed.storage.location import MANIFEST, locate
from llavamed.train.job import Workers
from llavamed.train.metrics import StepRecord
from tests.support.training_setup import (
    assert_same_weights,
    exported_weights,
    make_job,
    run_stage,
    small_config,
)


def test_a_local_stage_trains_here_and_without_ray(tiny_config: RunConfig, tmp_path: Path) -> None:
    job = make_job(
        small_config(tiny_config, "name=launched-here", "scaling={launcher: local, num_workers: 1}")
    )
    processes: set[int] = set()
    records: list[StepRecord] = []

    def on_records(new: list[StepRecord]) -> None:
        processes.add(os.getpid())
        records.extend(new)

    started: list[Workers] = []
    assert fit(job, locate(str(tmp_path)), started.append, on_records)
    assert [each.number for each in started] == [1]
    assert processes == {os.getpid()}
    steps = (locate(job.export) / MANIFEST).read_json()["steps"]
    assert [record["step"] for record in records] == list(range(1, steps + 1))
    elsewhere = make_job(small_config(tiny_config, "name=launched-elsewhere"))
    assert job.fingerprint == elsewhere.fingerprint, "it is no other run"
    run_stage(elsewhere)
    assert_same_weights(exported_weights(job), exported_weights(elsewhere))


def test_one_process_cannot_be_several_workers(tiny_config: RunConfig) -> None:
    message = "launcher=local: trains in one process, and num_workers=2; set num_workers to 1, or"
    with pytest.raises(ConfigError, match=message):
        override_config(tiny_config, ["scaling={launcher: local, num_workers: 2}"])
