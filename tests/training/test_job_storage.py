"""Where a submitted job writes, whatever folder it was submitted from."""

from pathlib import Path

import pytest

from llavamed.config.run import RunConfig
from llavamed.errors import ConfigError
from llavamed.run.job_storage import IN_A_JOB, check_storage, settle_storage


@pytest.fixture
def in_a_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A submitted job; gives the home of its head."""
    monkeypatch.setenv(IN_A_JOB, "{}")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def with_storage(config: RunConfig, storage: str, directory: str | None = None) -> RunConfig:
    data = config.data.model_copy(update={"directory": directory})
    return config.model_copy(update={"storage": storage, "data": data})


@pytest.mark.parametrize("storage", ["runs", "./runs", "a/../runs"])
def test_a_relative_path_of_a_job_is_below_the_home_of_the_head(
    tiny_config: RunConfig, in_a_job: Path, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = with_storage(tiny_config, storage, "datasets")
    settled = settle_storage(given)
    assert Path(settled.storage).resolve() == in_a_job / "llavamed" / "runs"
    assert settled.datasets_directory == str(in_a_job / "llavamed" / "datasets")
    monkeypatch.chdir(in_a_job)
    assert settle_storage(given) == settled, "wherever it was submitted from"
    monkeypatch.delenv(IN_A_JOB)
    assert settle_storage(given) == given, "outside of a job a path is what it says"


@pytest.mark.parametrize("storage", ["s3://bucket/runs", "/shared/runs", "file:///runs", "~/runs"])
def test_any_other_place_stays_as_it_is(
    tiny_config: RunConfig, in_a_job: Path, storage: str
) -> None:
    config = with_storage(tiny_config, storage)
    assert settle_storage(config) == config
    check_storage(config, 3)


def test_several_machines_cannot_share_a_folder_of_the_head(
    tiny_config: RunConfig, in_a_job: Path
) -> None:
    config = settle_storage(with_storage(tiny_config, "runs"))
    check_storage(config, 1)
    message = (
        rf"^storage={in_a_job}/llavamed/runs: is a folder of the head alone, and the cluster has 3 "
        "machines; set it to an object store, or to the absolute path"
    )
    with pytest.raises(ConfigError, match=message):
        check_storage(config, 3)
    shared = settle_storage(with_storage(tiny_config, "s3://bucket/runs", "datasets"))
    with pytest.raises(ConfigError, match=r"^data.directory=.*/llavamed/datasets: is a folder of"):
        check_storage(shared, 2)
