"""Exports, models of other Auto classes and endpoints answer questions behind one protocol."""

from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from llavamed.config.endpoint import Endpoint
from llavamed.config.run import RunConfig
from llavamed.errors import CheckpointError, ConfigError, DataError, EndpointError
from llavamed.evaluate.answering import Asked, answer_benchmark, check_conditions
from llavamed.evaluate.answers import ANSWERS, AnswersManifest, read_answers
from llavamed.evaluate.candidate import Candidate
from llavamed.evaluate.endpoint_model import EndpointCandidate
from llavamed.evaluate.find_candidate import find_candidate
from llavamed.evaluate.own_model import ExportCandidate, InitialCandidate
from llavamed.evaluate.transformers_model import transformers_candidate
from llavamed.model.export import write_export
from llavamed.model.generation import Generator, Prompt
from llavamed.model.llava import build_model, load_model
from llavamed.processor.images import fit
from llavamed.processor.templates import get_template, template_hash
from llavamed.processor.turns import Turn
from llavamed.storage.location import Location, locate
from llavamed.storage.manifest import write
from tests.support.asked_questions import question
from tests.support.benchmark_files import vqa_rad
from tests.support.chat_endpoint import ChatEndpoint
from tests.support.manifests import export_manifest
from tests.support.small_models import save_llava_next
from tests.support.training_setup import processor_of, small_config

QUESTIONS = [
    question(0, question="Where?"),
    question(2, question="What is shown in this picture of the chest?"),
    question(4, turns=(Turn("user", "Why?"),), pictures=()),
    question(6, question="Is there a mass?"),
]


def answer(candidate: Candidate, asked: Asked, folder: Location) -> AnswersManifest:
    return answer_benchmark(candidate, asked, folder)[0]


@pytest.fixture(scope="module")
def llava_next(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava_next(tmp_path_factory.mktemp("llava-next"))


@pytest.fixture(scope="module")
def export(tiny_config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of random weights that answer differently to different questions."""
    config = small_config(tiny_config, "model.language_model.config.initializer_range=0.3")
    processor = processor_of(small_config(tiny_config))
    model = build_model(config.model, processor, seed=0, precision="fp32")
    folder = locate(str(tmp_path_factory.mktemp("exports") / "export"))
    write_export(folder, model, model.state_dict(), processor)
    template = config.model.template
    hashed = template_hash(get_template(template), processor.tokenizer)
    write(folder, export_manifest(fingerprint="f", template=template, template_hash=hashed))
    return Path(folder.path)


def candidate_of(source: Path, batch_size: int = 2, template: str | None = None) -> Candidate:
    return find_candidate(str(source), template=template, precision="fp32", batch_size=batch_size)


def texts(candidate: Candidate, questions: list[Any], max_new_tokens: int = 6) -> list[str]:
    answerer = candidate.load()
    replies = answerer.answer(questions, max_new_tokens)
    answerer.close()
    assert all(reply is not None and reply.tokens <= max_new_tokens for reply in replies)
    return [reply.text for reply in replies if reply is not None]


@pytest.mark.parametrize("kind", ["export", "transformers"])
def test_an_answer_does_not_depend_on_what_is_answered_with_it(
    kind: str, export: Path, llava_next: Path
) -> None:
    source = export if kind == "export" else llava_next
    assert candidate_of(source).kind == kind
    alone = [text for each in QUESTIONS for text in texts(candidate_of(source), [each])]
    assert len(set(alone)) > 1
    for batch_size in (1, 2, 8):
        assert texts(candidate_of(source, batch_size), QUESTIONS) == alone


def test_an_export_answers_as_the_generator_does(tiny_config: RunConfig, export: Path) -> None:
    processor = processor_of(small_config(tiny_config))
    model = load_model(export, "fp32", "sdpa")
    generator = Generator(model, processor, get_template(tiny_config.model.template))
    prompts = [
        Prompt(each.turns, [fit(picture.pixels, generator.images) for picture in each.pictures])
        for each in QUESTIONS
    ]
    expected = [generator.answer([prompt], max_new_tokens=6)[0] for prompt in prompts]
    assert texts(candidate_of(export), QUESTIONS) == expected


def test_an_export_of_ours_answers_alike_as_a_model_of_anyone(export: Path) -> None:
    """Without our manifest it is a LLaVA like any other, asked by transformers' own `generate`."""
    foreign = transformers_candidate(str(export), template=None, precision="fp32", batch_size=2)
    named = transformers_candidate(
        str(export), template="vicuna_v1", precision="fp32", batch_size=2
    )
    ours = texts(candidate_of(export), QUESTIONS)
    assert texts(named, QUESTIONS) == ours
    assert named.template == foreign.template


def test_the_untrained_model_is_another_one(tiny_config: RunConfig, export: Path) -> None:
    config = small_config(tiny_config, "model.language_model.config.initializer_range=0.3")
    config = config.model_copy(update={"seed": 5})
    untrained = InitialCandidate(str(export), config, "t", 2)
    assert untrained.fingerprint != candidate_of(export).fingerprint
    assert texts(untrained, QUESTIONS) != texts(candidate_of(export), QUESTIONS)


def test_a_question_beyond_the_context_is_refused(export: Path) -> None:
    with pytest.raises(DataError, match=r"id='q0': its prompt of \d+ tokens and max_new_"):
        texts(candidate_of(export), QUESTIONS[:1], 9000)


def test_the_fingerprint_is_that_of_the_files(llava_next: Path, tmp_path: Path) -> None:
    other = save_llava_next(tmp_path / "same")
    assert candidate_of(llava_next).fingerprint == candidate_of(other).fingerprint
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    assert candidate_of(llava_next).fingerprint != candidate_of(other).fingerprint


def test_what_cannot_be_evaluated_is_refused_before_it_is_loaded(
    export: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="model=/nowhere: no such folder; give one, or a name on"):
        candidate_of(Path("/nowhere"))
    text_only = tmp_path / "text"
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1, vocab_size=8)).save_pretrained(
        text_only
    )
    with pytest.raises(ConfigError, match="its model_type is llama, which transformers does not"):
        candidate_of(text_only)
    bare = save_llava_next(tmp_path / "bare", chat_template=False)
    with pytest.raises(ConfigError, match="has no chat template; name the one it was trained with"):
        candidate_of(bare)
    assert texts(candidate_of(bare, template="vicuna_v1"), QUESTIONS)
    with pytest.raises(ConfigError, match=r"template=llama_2: the export .* was trained with"):
        candidate_of(export, template="llama_2")


