"""What joins and leaves a running batch is answered as if it were alone, token by token."""

import pickle
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlavaForConditionalGeneration

from llavamed.config.run import RunConfig
from llavamed.errors import LogitsError
from llavamed.model import running_batch
from llavamed.model.continuation import Continuation, Sampling
from llavamed.model.generation import Generator, Prompt
from llavamed.model.llava import build_model
from llavamed.processor.templates import get_template
from llavamed.processor.turns import Turn
from tests.support.small_tokenizers import llama_like
from tests.support.training_setup import processor_of, small_config

QUESTIONS = ("Where?", "What is shown in these?", "Why?", "Is there an effusion on the left?")


@pytest.fixture(scope="module")
def model(tiny_config: RunConfig) -> tuple[LlavaForConditionalGeneration, Generator]:
    config = small_config(tiny_config, "model.language_model.config.initializer_range=0.3")
    processor = processor_of(small_config(tiny_config))
    made = build_model(config.model, processor, seed=0, precision="fp32")
    return made, Generator(made, processor, get_template(config.model.template))


def prompt(number: int) -> Prompt:
    shades = [40 * number + 10 + 60 * place for place in range(number % 3)]
    images = [np.full((16, 16, 3), shade, dtype=np.uint8) for shade in shades]
    return Prompt([Turn("user", "<image>\n" * len(images) + QUESTIONS[number])], images)


def run_alone(generator: Generator, number: int, sampling: Sampling) -> Continuation:
    *_, last = generator.stream(generator.encode(prompt(number)), sampling)
    return last


def test_greedy_tokens_are_those_of_transformers(model: Any) -> None:
    llava, generator = model
    for number in range(4):
        encoded = generator.encode(prompt(number))
        inputs = {"pixel_values": encoded.pixel_values} if len(encoded.pixel_values) else {}
        ids = torch.tensor([encoded.input_ids])
        theirs = llava.generate(input_ids=ids, **inputs, do_sample=False, max_new_tokens=12)
        ours = run_alone(generator, number, Sampling(12))
        assert ours.token_ids == theirs[0, ids.shape[1] :].tolist()


SAMPLINGS = st.builds(
    Sampling,
    max_new_tokens=st.integers(1, 9),
    temperature=st.sampled_from([0.0, 0.0, 1.3]),
    top_p=st.sampled_from([1.0, 0.7]),
    seed=st.integers(0, 9),
    num_logprobs=st.sampled_from([None, 3]),
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    arrivals=st.lists(
        st.tuples(st.integers(0, 6), st.lists(SAMPLINGS, min_size=1, max_size=3)),
        min_size=1,
        max_size=4,
    ),
    gives_up=st.integers(0, 8),
)
def test_an_answer_does_not_depend_on_who_comes_and_goes(
    model: Any, arrivals: list[tuple[int, list[Sampling]]], gives_up: int
) -> None:
    _, generator = model
    batch = generator.running_batch()
    answers = [[generator.begin(each) for each in samplings] for _, samplings in arrivals]
    abandoned = answers[0][0]
    for step in range(20):
        new = [number for number, (when, _) in enumerate(arrivals) if when == step]
        if len(batch):
            batch.step()
        if new:
            batch.join(
                [generator.encode(prompt(number)) for number in new],
                [answers[number] for number in new],
            )
        if step == gives_up:
            batch.remove([abandoned])
    assert len(batch) == 0
    for number, (_, samplings) in enumerate(arrivals):
        for sampling, answer in zip(samplings, answers[number], strict=True):
            alone = run_alone(generator, number, sampling)
            if answer is abandoned and answer.finish_reason is None:
                assert alone.token_ids[: len(answer.token_ids)] == answer.token_ids
                continue
            assert answer.token_ids == alone.token_ids
            assert (answer.text, answer.finish_reason) == (alone.text, alone.finish_reason)
            for ours, theirs in zip(answer.logprobs, alone.logprobs, strict=True):
                assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)


