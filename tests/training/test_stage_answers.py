"""The answers of a stage: what they depend on is beside them, and so is what training has seen."""

import logging
from pathlib import Path
from typing import Any

import pytest

from llavamed.config.run import RunConfig
from llavamed.errors import DataError
from llavamed.evaluate.answers import ANSWERS, AnswersManifest, read_answers
from llavamed.evaluate.overlaps import find_overlaps
from llavamed.evaluate.questions import PreparedQuestions
from llavamed.run.curriculum import plan_curriculum
from llavamed.run.driver import evaluate_stages, run_curriculum
from llavamed.storage.manifest import read
from tests.support.driver_without_ray import Done, done, quiet, scored_config
from tests.support.training_setup import prepared, small_config

__all__ = ["done"]


def test_a_stage_leaves_answers_under_the_conditions_it_names(
    tiny_config: RunConfig, tmp_path: Path, done: Done
) -> None:
    controls = "[noise, shuffled, untrained, majority]"
    config = scored_config(tiny_config, tmp_path, f"stages.align.evaluation.controls={controls}")
    run_curriculum(config, quiet())
    [plan] = plan_curriculum(config)
    made = read(AnswersManifest, plan.evaluation)
    assert made.conditions == ("trained", "noise", "shuffled", "untrained", "majority")
    found = read_answers(plan.evaluation / ANSWERS)
    assert tuple(found) == made.conditions
    assert {len(rows) for rows in found.values()} == {made.num_questions}
    assert made.questions == "test-questions"
    [overlap] = made.overlaps or ()
    assert (overlap.dataset, overlap.num_samples) == ("captions", 40)
    assert overlap.shared["pair"] == 0
    # Scoring again asks nothing again.
    evaluate_stages(config, None, quiet())
    assert read(AnswersManifest, plan.evaluation).num_generated == 0


def test_every_training_set_is_compared_with_the_questions(
    tiny_config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few = "data.datasets.test-questions.read.num_images=2"
    config = small_config(tiny_config, few, f"data.directory={tmp_path}")
    for name in ("captions", "test-questions"):
        prepared(config, name)
    with caplog.at_level(logging.WARNING):
        found = find_overlaps(config, ["captions", "captions", "test-questions"], "test-questions")
        unknown = find_overlaps(config, ["captions", "questions"], "test-questions")
    assert found is not None
    captions, same = found
    assert (captions.dataset, same.dataset) == ("captions", "test-questions")
    assert captions.shared.keys() == {"image", "question", "pair", "text"}
    assert set(same.shared.values()) == {same.num_samples}
    assert "test-questions: is trained on and evaluated on, so its scores say" in caplog.text
    assert unknown is None
    assert "questions: not compared with test-questions: " in caplog.text


def test_samples_that_say_not_how_they_are_scored_are_refused(tiny_config: RunConfig) -> None:
    config: Any = small_config(tiny_config)
    with pytest.raises(DataError, match="has no answer_type, by which it would be scored; eval"):
        PreparedQuestions(prepared(config, "captions")).read(0)