def test_missing_tensors_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_llava_next(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "q_proj" in name)
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"1 tensors are missing, e\.g\. .*; name a folder that"):
        candidate_of(folder).load()


def rad(tmp_path: Path, **facts: Any) -> Asked:
    if not (tmp_path / "data").exists():
        vqa_rad(tmp_path / "data")
    return Asked("vqa-rad", str(tmp_path / "data"), max_new_tokens=6, **facts)


def test_a_model_that_is_not_ours_answers_a_benchmark_beside_its_controls(
    llava_next: Path, tmp_path: Path
) -> None:
    asked = rad(tmp_path, controls=("blank_image", "question_only", "majority"))
    folder = locate(str(tmp_path / "out"))
    made = answer(candidate_of(llava_next), asked, folder)
    assert (made.questions, made.split, made.num_questions) == ("vqa-rad/1", "test", 3)
    assert made.conditions == ("trained", "blank_image", "question_only", "majority")
    # A blank picture is the same for both questions of a size, and so are their answers' keys.
    assert made.num_generated == 9
    found = read_answers(folder / ANSWERS)
    assert [len(rows) for rows in found.values()] == [3] * 4
    assert {each.tokens > 0 for each in found["trained"]} == {True}
    again = answer(candidate_of(llava_next), asked, folder)
    assert again == made.replace(num_generated=0)
    more = rad(tmp_path, controls=("blank_image", "question_only", "noise"))
    assert answer(candidate_of(llava_next), more, folder).num_generated == 3


def test_probing_pairs_are_asked_instead_of_the_questions(llava_next: Path, tmp_path: Path) -> None:
    folder = locate(str(tmp_path / "out"))
    made = answer(candidate_of(llava_next), rad(tmp_path, probe=True), folder)
    rows = read_answers(folder / ANSWERS)["trained"]
    assert made.questions == "vqa-rad/1+probes"
    assert made.num_questions == len(rows) == 6
    assert all(sum(other.pair == each.pair for other in rows) == 2 for each in rows)
    # The pair of a finding that is there and one that is not asks nothing new.
    assert made.num_generated == 4
    file = tmp_path / "data" / "testset.json"
    file.write_text(file.read_text().replace("Is there", "Has it"))
    with pytest.raises(ConfigError, match="probe: none of the questions of vqa-rad asks whether"):
        answer(candidate_of(llava_next), rad(tmp_path, probe=True), folder)


def test_an_unknown_control_is_refused() -> None:
    with pytest.raises(ConfigError, match="control=untrained: is not a control; use some of bl"):
        check_conditions(["untrained"])


def asks(endpoint: ChatEndpoint, tmp_path: Path, **facts: Any) -> EndpointCandidate:
    known = {"model": "peer", "max_in_flight": 2, "attempts": 2}
    section = Endpoint(url=endpoint.url, **(known | facts))
    return EndpointCandidate(section, str(tmp_path / "cache"))


