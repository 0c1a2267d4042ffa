"""The gate moves the alias `champion` in a real registry, or leaves it where it is."""

from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from llavamed.config.gate import GatePolicy
from llavamed.config.run import RunConfig
from llavamed.errors import ConfigError, DataError, GateError
from llavamed.evaluate.answers import ANSWERS, iter_answers
from llavamed.evaluate.find_candidate import find_candidate
from llavamed.run.curriculum import find_stage
from llavamed.run.driver import run_curriculum
from llavamed.run.gate import check_candidate, make_champion
from llavamed.storage.location import locate
from llavamed.tracking.mlflow_client import tracking_uri
from llavamed.tracking.registered import find_export
from tests.support.answer_files import write_answers
from tests.support.driver_without_ray import Done, done, quiet, scored_config

__all__ = ["done"]

EASY = GatePolicy(min_scores={"all_strict": 0}, licences=("Apache-2.0",))


def champion(config: RunConfig, name: str) -> str:
    version = MlflowClient(tracking_uri(config)).get_model_version_by_alias(name, "champion")
    return str(version.version)


def set_champion(config: RunConfig, policy: GatePolicy, name: str) -> str:
    checks, plan, tracker = check_candidate(config, None, policy, name)
    return make_champion(checks, plan, tracker, policy, name)


def test_a_model_that_meets_the_policy_becomes_champion_and_one_that_does_not_leaves_it(
    done: Done, tiny_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = scored_config(tiny_config, tmp_path, "name=first")
    with pytest.raises(DataError, match=r"stage=align: is not scored .*; run `llavamed evaluate`"):
        check_candidate(first, None, EASY, "rad")
    run_curriculum(first, quiet())
    hard = EASY.model_copy(update={"min_scores": {"all_strict": 1.0}})
    with pytest.raises(GateError, match=r"model=rad: breaks 1 of 3 rules .*all_strict=1"):
        set_champion(first, hard, "rad")
    with pytest.raises(GateError, match=r"samples of captions have Apache-2.0"):
        set_champion(first, EASY.model_copy(update={"licences": ("CC0",)}), "rad")
    assert MlflowClient(tracking_uri(first)).search_registered_models("name = 'rad'") == []
    assert set_champion(first, EASY, "rad") == "model rad: version 1 is the champion"
    assert set_champion(first, EASY, "rad") == "model rad: version 1 is the champion"

    second = scored_config(tiny_config, tmp_path, "name=second", "seed=1")
    run_curriculum(second, quiet())
    folder = locate(first.directory) / "stages" / "align" / "evaluation"
    perfect = [
        replace(each, prediction=each.references[0]) for each in iter_answers(folder / ANSWERS)
    ]
    write_answers(folder, perfect)
    no_loss = EASY.model_copy(update={"max_loss": {"all_strict": 0.0}})
    with pytest.raises(GateError, match=r"max_loss\.all_strict=0: -.* whose lower"):
        set_champion(second, no_loss, "rad")
    assert champion(first, "rad") == "1"
    assert set_champion(second, EASY, "rad") == "model rad: version 2 is the champion"
    version = MlflowClient(tracking_uri(second)).get_model_version_by_alias("rad", "champion")
    plan = find_stage(second, None)
    assert version.source == str(plan.export)
    assert version.tags["gate"] == "passed"
    assert version.tags["evaluation"] == str(plan.evaluation)
    assert "min_scores.all_strict=0" in version.tags["gate.checks"]

    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri(second))
    found = find_candidate("models:/rad@champion", template=None, precision="fp32", batch_size=1)
    assert found.name == str(plan.export)
    assert str(find_export("models:/rad/1")) == str(find_stage(first, None).export)


def test_a_stage_without_an_evaluation_cannot_pass(tiny_config: RunConfig, tmp_path: Path) -> None:
    config = scored_config(tiny_config, tmp_path)
    bare = config.stages[0].model_copy(update={"evaluation": None})
    with pytest.raises(ConfigError, match=r"stage=align: has no evaluation; add one"):
        check_candidate(config.model_copy(update={"stages": (bare,)}), None, EASY, "rad")
