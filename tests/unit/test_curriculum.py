"""What is finished, and what only looks so."""

import pytest

from llavamed.storage import MANIFEST, locate
from llavamed.train.curriculum import find_stage


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
        (plan.export / MANIFEST).write_json({"datasets": {"captions": trained_on}})
    if there is not None:
        (locate(str(datasets)) / "captions" / MANIFEST).write_json({"fingerprint": there})
    assert plan.is_current(str(datasets)) == is_current
