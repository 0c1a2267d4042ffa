"""Dialogues from a local endpoint with the protocol's faults: none lost, none paid for twice."""

import json
import re
from dataclasses import replace

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from llavamed.cli.corpus import app
from llavamed.config.sources import Parquet
from llavamed.corpus.dialogues.generate import Plan, check_cost
from llavamed.corpus.dialogues.job import DialogueJob
from llavamed.corpus.dialogues.prompt import load_prompt
from llavamed.corpus.dialogues.table import DIALOGUE_SCHEMA
from llavamed.corpus.figures import write_figures
from llavamed.corpus.pmc.plan import HarvestManifest
from llavamed.data.record import check_record
from llavamed.data.sources import open_source
from llavamed.errors import ConfigError, DataError, EndpointError
from llavamed.llm.answer import AnswerCache
from llavamed.llm.cost import CostEstimate
from llavamed.storage.location import locate
from llavamed.storage.manifest import write
from tests.conftest import CONFIGS
from tests.support.chat_endpoint import MAY_PASS, chat_endpoint
from tests.support.corpus_figures import corpus_config, selected

PRICES = "{input: 1, output: 1}"
NO_ARTICLE = frozenset()


@pytest.fixture
def endpoint():
    with chat_endpoint() as there:
        there.say = say
        yield there


def number_of(body):
    """The number that stands in the caption of the figure that is asked about."""
    asked = body["messages"][-1]["content"]
    text = asked if isinstance(asked, str) else asked[-1]["text"]
    return int(re.findall(r" (\d+) ", text.splitlines()[0])[0])


def dialogue(*texts):
    speakers = ("user", "assistant")
    turns = [{"speaker": speakers[n % 2], "text": text} for n, text in enumerate(texts)]
    return json.dumps({"turns": turns})


def say(body):
    if "Scores" in json.dumps(body.get("response_format", "")):
        return {"content": '{"grounded": 5, "visible": 4}'}
    words = " ".join(f"finding{chr(97 + number_of(body) % 26)}{n}" for n in "abcdefgh")
    good = ("What does this image show?", f"It shows {words}.")
    return {"content": dialogue(*good, "Is there anything else?", "I cannot tell.")}


def corpus(tmp_path, endpoint, *overrides, count=20):
    per_file = "corpus.dialogues.dialogues_per_file=8"
    config = corpus_config(tmp_path, endpoint, per_file, *overrides)
    step = locate(config.corpus_directory) / "select"
    figures = selected(count)
    figures[1] = figures[1].refused("duplicate", "of another")
    for number in range(2):
        write_figures(step / f"{number:05d}", figures[number::2], "")
    return config


def run(config):
    job = DialogueJob(config, NO_ARTICLE)
    return job.run(job.plan())


def rows(config, kind="dialogues"):
    folder = locate(config.corpus_directory) / kind
    names = [name for name in folder.children() if name.endswith(".parquet")]
    return [
        row
        for name in names
        for row in (folder / name).read_table().to_pylist(maps_as_pydicts="strict")
    ]


def test_dialogues_say_where_they_are_from_and_become_samples(tmp_path, endpoint):
    config = corpus(tmp_path, endpoint, f"corpus.dialogues.endpoint.prices={PRICES}")
    manifest = run(config)
    assert (manifest.num_figures, manifest.num_dialogues, manifest.num_exchanges) == (19, 19, 19)
    assert manifest.outcomes == {"answered": 19}
    assert manifest.findings == {"refusal": 19}
    assert manifest.cost == pytest.approx(19 * 12 / 1e6)
    assert sum(manifest.modalities.values()) == 19
    found = rows(config)
    assert list(found[0]) == DIALOGUE_SCHEMA.names
    for row in found:
        assert [turn["speaker"] for turn in row["turns"]] == ["user", "assistant"] * 2
        assert row["prompt_hash"] == load_prompt(None).hash
        assert row["generator"] == "writer"
        assert row["answered_by"] == "writer-2026"
        kept = locate(config.corpus_directory) / "answers" / row["request_hash"][:2]
        raw = (kept / f"{row['request_hash']}.json").read_json()
        assert raw["completion"]["id"] == row["response_id"]
    source = open_source(
        Parquet(
            source="parquet",
            path=f"{config.corpus_directory}/samples/instruct-*.parquet",
            image_folder=config.corpus_directory,
        )
    )
    records = [source.parse(row) for row in source.rows()]
    assert {record.id for record in records} == {row["figure_id"] for row in found}
    for record in records:
        check_record(record)
        assert len(record.turns) == 2
        assert record.images[0]
        assert record.licence == "CC BY"
    places = {record.turns[0].text.startswith("<image>") for record in records}
    assert places == {True, False}


