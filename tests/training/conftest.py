"""Fixtures of the tests that train."""

import pytest

from llavamed.config.run import RunConfig
from llavamed.train.job import StageJob
from tests.support.driver_without_ray import done

__all__ = ["done"]


@pytest.fixture(scope="session")
def undisturbed(session_config: RunConfig) -> StageJob:
    """A stage of six steps that nothing interrupted; tests only compare with its export."""
    from tests.support.training_setup import LEARNING, make_job, run_stage, small_config

    job = make_job(small_config(session_config, *LEARNING, "name=undisturbed"))
    run_stage(job)
    return job
