"""Decide whether the model of a stage becomes the champion, and record it in MLflow."""

import json

from llavamed.config.gate import GatePolicy
from llavamed.config.run import RunConfig
from llavamed.errors import ConfigError
from llavamed.evaluate.answers import ANSWERS, Answer, read_answers
from llavamed.evaluate.gates import Evidence, RuleResult, check_policy, require
from llavamed.run.cards import count_licences, training_sets
from llavamed.run.curriculum import StagePlan, find_stage, scores_now
from llavamed.run.tracking import Tracker
from llavamed.storage.fingerprint import fingerprint
from llavamed.storage.location import Location, locate

_EVALUATION = "evaluation"
"""Tag of a model version: the URI of the folder with its answers and scores."""


def check_candidate(
    config: RunConfig, stage: str | None, policy: GatePolicy, name: str
) -> tuple[list[RuleResult], StagePlan, Tracker]:
    """Check a stage's model against a policy; change nothing.

    Args:
        stage: Name of the stage, None for the last one.
        name: Name of the registered model, with whose champion the model is compared.

    Raises:
        ConfigError: The stage has no evaluation, or the policy names a score that it lacks.
        DataError: The stage is not scored with what the config says now.
        TrackingError: MLflow does not answer.
    """
    plan = find_stage(config, stage)
    if plan.stage.evaluation is None:
        raise ConfigError(f"stage={plan.stage.name}: has no evaluation; add one to its settings")
    scores = scores_now(config, plan)
    tracker = Tracker(config)
    model = Evidence(
        scores=scores,
        answers=_answers(plan.evaluation),
        export=plan.result(),
        licences=_licences(config, plan) if policy.licences is not None else {},
    )
    before = tracker.champion(name)
    champion = None
    if before is not None and before.get("fingerprint") != scores.model_fingerprint:
        champion = _answers(locate(before[_EVALUATION])) if _EVALUATION in before else []
    return check_policy(policy, model, champion), plan, tracker


def make_champion(
    checks: list[RuleResult], plan: StagePlan, tracker: Tracker, policy: GatePolicy, name: str
) -> str:
    """Make a checked model the champion, and return a sentence about it.

    Raises:
        GateError: It breaks a rule; the champion stays.
        TrackingError: MLflow refuses.
    """
    require(checks, name)
    result = plan.result()
    assert result is not None, "what was scored is complete"
    facts = {
        _EVALUATION: str(plan.evaluation),
        "gate": "passed",
        "gate.policy": fingerprint(policy.model_dump(mode="json")),
        "gate.checks": json.dumps({check.rule: check.found for check in checks})[:5000],
    }
    return tracker.set_champion(name, str(plan.export), result, facts)


def _answers(folder: Location) -> list[Answer]:
    """Return the answers to the questions as they are."""
    return next(iter(read_answers(folder / ANSWERS).values()))


def _licences(config: RunConfig, plan: StagePlan) -> dict[str, dict[str, int]]:
    """Count the samples that a model was trained on, in all its stages, by licence and dataset."""
    counts: dict[str, dict[str, int]] = {}
    for name, dataset in training_sets(config, plan).items():
        for licence, count in count_licences(dataset).items():
            counts.setdefault(licence, {})[name] = count
    return counts