def test_faults_are_tried_again_and_each_figure_gets_its_own_answer(tmp_path, endpoint):
    config = corpus(tmp_path, endpoint, "corpus.dialogues.endpoint.timeout_seconds=0.5")
    endpoint.fail(*(fault for fault in MAY_PASS if fault != "hang"))
    manifest = run(config)
    assert manifest.outcomes == {"answered": 19}
    for row in rows(config):
        mark = chr(97 + (int(row["pmcid"][3:]) - 1) % 26)
        assert f"finding{mark}" in row["exchanges"][0]["answer"]


def test_what_fails_for_good_is_a_row_with_its_reason(tmp_path, endpoint):
    kinds = {
        0: {"content": "no JSON at all"},
        2: {"refusal": "I will not."},
        3: {"content": "{", "finish_reason": "length"},
        4: {"content": dialogue("Is it the liver?")},
    }
    endpoint.say = lambda body: kinds.get(number_of_any(body)) or say(body)

    def number_of_any(body):
        # The request for a repair ends with a complaint; the figure stands before it.
        texts = [turn["content"] for turn in body["messages"] if turn["role"] == "user"]
        text = texts[-1] if texts[-1].startswith("Notes") else texts[-2]
        return int(re.findall(r" (\d+) ", text.splitlines()[0])[0])

    config = corpus(tmp_path, endpoint, "corpus.dialogues.endpoint.max_in_flight=1")
    manifest = run(config)
    assert manifest.outcomes == {"answered": 16, "cut_off": 1, "malformed": 1, "refused": 1}
    assert manifest.findings == {"refusal": 15, "turn_order": 1}
    assert (manifest.num_figures, manifest.num_dialogues) == (19, 15)
    assert {row["outcome"] for row in rows(config) if not row["turns"]} == {
        "cut_off",
        "malformed",
        "refused",
    }


def test_a_stopped_run_goes_on_and_pays_for_no_answer_twice(tmp_path, endpoint):
    config = corpus(tmp_path, endpoint)
    endpoint.fail(*[None] * 7, "402", times=1)
    with pytest.raises(EndpointError, match="answers 402"):
        run(config)
    run(config)
    assert run(config).outcomes == {"answered": 19}
    assert sorted(endpoint.answered.values()) == [1] * 19


def test_other_rules_judge_the_same_answers_for_nothing(tmp_path, endpoint):
    config = corpus(tmp_path, endpoint, "corpus.dialogues.num_dialogues=10")
    first = run(config)
    asked = len(endpoint.bodies)
    rules = tmp_path / "rules.yaml"
    kept = {"name": "any", "kind": "count", "drops": "dialogue", "at_most": 8}
    rules.write_text(yaml.safe_dump({"version": 2, "rules": [kept]}))
    changed = load_config_with(config, f"corpus.dialogues.filters={rules}")
    second = DialogueJob(changed, NO_ARTICLE).judge_again()
    assert len(endpoint.bodies) == asked == 10
    assert (first.num_exchanges, second.num_exchanges) == (10, 20)
    assert first.filters_hash != second.filters_hash
    assert run(changed) == second
    assert len(endpoint.bodies) == asked
    assert len(rows(config, "samples")) == 10


def test_there_is_nothing_to_judge_before_a_dialogue_is_written(tmp_path, endpoint):
    job = DialogueJob(corpus_config(tmp_path, endpoint), NO_ARTICLE)
    with pytest.raises(DataError, match=r"dialogues: no dialogue was written; run `llavamed corp"):
        job.judge_again()


