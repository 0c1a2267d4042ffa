"""A policy decides by bounds, not by means, and says which rule a model breaks by how much."""

from dataclasses import replace

import pytest
from typer.testing import CliRunner

from llavamed.cli.evaluate import app
from llavamed.config.gate import GatePolicy
from llavamed.errors import ConfigError, GateError
from llavamed.evaluate.answers import Answer
from llavamed.evaluate.gates import Evidence, check_policy, require
from llavamed.evaluate.scoring import score_answers
from tests.support.manifests import export_manifest, scores_manifest

NUM = 60


def answers(num_right, condition="trained"):
    """Closed questions of as many images, of which the first are right, and one without choice."""
    return [
        Answer(
            *(str(number), condition, f"Is there a mass {number}?", ("yes",), None, "CLOSED"),
            image=f"image {number}",
            prediction="yes" if number < num_right else "no",
        )
        for number in range(NUM)
    ]


def evidence(num_right=50, num_blank=20, export="export0", licences=None, **facts):
    given = {"trained": answers(num_right), "blank_image": answers(num_blank, "blank_image")}
    scores = scores_manifest(
        conditions=tuple(given),
        groups=score_answers(given).groups,
        model="s3://runs/rad/export",
        model_fingerprint="export0",
        **{"overlaps": {"rad": {"samples": 1000, "image": 10, "pair": 0}}} | facts,
    )
    manifest = export_manifest(fingerprint=export) if export else None
    return Evidence(scores, given["trained"], manifest, licences or {"CC0": {"rad": 1000}})


def checked(policy, model=None, champion=None):
    return check_policy(GatePolicy.model_validate(policy), model or evidence(), champion)


def verdicts(*args):
    return {check.rule: check.is_met for check in checked(*args)}


def test_a_score_must_reach_the_rule_with_its_lower_bound():
    [check, _] = checked({"min_scores": {"closed_strict": 0.8}})
    assert not check.is_met, "the mean is 0.833, which is not enough"
    assert check.found.startswith("0.833 [0.7")
    assert "whose lower bound is 0.0" in check.found
    assert verdicts({"min_scores": {"closed_strict": 0.7}})["min_scores.closed_strict=0.7"]


def test_grounding_must_reach_the_rule_with_its_lower_bound():
    assert verdicts({"min_grounding": {"closed_strict": 0.3}})["min_grounding.closed_strict=0.3"]
    blind = evidence(num_blank=49)
    [check, _] = checked({"min_grounding": {"closed_strict": 0.0001}}, blind)
    assert not check.is_met
    assert "too low" in check.found


def test_answers_without_a_choice_are_limited_at_the_upper_bound():
    [check, _] = checked({"max_no_answer": 0.01})
    assert not check.is_met
    assert "0.000 [0.000, 0.060], whose upper bound is 0.050 too high" in check.found
    assert verdicts({"max_no_answer": 0.07})["max_no_answer=0.07"]


@pytest.mark.parametrize(
    ("overlaps", "most", "is_met", "found"),
    [
        (None, 1, False, "a training set of this model is unknown"),
        ({}, 0, True, "no training set"),
        ({"rad": {"samples": 1000, "pair": 3}}, 0.003, True, "3 of 1,000 samples of rad (0.300%)"),
        ({"rad": {"samples": 1000, "pair": 3}}, 0, False, "which is 0.300% too many"),
        (
            {"rad": {"samples": 1000, "pair": 3}, "slake": {"samples": 100, "pair": 3}},
            0.01,
            False,
            "3 of 100 samples of slake (3.000%), which is 2.000% too many",
        ),
    ],
)
def test_contamination_is_judged_by_the_worst_training_set(overlaps, most, is_met, found):
    [check, _] = checked({"max_overlap": {"pair": most}}, evidence(overlaps=overlaps))
    assert check.is_met is is_met
    assert found in check.found


@pytest.mark.parametrize(
    ("export", "is_met", "found"),
    [
        ("export0", True, "loaded back, logits differ by"),
        ("other", False, "the export is other, and export0 was scored"),
        (None, False, "s3://runs/rad/export is not a complete export of ours"),
    ],
)
def test_only_the_export_that_was_scored_and_compared_passes(export, is_met, found):
    [check] = checked({}, evidence(export=export))
    assert (check.rule, check.is_met) == ("export_verified", is_met)
    assert found in check.found
    assert checked({"export_verified": False}, evidence(export=export)) == []


