"""`llavamed evaluate answer` and `--list` from the command line."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from llavamed.cli.options import console
from llavamed.evaluate.answers import ANSWERS, read_answers
from llavamed.evaluate.benchmarks import BENCHMARKS
from llavamed.storage.location import locate
from tests.support.benchmark_files import vqa_rad
from tests.support.small_models import save_llava_next

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(llavamed: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(console, "width", 200)
    return partial(llavamed, "evaluate")


def test_the_benchmarks_are_listed(run: Run) -> None:
    code, out, _ = run("--list")
    assert code == 0
    assert all(name in out for name in BENCHMARKS)


def test_a_model_by_its_folder_answers_a_benchmark(run: Run, tmp_path: Path) -> None:
    vqa_rad(tmp_path / "data")
    model = save_llava_next(tmp_path / "model")
    words = ["answer", str(model), "--benchmark", "vqa-rad", "--data", str(tmp_path / "data")]
    words += ["--output", str(tmp_path / "out"), "--precision", "fp32", "--max-new-tokens", "4"]
    code, out, err = run(*words, "--control", "noise")
    assert code == 0, err
    assert "Generated now: 6 different answers" in out
    cut_off = "Cut off and wrong: 3 of 3 answers of the model (greedy, at most 4 tokens); allow"
    assert cut_off in out
    assert all(words in out for words in ("2 closed", "strict", "legacy"))
    found = read_answers(locate(str(tmp_path / "out")) / ANSWERS)
    assert list(found) == ["trained", "noise"]
    assert (tmp_path / "out" / "report.html").read_text().count("data:image/") >= 3
    assert (tmp_path / "out" / "scores.json").exists()
    code, out, err = run(*words, "--control", "noise")
    assert "all answers are there, nothing is asked" in err
    assert "Generated now: 0 different answers" in out
    other = save_llava_next(tmp_path / "other")
    (other / "README.md").write_text("Another model.")
    code, _, err = run("answer", str(other), *words[2:])
    sentence = (
        f"holds the answers of {model} to vqa-rad/1; name another folder for those of {other}"
    )
    assert (code, sentence in err) == (2, True)
    assert list(read_answers(locate(str(tmp_path / "out")) / ANSWERS)) == ["trained", "noise"]


def test_one_model_is_named(run: Run, tmp_path: Path) -> None:
    words = ["--benchmark", "vqa-rad", "--data", "data", "--output", str(tmp_path / "out")]
    code, _, err = run("answer", *words)
    assert code == 2
    assert "model=None, endpoint=None: must be one of the two; name a model, or" in err
    code, _, err = run("answer", "model", "--endpoint", "file.yaml", *words)
    assert "model=model, endpoint=file.yaml: must be one of the two" in err
    assert not (tmp_path / "out").exists()