@pytest.mark.parametrize("other", [["--estimate"], ["--read-batch", "x"], ["--write-batch", "x"]])
def test_judging_alone_takes_no_batch(other):
    with pytest.raises(ConfigError, match=r"^--judge-only: filters what was written before, and"):
        CliRunner().invoke(app, ["dialogues", "--judge-only", *other], catch_exceptions=False)


def test_answers_about_an_article_that_left_the_corpus_are_removed(tmp_path, endpoint):
    checker = f"corpus.dialogues.checker={{url: '{endpoint.url}', model: critic}}"
    config = corpus(tmp_path, endpoint, checker, count=6)
    here = locate(config.corpus_directory)
    run(config)
    told = rows(config)
    asked = len(endpoint.bodies)
    # Without a harvest nothing is known to have gone.
    assert DialogueJob(config, NO_ARTICLE).forget() == 0
    for number in range(2):
        left = [each for each in selected(6)[number::2] if each.pmcid != "PMC3"]
        write_figures(here / "harvest" / f"{number:05d}", left, "")
        # The articles that a harvest under way has not come to have not gone.
        assert DialogueJob(config, NO_ARTICLE).forget() == 0
    finish_harvest(here / "harvest")
    gone = {
        row[key]
        for row in told
        for key in ("request_hash", "checker_hash")
        if row["pmcid"] == "PMC3"
    }
    before = AnswerCache(str(here / "answers")).keys()
    job = DialogueJob(config, NO_ARTICLE)
    assert (len(gone), job.forget(), job.forget()) == (2, 2, 0)
    assert AnswerCache(str(here / "answers")).keys() == before - gone
    assert job.judge_again().num_figures == len(told) - 1
    assert "PMC3" not in {row["pmcid"] for row in rows(config)}
    assert len(endpoint.bodies) == asked


def finish_harvest(folder):
    numbers = dict.fromkeys(
        ("num_articles", "num_kept", "num_figures", "num_kept_figures", "num_removed"), 0
    )
    made = HarvestManifest(inventory="listing", reasons={}, refused={}, counts={}, **numbers)
    write(folder, made)


def load_config_with(config, override):
    from llavamed.config.load import override_config

    return override_config(config, [override])


def test_a_model_that_repeats_an_example_is_found(tmp_path, endpoint):
    example = load_prompt(None).examples[0].written().model_dump_json()
    endpoint.say = lambda body: {"content": example}
    config = corpus(tmp_path, endpoint, count=3)
    manifest = run(config)
    assert manifest.num_dialogues == 0
    assert manifest.findings["near_duplicate"] == 2
    found = [each["found"] for row in rows(config) for each in row["findings"]]
    assert "example 0" in found


def test_fewer_dialogues_leave_no_files_behind(tmp_path, endpoint):
    config = corpus(tmp_path, endpoint)
    run(config)
    assert len(rows(config)) == 19
    run(load_config_with(config, "corpus.dialogues.num_dialogues=5"))
    assert {row["modality"] for row in rows(config)} == {
        "chest_xray",
        "ct_scan",
        "gross",
        "histology",
        "mri",
    }
    assert len(rows(config)) == len(rows(config, "samples")) == 5


def test_a_checker_scores_each_dialogue_once(tmp_path, endpoint):
    checker = f"corpus.dialogues.checker={{url: '{endpoint.url}', model: judge, prices: {PRICES}}}"
    config = corpus(tmp_path, endpoint, checker)
    manifest = run(config)
    assert manifest.checker == "judge"
    found = rows(config)
    assert all(row["scores"] == {"grounded": 5.0, "visible": 4.0} for row in found)
    assert all(row["checker_cost"] > 0 for row in found)
    assert run(config) == manifest
    assert sorted(endpoint.answered.values()) == [1] * 38


