"""What is finished, and what only looks so."""

from dataclasses import replace

import pytest

from llavamed.evaluate import scores
from llavamed.evaluate.scores import scores_fingerprint
from llavamed.run.curriculum import find_stage
from llavamed.storage.location import locate
from llavamed.storage.manifest import write
from tests.support.manifests import dataset_manifest, export_manifest, scores_manifest

USED = {"test-questions": "t", "questions": "q"}
"""Fingerprints of what the demo's `vqa` is scored with."""


@pytest.mark.parametrize(
    ("trained_on", "there", "is_current"),
    [("a", "a", True), ("a", "b", False), ("a", None, True), (None, "a", False)],
    ids=["same data", "data changed since", "data deleted since", "not trained"],
)
def test_a_stage_is_current_while_its_data_is_what_it_was(
    tiny_config, tmp_path, trained_on, there, is_current
):
    plan = find_stage(tiny_config.model_copy(update={"storage": str(tmp_path)}), "align")
    datasets = tmp_path / "datasets"
    if trained_on is not None:
        write(plan.export, export_manifest(datasets={"captions": trained_on}))
    if there is not None:
        write(locate(str(datasets)) / "captions", dataset_manifest(fingerprint=there))
    assert plan.is_current(str(datasets)) == is_current


@pytest.fixture
def scored(tiny_config, tmp_path):
    """A stage that is trained and scored, and its datasets' folder."""
    plan = find_stage(tiny_config.model_copy(update={"storage": str(tmp_path)}), "vqa")
    datasets = locate(str(tmp_path / "datasets"))
    write(plan.export, export_manifest(fingerprint="e", datasets={"questions": "q"}))
    for name, fingerprint in USED.items():
        write(datasets / name, dataset_manifest(fingerprint=fingerprint))
    wanted = scores_fingerprint(plan.stage.evaluation, "e", USED)
    found = scores_manifest(datasets=USED, fingerprint=wanted)
    write(plan.evaluation, found)
    assert plan.scores(str(datasets)) == found
    assert plan.is_current(str(datasets))
    return plan, datasets


def test_scores_hold_while_a_dataset_is_gone(scored):
    plan, datasets = scored
    (datasets / "test-questions").remove()
    assert plan.scores(str(datasets)) is not None
    assert plan.is_current(str(datasets))


@pytest.mark.parametrize("change", ["model", "settings", "test set", "majority", "scorer"])
def test_scores_of_anything_else_are_not_taken(scored, change, monkeypatch):
    plan, datasets = scored
    if change == "model":
        write(plan.export, export_manifest(fingerprint="f", datasets={"questions": "q"}))
    elif change == "settings":
        longer = plan.stage.evaluation.model_copy(update={"max_new_tokens": 65})
        plan = replace(plan, stage=plan.stage.model_copy(update={"evaluation": longer}))
    elif change == "scorer":
        monkeypatch.setattr(scores, "RULES", {"strict": "strict/0"})
    else:
        name = "test-questions" if change == "test set" else "questions"
        write(datasets / name, dataset_manifest(fingerprint="other"))
    assert plan.scores(str(datasets)) is None
    assert not plan.is_current(str(datasets))
