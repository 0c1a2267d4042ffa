"""Cards say what manifests say, in the form that Hugging Face reads."""

from huggingface_hub import DatasetCard, ModelCard

from llavamed.evaluate.answers import Answer
from llavamed.evaluate.cards import render_data_card, render_model_card
from llavamed.evaluate.measures import RULES
from llavamed.evaluate.scoring import score_answers
from llavamed.storage.manifest import Decontamination, PartFacts
from tests.support.manifests import dataset_manifest, export_manifest, scores_manifest

EVIL = "a | b\n\n# c <script> [x](y)"


def answers(condition, num_right):
    return [
        Answer(
            *(str(number), condition, "?", ("yes",), None, "CLOSED"),
            image=str(number),
            prediction="yes" if number < num_right else "no",
        )
        for number in range(40)
    ]


def model_card(name="rad-7b", **facts):
    given = {"trained": answers("trained", 30), "blank_image": answers("blank_image", 20)}
    known = {
        "dataset": "VQA-RAD",
        "split": "test",
        "num_questions": 40,
        "num_images": 40,
        "rules": RULES,
        "conditions": tuple(given),
        "groups": score_answers(given).groups,
        "failures": {"right": 30, "no_for_yes": 10},
        "overlaps": {"rad": {"samples": 1793, "image": 1793, "pair": 1}},
    }
    export = export_manifest(
        stage="vqa", steps=1234, parts={"projector": PartFacts(num_trained=4_198_400, num_frozen=0)}
    )
    return render_model_card(
        name,
        scores_manifest(**known | facts),
        export,
        training={"rad": dataset_manifest(num_samples=1793, fingerprint="rad0")},
        licences={"rad": {"CC0": 1700, "": 93}},
        initial_weights="org/base-7b",
    )


def test_the_head_of_a_model_card_is_what_the_hub_reads():
    card = ModelCard(model_card())
    data = card.data
    assert (data.pipeline_tag, data.library_name) == ("image-text-to-text", "transformers")
    assert (data.base_model, data.datasets) == ("org/base-7b", ["rad"])
    results = {each.metric_type: each for each in data.eval_results}
    assert results["closed_strict"].metric_value == 75
    assert results["closed_strict"].dataset_name == "VQA-RAD"
    assert RULES["legacy"] in results["closed_legacy"].metric_name


def test_a_model_card_holds_use_limits_licences_counts_scores_and_controls():
    text = model_card()
    for fact in (
        *("## Intended use", "must not be used for diagnosis", "## Limits", "## Out of scope"),
        "| rad | 1,793 | ",
        "CC0 (1,700), not stated (93)",
        "| projector | 4,198,400 | 0 |",
        "1,234 optimizer steps",
        "| trained | closed | 40 | 75.0 [",
        "| blank\\_image | closed | 40 | 50.0 [",
        "| +25.0 [",
        "says no where the reference says yes: 10.",
        "- rad: image 1,793, pair 1 of 1,793 samples",
        *(RULES["strict"], RULES["legacy"]),
    ):
        assert fact in text
    assert "is unknown" in model_card(overlaps=None)


def test_a_data_card_holds_counts_licences_and_what_was_left_out():
    facts = dataset_manifest(
        num_samples=90,
        num_rows=100,
        quarantined={"corrupt_image": 3},
        num_unnamed=2,
        decontaminated=(
            Decontamination(against={"rad-test": "x"}, by=("pair",), max_distance=4, num_removed=7),
        ),
    )
    text = render_data_card("rad", facts, {"CC0": 90})
    assert DatasetCard(text).data.task_categories == ["visual-question-answering"]
    for fact in (
        *("| samples | 90 of 100 rows |", "| licences | CC0 (90) |", "- corrupt\\_image: 3"),
        "- 7 samples that match rad-test by pair",
        "2 samples have no id of their own",
    ):
        assert fact in text


def test_a_data_card_names_a_licence_that_the_hub_knows_where_all_samples_have_it():
    for licences, expected in (
        ({"Apache-2.0": 3}, "apache-2.0"),
        ({"Apache-2.0": 3, "CC0-1.0": 1}, "other"),
        ({"": 3}, "other"),
        ({"of each source": 3}, "other"),
    ):
        card = DatasetCard(render_data_card("rad", dataset_manifest(), licences))
        assert card.data.license == expected


def test_no_name_breaks_a_table_or_becomes_markup():
    text = model_card(EVIL, dataset=EVIL, split=EVIL, overlaps={EVIL: {"samples": 1, "pair": 0}})
    body = text.split("\n---\n", 1)[1]
    assert "<script>" not in body
    assert "\n# c" not in body
    assert "](y)" not in body.replace("\\](y)", "")
    assert ModelCard(text).data.model_name == EVIL