def test_the_estimate_comes_first_and_the_budget_stops_before_the_first_call(tmp_path, endpoint):
    limits = ["corpus.dialogues.endpoint.max_cost=0.0001"]
    config = corpus(tmp_path, endpoint, f"corpus.dialogues.endpoint.prices={PRICES}", *limits)
    job = DialogueJob(config, NO_ARTICLE)
    plan = job.plan()
    assert (plan.num_figures, plan.num_answered, plan.writing.num_requests) == (19, 0, 19)
    with pytest.raises(ConfigError, match=r"max_cost=0.0001: 19 requests may cost .*num_dialogues"):
        job.run(plan)
    assert endpoint.bodies == []
    run(load_config_with(config, "corpus.dialogues.endpoint.max_cost=null"))
    assert DialogueJob(config, NO_ARTICLE).plan().num_answered == 19
    assert run(config).num_figures == 19


def test_a_budget_of_the_checker_is_for_all_figures(tmp_path, endpoint):
    checker = f"{{url: '{endpoint.url}', model: judge, prices: {PRICES}, max_cost: 20}}"
    config = corpus(tmp_path, endpoint, f"corpus.dialogues.checker={checker}")
    plan = Plan(19, 10, CostEstimate(9, 1, 1, None), CostEstimate(19, 1, 1, 38.0))
    with pytest.raises(ConfigError, match=r"checker.max_cost=20: .* or ask about 10 figures by"):
        check_cost(plan, DialogueJob(config, NO_ARTICLE).settings)


def test_answers_of_a_batch_file_are_not_asked_for_again(tmp_path, endpoint):
    config = corpus(tmp_path, endpoint)
    job = DialogueJob(config, NO_ARTICLE)
    (name,) = job.write_batches(str(tmp_path / "batch"))
    lines = [json.loads(line) for line in (tmp_path / "batch" / name).read_text().splitlines()]
    output = tmp_path / "output.jsonl"
    output.write_text(
        "\n".join(
            json.dumps(
                {
                    "custom_id": line["custom_id"],
                    "response": {"status_code": 200, "body": endpoint.completion(line["body"])},
                }
            )
            for line in reversed(lines)
        )
    )
    assert job.read_batches([str(output)]) == {"answered": 19}
    assert run(config).outcomes == {"answered": 19}
    assert endpoint.bodies == []


def test_batch_files_are_named_with_their_part_of_the_cost(tmp_path, endpoint):
    place = f"{{url: '{endpoint.url}', model: writer, prices: {PRICES}}}"
    corpus(tmp_path, endpoint)
    overrides = [f"storage={tmp_path}", f"corpus.dialogues.endpoint={place}"]
    given = ["dialogues", *overrides, "--config", str(CONFIGS / "demo.yaml")]
    given += ["--write-batch", str(tmp_path / "batch")]
    found = CliRunner().invoke(app, given, catch_exceptions=False)
    (name,) = (file.name for file in (tmp_path / "batch").iterdir())
    assert f"{tmp_path / 'batch'}: {name}, for 0.5 of the cost above" in found.output
    assert endpoint.bodies == []


def test_a_picture_is_sent_where_the_model_sees(tmp_path, endpoint):
    config = corpus(tmp_path, endpoint, "corpus.dialogues.send_image=true", count=3)
    for each in selected(3):
        file = tmp_path / "corpus" / each.pictures[0].path
        file.parent.mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(file)
    assert run(config).outcomes == {"answered": 2}
    kinds = [part["type"] for part in endpoint.bodies[0]["messages"][-1]["content"]]
    assert kinds == ["image_url", "text"]


def test_dialogues_need_a_model_and_figures(tmp_path, endpoint):
    config = corpus(tmp_path, endpoint, count=3)
    with pytest.raises(ConfigError, match=r"corpus.dialogues: must be set; name a language model"):
        DialogueJob(load_config_with(config, "corpus.dialogues=null"), NO_ARTICLE)
    step = locate(config.corpus_directory) / "select"
    step.remove()
    write_figures(step / "00000", [replace(selected(1)[0], refusal="size")], "")
    with pytest.raises(DataError, match=r"no figure is selected; run `llavamed corpus select` fi"):
        DialogueJob(config, NO_ARTICLE).plan()
