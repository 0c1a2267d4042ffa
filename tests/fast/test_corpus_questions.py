"""Questions for a chat evaluation are written of figures that training leaves out."""

import json
import time
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from llavamed.cli.corpus import app
from llavamed.cli.corpus_tables import show_questions
from llavamed.config.corpus import ChatQuestions, Pairs
from llavamed.corpus.dialogues.job import DialogueJob
from llavamed.corpus.figures import write_figures
from llavamed.corpus.pairs import write_pairs
from llavamed.corpus.questions import QuestionJob, held_out_articles, held_out_figures
from llavamed.errors import ConfigError, DataError, EndpointError, LeaseError
from llavamed.evaluate.chat import read_chat
from llavamed.evaluate.listing import list_questions
from llavamed.storage import lease
from llavamed.storage.location import locate
from tests.conftest import CONFIGS
from tests.support.benchmark_files import png
from tests.support.chat_endpoint import chat_endpoint
from tests.support.corpus_figures import corpus_config, selected


@pytest.fixture
def endpoint():
    with chat_endpoint() as there:
        there.say = lambda _: {"content": written("What organ is it?", "Which plane?")}
        yield there


def written(*questions, description="It shows an organ."):
    exchanges = [{"question": each, "answer": f"Answer to: {each}"} for each in questions]
    return json.dumps({"questions": exchanges, "description": description})


def corpus(tmp_path, endpoint, figures=None):
    questions = "corpus.questions={num_figures: 10, num_questions: 2}"
    config = corpus_config(tmp_path, endpoint, questions)
    step = locate(config.corpus_directory) / "select"
    figures = selected(20) if figures is None else figures
    write_figures(step / "00000", figures, "")
    for number, figure in enumerate(figures):
        picture = locate(config.corpus_directory) / figure.pictures[0].path
        picture.write_bytes(png(number))
    return config


def changed(config, **sections):
    return config.model_copy(update={"corpus": config.corpus.model_copy(update=sections)})


def test_the_set_is_a_benchmark_and_is_judged(tmp_path, endpoint):
    config = corpus(tmp_path, endpoint)
    job = QuestionJob(config)
    manifest = job.run()
    assert manifest.outcomes == {"answered": 10}
    assert manifest.types == {"conversation": 20, "detailed_description": 10}
    assert len(manifest.domains) == 5
    assert set(manifest.domains.values()) == {6}
    # A model answers it as any other benchmark, without the corpus.
    listed = list_questions("figure-chat", "test", str(job.folder), locate(str(tmp_path / "out")))
    asked = listed.read(0)
    assert (len(asked), len({each.image for each in asked})) == (30, 10)
    assert listed.quarantined == {}
    # And a judge reads it with the answers.
    answers = tmp_path / "answers.jsonl"
    answers.write_text("\n".join(json.dumps({"id": q.id, "prediction": "A CT."}) for q in asked))
    judged = read_chat(job.folder / "questions.jsonl", locate(str(answers)))
    assert {item.kind for item in judged} == {"conversation", "detailed_description"}
    assert all(item.caption for item in judged)
    assert judged[0].reference == "Answer to: What organ is it?"
    # Nothing is paid for twice, and the same figures give the same questions.
    sent = len(endpoint.bodies)
    assert QuestionJob(config).run() == manifest
    assert len(endpoint.bodies) == sent == 10
    fewer = ChatQuestions(num_figures=5, num_questions=2)
    QuestionJob(changed(config, questions=fewer)).run()
    assert len((job.folder / "images").children()) == 5


def test_articles_of_the_set_are_in_no_training_sample(tmp_path, endpoint):
    config = corpus(tmp_path, endpoint)
    held_out = held_out_articles(config)
    assert len(held_out) == 10
    folder = locate(config.corpus_directory)
    counts = write_pairs(folder / "select", folder / "samples", Pairs(), held_out)
    assert counts["pairs"] == 10
    assert {figure.pmcid for figure in DialogueJob(config, held_out).figures()}.isdisjoint(held_out)
    without = changed(config, questions=None)
    assert held_out_articles(without) == frozenset()
    assert len(list(DialogueJob(without, frozenset()).figures())) == 20


