"""Predictions are compared on the same questions only, in groups, with intervals and tests."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from llavamed.cli.evaluate import app
from llavamed.cli.options import console
from llavamed.errors import ConfigError, DataError
from llavamed.evaluate.compare import align, compare, no_answer_shares
from llavamed.evaluate.scorers import strict
from llavamed.evaluate.scorers.item import Item
from llavamed.evaluate.statistics import holm, mcnemar_test, mean_intervals, sign_flip_test
from llavamed.evaluate.summary import describe_clusters, group_items, summarize

RIGHT, WRONG, NONE = "yes", "no", "It is hard to tell."


def item(id_, prediction=RIGHT, **changes):
    return replace(
        Item(str(id_), "Is it?", prediction, "yes", "CLOSED", image=f"image-{int(id_) // 2}"),
        **changes,
    )


def answers(*predictions, **changes):
    return [item(number, given_, **changes) for number, given_ in enumerate(predictions)]


@given(st.permutations(range(6)))
def test_files_are_put_in_the_order_of_the_first(order):
    first = answers(*[RIGHT] * 6)
    second = answers(*[WRONG] * 6)
    aligned = align({"a": first, "b": [second[place] for place in order]})
    assert aligned == {"a": first, "b": second}


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            answers(*[RIGHT] * 5)[1:3],
            r"b: of the 3 questions of a it lacks 1 \('0'\), and it has none besides; compare",
        ),
        (answers(*[RIGHT] * 8), r"of a it lacks none, and it has 5 \('3', '4', '5', ...\) besides"),
        (
            [*answers(RIGHT, RIGHT), item(2, reference="no")],
            r"id='2': has reference='yes' in a, reference='no' in b; such questions are 1 \('2'\) "
            r"of 3; compare files that answer the same questions",
        ),
        (
            answers(RIGHT, RIGHT, RIGHT, image="other"),
            r"id='0': has image='image-0' in a, image='other' in b; such questions are 3 "
            r"\('0', '1', '2'\) of 3",
        ),
    ],
    ids=["lacking", "foreign", "another reference", "another image"],
)
def test_files_of_different_questions_are_refused(second, message):
    with pytest.raises(DataError, match=message):
        align({"a": answers(RIGHT, RIGHT, RIGHT), "b": second})


def test_a_third_file_is_held_to_the_second_where_the_first_is_silent():
    files = [answers(RIGHT, domain=domain) for domain in ("", "CT", "MRI")]
    with pytest.raises(DataError, match=r"id='0': has domain='CT' in b, domain='MRI' in c"):
        align(dict(zip("abc", files, strict=True)))


def test_what_one_file_leaves_out_is_taken_from_another():
    bare = answers(RIGHT, WRONG, image="", question="")
    full = answers(WRONG, RIGHT, question_type="POS")
    aligned = align({"a": bare, "b": full})
    assert aligned == {"a": answers(RIGHT, WRONG, question_type="POS"), "b": full}


def test_items_of_an_image_are_a_cluster_and_others_stand_alone():
    items = [*answers(*[RIGHT] * 4), item(8, image=""), item(9, image="")]
    [_, everything] = group_items(items)
    assert everything.clusters.tolist() == [0, 0, 1, 1, 2, 3]
    assert describe_clusters(items) == (
        "95 % intervals, clustered by image: 2 images and 2 items without one, each for itself"
    )
    assert describe_clusters(items[:4]) == "95 % intervals, clustered by image: 2 images"


def test_an_image_and_an_item_of_one_name_are_two_clusters():
    items = [item(1, image="2"), item(2, image="")]
    assert group_items(items)[-1].num_clusters == 2


def test_groups_hold_every_item_once_and_all_of_them_at_last():
    items = [*answers(RIGHT, WRONG, question_type="POS"), item(3, question_type="all"), item(4)]
    groups = group_items(items, "question_type")
    assert [group.name for group in groups] == ["without question_type", "POS", "all", "all"]
    assert sorted(np.concatenate([each.positions for each in groups[:-1]])) == [0, 1, 2, 3]
    assert groups[-1].positions.tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match=r"by=domain: no domain in any of 4 items; add it"):
        group_items(items, "domain")


def test_a_summary_is_the_mean_of_each_group():
    items = [item(0, answer_type="OPEN"), item(2), item(4)]
    found = summarize(group_items(items), {"rule": np.array([0.5, 1.0, 0.0])})
    assert [estimate.value for estimate in found["rule"]] == [0.5, 0.5, 0.5]
    assert [group.name for group in group_items(items)] == ["closed", "open", "all"]


def test_a_comparison_holds_the_statistics_of_each_group_adjusted_by_holm():
    rng = np.random.default_rng(0)
    kinds = rng.choice(["POS", "PRES", "ABN"], 90)
    files = [
        [
            item(number, RIGHT if rng.random() < share else WRONG, question_type=kind)
            for number, kind in enumerate(kinds)
        ]
        for share in (0.5, 0.7, 0.6)
    ]
    compared = compare(files, strict.score, "question_type")
    scores = np.array([[strict.score(each) for each in items] for items in files])
    raw = []
    for found in compared:
        part, clusters = scores[:, found.group.positions], found.group.clusters
        assert found.scores == mean_intervals(part, clusters)
        raw += [sign_flip_test(other - part[0], clusters) for other in part[1:]]
        for other, difference in zip(part[1:], found.differences, strict=True):
            assert difference.estimate.value == pytest.approx(other.mean() - part[0].mean())
            assert difference.mcnemar == mcnemar_test(part[0], other)
    assert [found.group.name for found in compared] == ["ABN", "POS", "PRES", "all"]
    adjusted = [each.p_value for found in compared for each in found.differences]
    assert adjusted == [*holm(raw[:6]), *holm(raw[6:])]


def test_the_share_without_an_answer_is_of_closed_questions():
    items = [*answers(RIGHT, WRONG, NONE, ""), item(4, "", answer_type="OPEN", reference="lung")]
    [found] = no_answer_shares([items])
    assert found.value == 0.5
    assert no_answer_shares([items[4:]]) == []


@pytest.mark.parametrize(
    ("prediction", "changes", "is_answered"),
    [
        ("B", {"options": {"A": "CT", "B": "MRI"}, "reference": "A"}, True),
        ("A or B", {"options": {"A": "CT", "B": "MRI"}, "reference": "A"}, False),
        ("no", {}, True),
        ("maybe", {}, False),
        ("right", {"reference": "left"}, True),
        ("The lung.", {"reference": "left"}, False),
        ("Left or right, I cannot tell.", {"reference": "left"}, False),
        ("", {"reference": "lung", "answer_type": "OPEN"}, True),
    ],
)
def test_an_answer_is_a_choice_right_or_wrong(prediction, changes, is_answered):
    asked = item(0, prediction, **changes)
    assert strict.is_answered(asked) is is_answered
    assert is_answered or strict.score(asked) == 0


def write(path, items):
    fields = ("id", "question", "prediction", "reference", "answer_type", "image")
    rows = [{key: getattr(each, key) for key in fields} for each in items]
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return str(path)


def test_the_command_prints_scores_differences_and_draws_them(tmp_path, monkeypatch):
    monkeypatch.setattr(console, "width", 200)
    files = [
        write(tmp_path / f"{name}.jsonl", answers(*given_))
        for name, given_ in {
            "first": [WRONG, RIGHT] * 20,
            "second": [RIGHT] * 38 + [NONE] * 2,
        }.items()
    ]
    plot = tmp_path / "plots" / "comparison.png"
    found = CliRunner().invoke(app, ["compare", *files, "--plot", str(plot)])
    assert found.exit_code == 0
    for expected in (
        *("0.500 [0.500,0.500]", "0.950 [", "+0.450 [+0.3"),
        *("closed without answer", f"A: {files[0]}", f"B: {files[1]}", f"Plot: {plot}"),
        "95 % intervals, clustered by image: 20 images",
    ):
        assert expected in found.output
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_no_interval_of_three_files_is_cut_off_where_lines_are_short(tmp_path, monkeypatch):
    monkeypatch.setattr(console, "width", 80)
    files = [
        write(tmp_path / f"{name}.jsonl", answers(*[WRONG, RIGHT] * 20, answer))
        for name, answer in zip("abc", [WRONG, RIGHT, NONE], strict=True)
    ]
    found = CliRunner().invoke(app, ["compare", *files])
    assert "…" not in found.output
    assert found.output.count("0.488") >= 2  # 20 of 41
    for by in ("organ", "modality"):
        with pytest.raises(DataError, match=f"by={by}: no {by} in any of 41 items; add it"):
            raise CliRunner().invoke(app, ["compare", *files, "--by", by]).exception


def test_each_score_has_the_id_of_its_line(tmp_path):
    line = {"prediction": "yes", "reference": "yes", "answer_type": "CLOSED"}
    rows = [{"id": id_, **line} for id_ in (7, "b")]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    found = CliRunner().invoke(
        app, ["score", str(tmp_path / "a.jsonl"), "--scorer", "strict", "--items"]
    )
    scores = [json.loads(printed) for printed in found.output.splitlines()]
    assert scores == [{"id": 7, "score": 1.0}, {"id": "b", "score": 1.0}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a"], r"files=a: must be 2 to 26 different files; name the others, each once"),
        (["a", "b", "a"], r"files=a, b, a: must be 2 to 26 different files"),
        (["a", "b", "--plot", "x.pdf"], r"plot=x.pdf: must end in .png; name another file"),
        (["a", "b", "--scorer", "x"], r"scorer=x: is not a scorer"),
    ],
)
def test_a_command_that_cannot_be_followed_is_refused_before_anything_is_read(arguments, message):
    found = CliRunner().invoke(app, ["compare", *arguments])
    assert isinstance(found.exception, ConfigError)
    with pytest.raises(ConfigError, match=message):
        raise found.exception
