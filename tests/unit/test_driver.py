"""What the driver does again and what it does not, and that one who was taken over stops."""

from pathlib import Path

import pytest
from driver_without_ray import Done, done, quiet, scored_config

from llavamed.config.schema import RunConfig
from llavamed.errors import ConfigError
from llavamed.storage import locate
from llavamed.train.driver import SUMMARY, run_curriculum

__all__ = ["done"]


def test_what_is_finished_is_not_done_again_and_only_what_changed_is(
    done: Done, tiny_config: RunConfig, tmp_path: Path
) -> None:
    config = scored_config(tiny_config, tmp_path)
    summary = run_curriculum(config, quiet())
    assert done.names == ["cluster", "train", "answer", "shut down"]
    assert run_curriculum(config, quiet()) == summary
    assert done.names == ["cluster", "train", "answer", "shut down"]

    done.names.clear()
    longer = scored_config(tiny_config, tmp_path, "stages.align.evaluation.max_new_tokens=3")
    found = run_curriculum(longer, quiet())
    assert done.names == ["cluster", "answer", "shut down"]
    assert found["evaluations"][0]["fingerprint"] != summary["evaluations"][0]["fingerprint"]
    assert run_curriculum(longer, quiet()) == found
    assert done.names == ["cluster", "answer", "shut down"]


def test_settings_that_were_refused_once_are_not_finished_the_next_time(
    done: Done, tiny_config: RunConfig, tmp_path: Path
) -> None:
    run_curriculum(scored_config(tiny_config, tmp_path), quiet())
    changed = scored_config(tiny_config, tmp_path, "seed=1")
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"stage align .* other settings or data"):
            run_curriculum(changed, quiet())
    longer = scored_config(tiny_config, tmp_path, "max_failures=7")
    assert run_curriculum(longer, quiet()) == (locate(longer.directory) / SUMMARY).read_json()