def test_articles_of_a_written_set_stay_held_out_when_others_are_selected(tmp_path, endpoint):
    config = corpus(tmp_path, endpoint)
    asked = held_out_articles(config)
    QuestionJob(config).run()
    step = locate(config.corpus_directory) / "select"
    kept = [each for each in selected(20) if each.pmcid != min(asked)]
    write_figures(step / "00000", [*kept, replace(selected(20)[0], pmcid="PMC99")], "")
    now = {figure.pmcid for figure in held_out_figures(step, config.corpus.questions)}
    assert now != asked
    assert held_out_articles(config) == asked | now


def test_figures_are_of_different_articles_and_shared_out_over_modalities(tmp_path):
    figures = selected(30)
    figures += [replace(figure, number=1) for figure in figures]
    step = locate(str(tmp_path))
    write_figures(step / "00000", figures, "")
    chosen = held_out_figures(step, ChatQuestions(num_figures=15))
    assert len({figure.pmcid for figure in chosen}) == 15
    modalities = [figure.modality for figure in chosen]
    assert {modalities.count(each) for each in modalities} == {3}
    fewer = held_out_figures(step, ChatQuestions(num_figures=5))
    assert {figure.id for figure in fewer} <= {figure.id for figure in chosen}


def test_dialogues_that_were_written_before_are_left_out_too(tmp_path, endpoint):
    config = corpus(tmp_path, endpoint)
    speakers = [{"speaker": "user", "text": "What?"}, {"speaker": "assistant", "text": "A lesion."}]
    endpoint.say = lambda _: {"content": json.dumps({"turns": speakers})}
    without = DialogueJob(changed(config, questions=None), frozenset())
    assert without.run(without.plan()).num_figures == 20
    assert DialogueJob(config, held_out_articles(config)).judge_again().num_figures == 10


def test_answers_of_another_form_are_counted_and_give_no_question(tmp_path, endpoint, capsys):
    config = corpus(tmp_path, endpoint)
    endpoint.say = lambda _: {"content": "I would rather write prose."}
    manifest = QuestionJob(config).run()
    assert manifest.outcomes == {"malformed": 10}
    assert manifest.types == {}
    show_questions(manifest, locate(str(tmp_path)))
    assert capsys.readouterr().out.splitlines()[:2] == ["10 figures: 10 malformed", "0 questions"]


def test_the_order_in_which_answers_come_changes_nothing(tmp_path, endpoint):
    config = corpus(tmp_path, endpoint)
    first = QuestionJob(config)._figures[0].caption

    def say(body):
        if first not in json.dumps(body):
            return {"content": "I would rather write prose."}
        time.sleep(0.5)  # the last to come
        return {"content": written("Which plane?")}

    endpoint.say = say
    assert list(QuestionJob(config).run().outcomes.items()) == [("answered", 1), ("malformed", 9)]


def test_an_estimate_asks_nothing(tmp_path, endpoint):
    corpus(tmp_path, endpoint)
    overrides = [
        f"storage={tmp_path}",
        f"corpus.questions={{num_figures: 10, endpoint: {{url: '{endpoint.url}', model: writer}}}}",
    ]
    given = ["questions", *overrides, "--config", str(CONFIGS / "demo.yaml"), "--estimate"]
    found = CliRunner().invoke(app, given, catch_exceptions=False)
    assert found.output.startswith("10 requests, about ")
    assert endpoint.bodies == []


def test_an_endpoint_that_refuses_all_leaves_no_set(tmp_path, endpoint):
    config = corpus(tmp_path, endpoint)
    endpoint.fail("401", times=50)
    with pytest.raises(EndpointError):
        QuestionJob(config).run()
    assert not (locate(config.corpus_directory) / "questions" / "questions.jsonl").exists()


def test_one_process_writes_the_set(tmp_path, endpoint, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)
    job = QuestionJob(corpus(tmp_path, endpoint))
    with (
        lease.hold_lease(job.folder, hint="wait"),
        pytest.raises(LeaseError, match=r"is alive; .*, or set corpus.directory to another folder"),
    ):
        job.run()


def test_settings_that_name_no_model_are_refused(tmp_path, endpoint):
    config = corpus(tmp_path, endpoint)
    with pytest.raises(ConfigError, match=r"corpus.questions: must be set"):
        QuestionJob(changed(config, questions=None))
    with pytest.raises(ConfigError, match=r"corpus.questions.endpoint: must be set where"):
        QuestionJob(changed(config, dialogues=None))


def test_a_corpus_without_a_selected_figure_is_refused(tmp_path, endpoint):
    config = corpus(tmp_path, endpoint, figures=[])
    with pytest.raises(DataError, match=r"no figure is selected; run `llavamed corpus select`"):
        QuestionJob(config)
