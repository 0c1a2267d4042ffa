"""Answers are generated once, in parts that outlive a kill, and shown as each condition says."""

import gc
import signal
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavamed.errors import DataError
from llavamed.evaluate.answers import ANSWERS, iter_answers, read_answers
from llavamed.evaluate.conditions import CONDITIONS, MAJORITY, MEAN_COLOUR, Majority
from llavamed.evaluate.generate import AnswerCounts, Task, add_up, answer_here, answer_key, collect
from llavamed.storage.location import locate
from tests.support.asked_questions import CHUNK, Made, NotingCandidate, asked, picture, question
from tests.support.waiting import wait_until

NUMBER = 25


def task_of(tmp_path: Path, *conditions: str, **facts: Any) -> Task:
    number = facts.pop("number", NUMBER)
    max_new_tokens = facts.pop("max_new_tokens", 4)
    candidate = NotingCandidate(str(tmp_path / "log"), **facts)
    names = conditions or ("trained",)
    return Task(
        Made(number), dict.fromkeys(names, candidate), max_new_tokens, str(tmp_path / "out")
    )


def run(task: Task) -> AnswerCounts:
    return add_up(answer_here(task), lambda _: None)


def test_every_condition_answers_every_question_in_order(tmp_path: Path) -> None:
    task = task_of(tmp_path, *CONDITIONS)
    done: list[int] = []
    count = add_up(answer_here(task), done.append)
    assert (count.total, count.missing) == (NUMBER * len(CONDITIONS), 0)
    assert done[-1] == count.total
    assert len(done) == 3 * len(CONDITIONS)
    folder = locate(task.folder)
    collect(task, folder, Majority.of(task.questions))
    found = read_answers(folder / ANSWERS)
    assert list(found) == [*CONDITIONS, MAJORITY]
    for rows in found.values():
        assert [each.id for each in rows] == [f"q{number}" for number in range(NUMBER)]
    for trained, *controls in zip(*found.values(), strict=True):
        assert trained.shown_image == trained.image != ""
        assert {each.image for each in controls} == {trained.image}
        assert trained.image not in {each.shown_image for each in controls}
    assert {each.prediction for each in found[MAJORITY]} == {"yes"}
    assert {each.shown_image for each in found["question_only"]} == {""}


def test_what_a_model_is_shown(tmp_path: Path) -> None:
    questions = Made(CHUNK).read(0)
    shown = {name: kind.show(questions, []) for name, kind in CONDITIONS.items()}
    assert shown["trained"] == questions
    for number, one in enumerate(questions):
        blank, noise, other, alone = (
            shown[name][number] for name in ("blank_image", "noise", "shuffled", "question_only")
        )
        assert (blank.pictures[0].pixels == MEAN_COLOUR).all()
        assert noise.pictures[0].pixels.shape == one.pictures[0].pixels.shape
        assert np.ptp(noise.pictures[0].pixels) > 100
        assert other.image != one.image
        lender = next(each for each in questions if each.image == other.image)
        assert lender.modality == one.modality
        assert (alone.pictures, alone.turns[-1].text) == ((), one.question)
    assert [each.image for each in CONDITIONS["noise"].show(questions, [])] == [
        each.image for each in shown["noise"]
    ]


def test_pictures_are_borrowed_from_the_next_questions_where_all_are_about_one() -> None:
    same = [replace(question(number), pictures=(picture(0),)) for number in range(4)]
    shuffled = CONDITIONS["shuffled"]
    [first, *_] = shuffled.show(same, [question(9)])
    assert first.image == question(9).image
    with pytest.raises(DataError, match="condition=shuffled: no other picture for question 'q0'"):
        shuffled.show(same, same)
    [bare] = shuffled.show([replace(question(0), pictures=())], same)
    assert bare.pictures == ()


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    assert run(task) == AnswerCounts(NUMBER, NUMBER, 0)
    assert run(task) == AnswerCounts(NUMBER, 0, 0)
    assert asked(tmp_path / "log") == [f"q{number}" for number in range(NUMBER)]
    # Questions without a picture that read alike are one question.
    alone = task_of(tmp_path, "question_only")
    assert run(alone).generated == NUMBER


