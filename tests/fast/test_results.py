"""Answers are found by the run, export, evaluation or file that they belong to."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from llavamed.cli.main import app
from llavamed.cli.options import console
from llavamed.errors import DataError
from llavamed.evaluate.answers import ANSWERS, Answer
from llavamed.evaluate.results import read_results
from llavamed.evaluate.scorers import strict
from llavamed.evaluate.scorers.item import score_best
from llavamed.storage.location import locate
from llavamed.storage.manifest import write
from tests.support.answer_files import write_answers
from tests.support.manifests import run_summary, stage_summary


def answers(prediction="yes"):
    trained = [
        Answer(
            *(str(number), "trained", f"Is it {number}?", ("yes", "present"), None, "CLOSED"),
            image=f"image {number}",
            prediction=prediction,
        )
        for number in range(4)
    ]
    return [*trained, *(replace(each, condition="blank_image", prediction="") for each in trained)]


@pytest.fixture
def run(tmp_path):
    """A run of two stages, each with an export and an evaluation."""
    folder = tmp_path / "run"
    for stage, said in (("instruct", "no"), ("vqa", "yes")):
        write_answers(locate(str(folder / "stages" / stage / "evaluation")), answers(said))
        (folder / "stages" / stage / "export").mkdir()
        (folder / "stages" / stage / "export" / "config.json").write_text("{}")
    stages = tuple(stage_summary(name=name) for name in ("instruct", "vqa"))
    write(locate(str(folder)), run_summary(stages=stages))
    return folder


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("", "yes"),
        ("stages/instruct", "no"),
        ("stages/instruct/export", "no"),
        ("stages/instruct/export/", "no"),
        ("stages/vqa/evaluation", "yes"),
        (f"stages/vqa/evaluation/{ANSWERS}", "yes"),
    ],
)
def test_a_folder_stands_for_the_answers_to_the_questions_as_they_are(run, path, said):
    found = read_results(f"{run}/{path}" if path else str(run))
    assert [item.prediction for item in found] == [said] * 4
    assert {item.image for item in found} == {f"image {number}" for number in range(4)}


def test_an_item_with_several_references_scores_by_the_best(tmp_path):
    write_answers(locate(str(tmp_path)), answers("It is present"))
    [item, *_] = read_results(str(tmp_path))
    assert item.other_references == ("present",)
    assert score_best(strict.score, item) == 1
    assert score_best(strict.score, replace(item, prediction="no")) == 0


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"has no answers\.parquet in it, in its"):
        read_results(str(tmp_path))


def test_a_folder_without_answers_and_a_file_that_is_not_there_are_refused(run):
    (run / "stages" / "vqa" / "evaluation" / ANSWERS).unlink()
    (run / "stages" / "instruct" / "evaluation" / ANSWERS).unlink()
    with pytest.raises(DataError, match=r"run: has no answers\.parquet in it, in its"):
        read_results(str(run))
    with pytest.raises(DataError, match=r"absent\.jsonl: no such file; check the path"):
        read_results(str(run / "absent.jsonl"))
    with pytest.raises(DataError, match=r"absent\.parquet: no such file; check the path"):
        read_results(str(run / "absent.parquet"))


def test_a_run_an_export_and_a_file_are_compared(run, tmp_path, monkeypatch):
    monkeypatch.setattr(console, "width", 200)
    predictions = tmp_path / "theirs.jsonl"
    rows = [
        {"id": str(number), "prediction": "no", "reference": "yes", "answer_type": "CLOSED"}
        for number in range(4)
    ]
    predictions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plot = tmp_path / "plot.png"
    files = [str(run), str(run / "stages" / "instruct" / "export"), str(predictions)]
    found = CliRunner().invoke(app, ["compare", *files, "--plot", str(plot)])
    assert found.exit_code == 0, found.output
    for text in ("-1.000 [", "McNemar", f"C: {predictions}", "4 images"):
        assert text in found.output
    assert plot.read_bytes().startswith(b"\x89PNG")
    scored = CliRunner().invoke(app, ["evaluate", "score", str(run), "--scorer", "strict"])
    assert "1.000 [" in scored.output
