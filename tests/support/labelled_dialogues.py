"""Dialogues of any kind, and what must be true of their labels in a tokenizer's own template."""

from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from llavamed.processor.encode import Encoded, encode, encode_prompt
from llavamed.processor.templates import get_template
from llavamed.processor.turns import IGNORE_INDEX, Turn

OWN = get_template("tokenizer")
quick = settings(max_examples=20, derandomize=True, deadline=None)
words = st.text(alphabet="ab é病\n1:.'?", max_size=10)
said = st.one_of(
    st.sampled_from(["yes", "A", "7", " yes", "\n\nyes", ":)", "yes \n", "The left lung."]), words
)


@st.composite
def dialogues(draw: st.DrawFn) -> list[Turn]:
    """Questions with images here and there, and answers with a word at least."""
    turns = [Turn("system", "Be brief.")] * draw(st.booleans())
    for number in range(draw(st.integers(1, 3))):
        image = "<image>\n" * (number == 0 or draw(st.booleans()))
        turns.append(Turn("user", f"{image}{draw(words)} why?"))
        turns.append(Turn("assistant", draw(said.filter(str.strip))))
    return turns


def encoded(turns: list[Turn], tokenizer: PreTrainedTokenizerBase) -> Encoded:
    return encode(turns, template=OWN, tokenizer=tokenizer, num_image_tokens=2, max_length=None)


def prompt_ids(turns: list[Turn], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return encode_prompt(turns, template=OWN, tokenizer=tokenizer, num_image_tokens=2)


def stretches(sample: Encoded, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts of neighbouring trained tokens."""
    found: list[list[int]] = [[]]
    for label in sample.labels:
        if label != IGNORE_INDEX:
            found[-1].append(label)
        elif found[-1]:
            found.append([])
    return [tokenizer.decode(ids) for ids in found if ids]


def assert_exactly_the_answers_are_trained(
    turns: list[Turn],
    tokenizer: PreTrainedTokenizerBase,
    end: str,
    before: Callable[[int], str] = lambda number: "",
) -> None:
    """Each prompt begins the sample, and behind it the answer is trained through its end.

    Other tokens are not. `before` gives the untrained text between a prompt and its answer.
    """
    sample = encoded(turns, tokenizer)
    answers = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
    for number in answers:
        prompt = prompt_ids(turns[:number], tokenizer)
        start = len(prompt)
        assert sample.input_ids[:start] == prompt
        while sample.labels[start] == IGNORE_INDEX and before(number):
            start += 1
        assert tokenizer.decode(sample.input_ids[len(prompt) : start]) == before(number)
        assert sample.labels[start] != IGNORE_INDEX
        assert sample.labels[start - 1] == IGNORE_INDEX
    trained = stretches(sample, tokenizer)
    assert len(trained) == len(answers)
    for number, text in zip(answers, trained, strict=True):
        assert text.split() == f"{turns[number].text.strip()}{end}".split() or (
            text.replace(" ", "").strip() == f"{turns[number].text}{end}".replace(" ", "").strip()
        )