@pytest.mark.parametrize("place", range(5))
def test_a_prompt_for_which_memory_runs_out_leaves_the_batch_as_it_was(
    model: Any, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    """Whatever was replaced before: the mask, or the keys and values of some layers."""
    _, generator = model
    batch, stack = generator.running_batch(), running_batch._stack
    going = [generator.begin(Sampling(9)) for _ in range(2)]
    batch.join([generator.encode(prompt(number)) for number in (0, 1)], [[each] for each in going])
    batch.step()
    calls = iter(range(99))

    def stack_some(*given: Any) -> torch.Tensor:
        if next(calls) == place:
            raise torch.OutOfMemoryError
        return stack(*given)

    late = generator.begin(Sampling(9))
    with monkeypatch.context() as patch:
        patch.setattr(running_batch, "_stack", stack_some)
        with pytest.raises(torch.OutOfMemoryError) if place < 4 else nullcontext():
            batch.join([generator.encode(prompt(2))], [[late]])
    batch.step()
    if place < 4:
        late = generator.begin(Sampling(9))
        batch.join([generator.encode(prompt(2))], [[late]])
    while len(batch):
        batch.step()
    for number, answer in enumerate([*going, late]):
        assert answer.token_ids == run_alone(generator, number, Sampling(9)).token_ids


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_answer_without_a_likeliest_token_fails_and_the_others_go_on(
    model: Any, bad: float
) -> None:
    llava, generator = model
    batch = generator.running_batch()
    going = [generator.begin(Sampling(9, temperature)) for temperature in (0.0, 1.0)]
    batch.join(
        [generator.encode(prompt(0)), generator.encode(prompt(3))], [[each] for each in going]
    )

    def spoil(_: Any, __: Any, logits: torch.Tensor) -> torch.Tensor:
        logits[-1, -1, 5] = bad
        return logits

    handle = llava.get_output_embeddings().register_forward_hook(spoil)
    try:
        with pytest.raises(LogitsError, match="NaN or infinite for 1 answers") as failed:
            batch.step()
        with pytest.raises(LogitsError):
            generator.answer([prompt(1)], max_new_tokens=3)
    finally:
        handle.remove()
    assert list(failed.value.answers) == going[1:]
    assert str(pickle.loads(pickle.dumps(failed.value))) == str(failed.value)  # from a worker
    while len(batch):
        batch.step()
    assert going[0].token_ids == run_alone(generator, 0, Sampling(9)).token_ids


def test_logprobs_are_those_of_the_model(model: Any) -> None:
    llava, generator = model
    encoded = generator.encode(prompt(1))
    answer = run_alone(generator, 1, Sampling(5, temperature=0.7, seed=3, num_logprobs=2))
    ids = torch.tensor([encoded.input_ids + answer.token_ids])
    with torch.no_grad():
        logits = llava(input_ids=ids, pixel_values=encoded.pixel_values).logits[0].float()
    expected = logits.log_softmax(-1)[len(encoded.input_ids) - 1 : -1]
    for place, found in enumerate(answer.logprobs):
        assert found.token == answer.token_ids[place]
        assert found.logprob == pytest.approx(float(expected[place, found.token]), abs=1e-4)
        best = expected[place].topk(2)
        assert [token for token, _ in found.likeliest] == best.indices.tolist()


def test_top_p_leaves_only_the_likeliest_tokens(model: Any) -> None:
    _, generator = model
    greedy = run_alone(generator, 1, Sampling(8))
    for cold in (1e-300, 1e-9, 1e-4):
        frozen = run_alone(generator, 1, Sampling(8, temperature=cold, seed=1))
        assert frozen.token_ids == greedy.token_ids
    narrow = run_alone(generator, 1, Sampling(8, temperature=1.0, top_p=1e-6, seed=1))
    assert narrow.token_ids == greedy.token_ids
    drawn = {tuple(run_alone(generator, 1, Sampling(8, 1.5, seed=n)).token_ids) for n in range(5)}
    assert len(drawn) > 1
    unseeded = {tuple(run_alone(generator, 1, Sampling(8, 1.5)).token_ids) for _ in range(5)}
    assert len(unseeded) > 1


TOKENIZER = llama_like()
TEXTS = st.text(st.sampled_from("ab #é漢🫁\n"), max_size=14)


def spell(text: str, *, stop: tuple[str, ...], max_new_tokens: int = 99) -> tuple[list[str], Any]:
    """Feed the tokens of a text to an answer, and return what it showed after each."""
    answer = Continuation(
        Sampling(max_new_tokens), TOKENIZER, end_tokens=[TOKENIZER.eos_token_id], stop=stop
    )
    shown = []
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"] + [TOKENIZER.eos_token_id]
    for token in ids:
        answer.extend(torch.zeros(1), token)
        shown.append(answer.text)
        if answer.finish_reason is not None:
            break
    return shown, answer


@given(TEXTS, st.lists(st.sampled_from(["###", "\n", "ab", "a b", "#é"]), max_size=2))
def test_streamed_text_only_grows_and_ends_at_the_first_stop(text: str, stops: list[str]) -> None:
    shown, answer = spell(text, stop=tuple(stops))
    places = [text.find(stop) for stop in stops if stop in text]
    assert answer.text == text[: min(places, default=len(text))].strip()
    assert answer.finish_reason == "stop"
    for before, after in pairwise(shown):
        assert after.startswith(before)


def test_a_character_cut_in_half_by_the_limit_is_shown_as_such() -> None:
    shown, answer = spell("🫁", stop=(), max_new_tokens=2)
    assert shown[0] == ""
    assert answer.finish_reason == "length"
    assert "\N{REPLACEMENT CHARACTER}" in answer.text