def test_an_endpoint_is_sent_the_prompt_and_the_pictures(
    endpoint: ChatEndpoint, tmp_path: Path
) -> None:
    folder = locate(str(tmp_path / "out"))
    endpoint.fail("429", "500", None, "cut")  # which may pass
    made = answer(
        asks(endpoint, tmp_path, attempts=4), rad(tmp_path, controls=("question_only",)), folder
    )
    assert (made.kind, made.model, made.num_generated) == ("endpoint", "peer", 6)
    found = read_answers(folder / ANSWERS)
    assert {each.prediction for rows in found.values() for each in rows} == {"Yes."}
    parts = [body["messages"][0]["content"] for body in endpoint.bodies]
    with_picture = [each for each in parts if isinstance(each, list)]
    assert {each[0]["image_url"]["url"][:22] for each in with_picture} == {"data:image/png;base64,"}
    assert {each[1]["text"] for each in with_picture} == {
        "Is there a pneumothorax?",
        "Is there a fracture?",
        "Which lobe?",
    }
    assert {body["max_tokens"] for body in endpoint.bodies} == {6}
    assert {body["temperature"] for body in endpoint.bodies} == {0.0}


def test_a_refusal_is_an_answer_and_a_request_that_cannot_be_taken_too(
    endpoint: ChatEndpoint, tmp_path: Path
) -> None:
    endpoint.fail("400")
    endpoint.say = lambda body: {"content": None, "refusal": "I cannot help with that."}
    folder = locate(str(tmp_path / "out"))
    made = answer(asks(endpoint, tmp_path), rad(tmp_path), folder)
    rows = read_answers(folder / ANSWERS)["trained"]
    assert {each.outcome for each in rows} == {"refused"}
    assert sorted(each.prediction for each in rows) == ["", *["I cannot help with that."] * 2]
    assert made.num_generated == 3


def test_answers_that_are_cut_off_or_empty_are_kept_as_such(
    endpoint: ChatEndpoint, tmp_path: Path
) -> None:
    said = iter(["", "a long", "word"])
    endpoint.say = lambda body: {"content": (text := next(said)), "finish_reason": _end(text)}
    folder = locate(str(tmp_path / "out"))
    answer(asks(endpoint, tmp_path), rad(tmp_path), folder)
    rows = read_answers(folder / ANSWERS)["trained"]
    assert sorted((each.prediction, each.outcome) for each in rows) == [
        ("", "answered"),
        ("a long", "cut_off"),
        ("word", "answered"),
    ]


def _end(text: str) -> str:
    return "length" if " " in text else "stop"


def test_an_endpoint_that_is_down_scores_nothing_and_is_asked_for_the_rest_later(
    endpoint: ChatEndpoint, tmp_path: Path
) -> None:
    folder = locate(str(tmp_path / "out"))
    endpoint.hold = lambda text: False
    endpoint.fail(None, "500", "500", "500", "500")
    with pytest.raises(EndpointError, match="model=peer: 2 of 3 questions have no answer, because"):
        answer(asks(endpoint, tmp_path), rad(tmp_path), folder)
    assert not (folder / ANSWERS).exists()
    made = answer(asks(endpoint, tmp_path), rad(tmp_path), folder)
    assert made.num_generated == 2
    endpoint.fail("401")
    with pytest.raises(EndpointError, match=r"answers 401 .* to every request"):
        answer(asks(endpoint, tmp_path), rad(tmp_path, controls=("noise",)), folder)


def test_the_manifest_tells_what_the_answers_depend_on(llava_next: Path, tmp_path: Path) -> None:
    def fingerprint(**facts: Any) -> str:
        folder = locate(str(tmp_path / "out"))
        made: AnswersManifest = answer(candidate_of(llava_next), rad(tmp_path, **facts), folder)
        return made.fingerprint

    prints = {
        fingerprint(limit=1),
        fingerprint(limit=2),
        fingerprint(limit=1, instruction="Say yes or no."),
        fingerprint(limit=1, controls=("majority",)),
    }
    assert len(prints) == 4


def test_an_export_at_another_precision_is_another_model(export: Path) -> None:
    bf16 = find_candidate(str(export), template=None, precision="bf16", batch_size=2)
    assert isinstance(bf16, ExportCandidate)
    assert bf16.fingerprint != candidate_of(export).fingerprint


def test_the_folder_of_a_run_is_told_apart_from_its_export(tmp_path: Path) -> None:
    run = locate(str(tmp_path))
    write(run / "stages" / "align" / "export", export_manifest())
    with pytest.raises(CheckpointError, match=r"is no export; name one: .*/stages/align/export$"):
        find_candidate(str(tmp_path), template=None, precision="fp32", batch_size=1)