def test_every_sample_needs_an_allowed_licence():
    model = evidence(licences={"CC0": {"rad": 10}, "": {"rad": 2}, "CC BY-NC": {"pmc": 5}})
    [_, check] = checked({"licences": ["CC0"]}, model)
    assert not check.is_met
    assert check.found == "2 samples of rad have no licence; 5 samples of pmc have CC BY-NC"
    [_, check] = checked({"licences": ["CC0", "", "CC BY-NC"]}, model)
    assert (check.is_met, check.found) == (True, "CC BY-NC, CC0, none")


def test_a_model_may_not_fall_below_the_champion_at_the_lower_bound():
    policy = {"max_loss": {"closed_strict": 0.05}, "export_verified": False}
    [check] = checked(policy)
    assert (check.is_met, check.found) == (True, "there is no champion yet")
    [check] = checked(policy, evidence(50), answers(50)[::-1])
    assert (check.is_met, check.found) == (True, "+0.000 [-0.032, +0.032] to the champion")
    [check] = checked(policy, evidence(48), answers(50))
    assert not check.is_met, "the mean of -0.033 is not below, its bound is"
    assert check.found.startswith("-0.033 [-0.")
    [check] = checked(policy, evidence(50), answers(48))
    assert check.is_met


@pytest.mark.parametrize(
    "champion",
    [
        [],
        answers(50)[1:],
        [replace(answers(50)[0], question="Another?"), *answers(50)[1:]],
        [replace(answers(50)[0], references=("no",)), *answers(50)[1:]],
        [*answers(50), replace(answers(50)[0], id="more")],
    ],
    ids=["none", "fewer", "another question", "another reference", "more"],
)
def test_a_champion_of_other_questions_is_no_comparison(champion):
    [check] = checked({"max_loss": {"all_strict": 1}, "export_verified": False}, None, champion)
    assert not check.is_met
    assert "evaluate the champion on the same questions" in check.found


def test_a_refusal_names_every_broken_rule_and_by_how_much():
    policy = {"min_scores": {"closed_strict": 0.9}, "max_overlap": {"image": 0, "pair": 0}}
    match = (
        r"model=rad: breaks 2 of 4 rules of the policy: min_scores\.closed_strict=0\.9: 0\.833 .* "
        r"too low; max_overlap\.image=0: 10 of 1,000 .* too many; the champion stays"
    )
    with pytest.raises(GateError, match=match) as refusal:
        require(checked(policy), "rad")
    assert refusal.value.exit_code == 3
    require(checked({}), "rad")


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (
            {"min_scores": {"open_strict": 0.5}},
            r"min_scores\.open_strict: the evaluation has no such score; it has closed_legacy, ",
        ),
        (
            {"min_grounding": {"open_strict": 0.5}},
            r"min_grounding\.open_strict: .* it has a gain over blank_image of it, set evaluation",
        ),
        ({"min_scores": {"strict": 0.5}}, r"min_scores\.strict: the evaluation has no such score"),
        ({"max_loss": {"closed_f1": 0}}, r"max_loss\.closed_f1: there is no such measure; use one"),
        ({"max_loss": {"open_strict": 0}}, r"max_loss\.open_strict: there is no open question"),
    ],
)
def test_a_rule_about_what_was_not_measured_is_an_error(policy, message):
    with pytest.raises(ConfigError, match=message):
        checked(policy, None, answers(50))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("min_score: {}", r"min_score: unknown key; did you mean 'min_scores'\?"),
        ("min_scores: {closed_strict: 70}", r"min_scores\.closed_strict=70: .*less than or equal"),
        ("max_overlap: {images: 0}", r"max_overlap\.images: .*'image', 'question'"),
    ],
)
def test_the_policy_is_read_like_a_config(tmp_path, text, message):
    (tmp_path / "policy.yaml").write_text(text)
    found = CliRunner().invoke(app, ["gate", "--policy", str(tmp_path / "policy.yaml")])
    assert isinstance(found.exception, ConfigError)
    with pytest.raises(ConfigError, match=message):
        raise found.exception