@pytest.mark.parametrize(
    "change", [{"fingerprint": "b"}, {"template": "u"}, {"max_new_tokens": 5}], ids=str
)
def test_what_decides_an_answer_asks_again(change: dict[str, Any], tmp_path: Path) -> None:
    run(task_of(tmp_path))
    assert run(task_of(tmp_path, **change)).generated == NUMBER


TURNS = st.text(min_size=1, max_size=5)


@given(first=TURNS, second=TURNS, number=st.integers(0, 3), other=st.integers(0, 3))
def test_keys_differ_exactly_where_prompt_or_picture_do(
    first: str, second: str, number: int, other: int
) -> None:
    candidate = NotingCandidate("")
    one = question(0, question=first, pictures=(picture(number),))
    two = question(1, question=second, pictures=(picture(other),))
    is_same = (first, number) == (second, other)
    assert (answer_key(candidate, one, 4) == answer_key(candidate, two, 4)) == is_same


def test_new_questions_are_asked_alone(tmp_path: Path) -> None:
    run(task_of(tmp_path, number=CHUNK + 2))
    (tmp_path / "log").unlink()
    assert run(task_of(tmp_path, number=CHUNK + 5)).generated == 3
    assert asked(tmp_path / "log") == ["q12", "q13", "q14"]


def test_a_damaged_part_is_made_again(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    run(task)
    task.place("trained", 1).write_bytes(b"half a file")
    assert run(task) == AnswerCounts(NUMBER, CHUNK, 0)


def test_a_question_without_an_answer_is_asked_again_and_never_collected(tmp_path: Path) -> None:
    count = run(task_of(tmp_path, fails=frozenset({"q3", "q12"})))
    assert count == AnswerCounts(NUMBER - 2, NUMBER - 2, 2)
    (tmp_path / "log").unlink()
    task = task_of(tmp_path)
    assert run(task) == AnswerCounts(NUMBER, 2, 0)
    assert asked(tmp_path / "log") == ["q3", "q12"]


def test_a_part_that_is_gone_is_no_answer(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    run(task)
    task.place("trained", 1).remove()
    with pytest.raises(DataError, match=r"trained/000001\.parquet: no such part; start again"):
        collect(task, locate(task.folder))
    assert not (locate(task.folder) / ANSWERS).exists()


def test_a_killed_process_leaves_only_the_missing_answers_to_be_asked(tmp_path: Path) -> None:
    number = 100
    log, folder = tmp_path / "log", tmp_path / "out"
    command = [sys.executable, "-m", "tests.support.asked_questions", str(log), str(folder)]
    process = subprocess.Popen([*command, str(number)])
    wait_until(lambda: len(asked(log)) >= 0.6 * number + 3)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = asked(log)
    assert len(before) < number
    log.unlink()
    task = task_of(tmp_path, number=number)
    kept = {
        answer.id
        for part in task.parts
        if task.place(*part).exists()
        for answer in iter_answers(task.place(*part))
    }
    assert len(before) - len(kept) < CHUNK, "more is lost than the chunk that was being answered"
    count = run(task)
    assert count.total == number
    assert asked(log) == [f"q{each}" for each in range(number) if f"q{each}" not in kept]


def test_memory_does_not_grow_with_the_questions(tmp_path: Path) -> None:
    def peak(number: int) -> int:
        task = task_of(tmp_path / str(number), number=number)
        (tmp_path / str(number)).mkdir()
        gc.collect()
        tracemalloc.start()
        run(task)
        collect(task, locate(task.folder))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(30)  # loads what is loaded once
    # A peak is a fifth of a megabyte and moves by a quarter with what else the process holds:
    # the rule is therefore in bytes a question, over many questions. 7 were measured.
    assert (peak(9000) - peak(1500)) / 7500 < 25


def test_the_majority_answer_is_one_of_each_kind() -> None:
    options = {"A": "x", "B": "y"}
    questions = [
        *(question(number, references=("no",)) for number in range(3)),
        question(4, references=("yes",)),
        question(5, references=("B",), options=options),
        question(6, references=("CT",), answer_type="OPEN"),
        question(7, references=("CT",), answer_type="OPEN"),
        question(8, references=("MR",), answer_type="OPEN"),
    ]
    majority = Majority(questions)
    assert [majority.answer(each) for each in questions] == ["no"] * 4 + ["B"] + ["CT"] * 3
    assert Majority(questions[:1]).answer(questions[-1]) == ""
