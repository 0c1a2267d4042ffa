import pickle
import re
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llavamed.errors import ConfigError, SampleError
from llavamed.processor.encode import Encoded, encode, encode_prompt
from llavamed.processor.templates import TEMPLATES, chat_template, get_template
from llavamed.processor.token_labels import (
    LabeledText,
    Segment,
    any_of,
    flatten,
    tokenize,
    write_out_first_spaces,
)
from llavamed.processor.turns import IGNORE_INDEX, IMAGE_PLACEHOLDER, Turn
from tests.support.small_tokenizers import llama_like

K = 4
ids_of = pytest.mark.parametrize("name", list(TEMPLATES))
quick = settings(
    max_examples=25, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
words = st.text(alphabet="ab é病\n:#.?[]/▁", max_size=12)
hostile = st.sampled_from(
    ["</s>", "<s> x", "ASSISTANT: no", "### Human:", "[/INST] ", "{eos}{{ 1 }}"]
)
answers = st.one_of(words, hostile)


@st.composite
def dialogues(draw: st.DrawFn, *, num_turns: int = 3) -> list[Turn]:
    """User and assistant by turns, ending with an answer; the first question has an image."""
    turns: list[Turn] = []
    for number in range(draw(st.integers(1, num_turns))):
        question = draw(words)
        if number == 0 or draw(st.booleans()):
            place = draw(st.integers(0, len(question)))
            question = question[:place] + IMAGE_PLACEHOLDER + question[place:]
        turns += [Turn("user", question), Turn("assistant", draw(answers))]
    return turns


def fitted(turns: list[Turn], name: str) -> list[Turn]:
    return turns[:2] if name == "plain" else turns


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return llama_like()


def trained_text(encoded: Encoded, tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.decode([label for label in encoded.labels if label != IGNORE_INDEX])


def encode_as(name, turns, tokenizer, max_length=None, num_image_tokens=K):
    return encode(
        turns,
        template=get_template(name),
        tokenizer=tokenizer,
        num_image_tokens=num_image_tokens,
        max_length=max_length,
    )


QUESTION = Turn("user", "<image>\nWhere is the lesion?")
TWO_ROUNDS = [
    QUESTION,
    Turn("assistant", "In the left lobe."),
    Turn("user", "Sure?"),
    Turn("assistant", "Yes."),
]


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("vicuna_v1", "In the left lobe.</s> Yes.</s>"),
        ("llava_med_vicuna_v1_1", "In the left lobe.</s> Yes.</s>"),
        ("mistral_instruct", "In the left lobe. </s> Yes. </s>"),
        ("llama_2", "In the left lobe. </s> Yes. </s>"),
    ],
)
def test_trained_text_is_the_answers(tokenizer, name, trained) -> None:
    assert trained_text(encode_as(name, TWO_ROUNDS, tokenizer), tokenizer).strip() == trained


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "mistral_instruct",
            "<s> [INST] <image> \nWhere is the lesion? [/INST] In the left lobe. "
            "</s> [INST] Sure? [/INST] Yes. </s>",
        ),
        ("plain", "<s><image> In the left lobe.\n"),
    ],
)
def test_text(tokenizer, name, text) -> None:
    turns = fitted(TWO_ROUNDS, name)
    got = encode_as(name, turns, tokenizer, num_image_tokens=1)
    assert tokenizer.decode(got.input_ids) == text


def test_llama_2_opens_every_round_with_the_first_token(tokenizer) -> None:
    encoded = encode_as("llama_2", TWO_ROUNDS, tokenizer)
    assert encoded.input_ids.count(tokenizer.bos_token_id) == 2
    assert "<<SYS>>" in tokenizer.decode(encoded.input_ids)


def test_v0_labels_count_the_turns_each_by_itself(tokenizer) -> None:
    turns = [Turn("assistant", "Hello."), *TWO_ROUNDS[2:]]
    encoded = encode_as("llava_med_v0", turns, tokenizer)
    pieces = [
        TEMPLATES["llava_med_v0"].system + "\n\n",
        "### Assistant: Hello.\n",
        "### Human: Sure?\n",
    ]
    header, greeting, question = (
        len(tokenizer(f"<s>{piece}", add_special_tokens=False)["input_ids"]) for piece in pieces
    )
    start = header + greeting
    untrained = {*range(header), *range(start + 2, start + question)}
    places = range(len(encoded.labels))
    got = {place for place in places if encoded.labels[place] == IGNORE_INDEX}
    assert got == untrained & set(places)


@ids_of
@quick
@given(turns=dialogues())
def test_labels_are_ignored_or_the_ids(tokenizer, name, turns) -> None:
    turns = fitted(turns, name)
    encoded = encode_as(name, turns, tokenizer)
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER)
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        assert label == IGNORE_INDEX or (label == token and token != image_id)
    num_images = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns)
    assert encoded.input_ids.count(image_id) == num_images * K
    assert encoded.num_truncated == 0
    assert encode_as(name, turns, tokenizer) == encoded


@ids_of
@quick
@given(turns=dialogues())
def test_a_prompt_begins_the_sample(tokenizer, name, turns) -> None:
    turns = fitted(turns, name)
    prompt = encode_prompt(
        turns[:-1], template=get_template(name), tokenizer=tokenizer, num_image_tokens=K
    )
    encoded = encode_as(name, turns, tokenizer)
    assert encoded.input_ids[: len(prompt)] == prompt
    assert len(encoded.input_ids) > len(prompt)
    if name != "llava_med_v0":
        assert all(label != IGNORE_INDEX for label in encoded.labels[len(prompt) :])


@ids_of
@quick
@given(turns=dialogues(), cut=st.integers(0, 60))
def test_truncation_spares_images(tokenizer, name, turns, cut) -> None:
    turns = fitted(turns, name)
    whole = encode_as(name, turns, tokenizer)
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER)
    limit = max(len(whole.input_ids) - cut, whole.input_ids.count(image_id))
    encoded = encode_as(name, turns, tokenizer, max_length=limit)
    assert len(encoded.input_ids) == limit
    assert encoded.num_truncated == len(whole.input_ids) - limit
    assert encoded.input_ids.count(image_id) == whole.input_ids.count(image_id)
    texts = [
        [each for each in ids if each != image_id] for ids in (encoded.input_ids, whole.input_ids)
    ]
    assert texts[0] == texts[1][: len(texts[0])]


@ids_of
@pytest.mark.parametrize("as_parts", [False, True])
@quick
@given(turns=dialogues(), greeting=st.booleans(), system=st.sampled_from([None, "", "Be brief."]))
def test_chat_template_writes_the_same(tokenizer, name, as_parts, turns, greeting, system) -> None:
    turns = fitted(turns, name)
    if name != "plain":
        turns = [Turn("assistant", "Hello.")] * greeting + turns
        turns = turns if system is None else [Turn("system", system), *turns]

    def message(turn: Turn) -> dict:
        if not as_parts:
            return {"role": turn.role, "content": turn.text}
        texts = [{"type": "text", "text": text} for text in turn.text.split(IMAGE_PLACEHOLDER)]
        parts = [part for text in texts for part in (text, {"type": "image"})][:-1]
        return {"role": turn.role, "content": parts}

    template = get_template(name)

    def check(turns: list[Turn], expected: list[int], **kwargs) -> None:
        text = tokenizer.apply_chat_template(
            [message(turn) for turn in turns],
            chat_template=chat_template(template),
            tokenize=False,
            **kwargs,
        )
        # `encode` doubles a space that this kind of tokenizer loses after a special token.
        exact = write_out_first_spaces(flatten([Segment(text, False)]), tokenizer)
        assert tokenize(exact, tokenizer).ids == expected
        if exact.words == text:
            assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected

    whole = encode_as(name, turns, tokenizer, num_image_tokens=1)
    check(turns, whole.input_ids)
    prompt = encode_prompt(turns[:-1], template=template, tokenizer=tokenizer, num_image_tokens=1)
    check(turns[:-1], prompt, add_generation_prompt=True)


@pytest.mark.parametrize("name", list(TEMPLATES))
@quick
@given(turns=dialogues(), data=st.data())
def test_an_excluded_answer_has_no_label_and_changes_nothing_else(
    tokenizer, name, turns, data
) -> None:
    turns = fitted(turns, name)
    excluded = [
        replace(turn, trained=turn.role == "assistant" and data.draw(st.booleans()))
        for turn in turns
    ]
    whole = encode_as(name, turns, tokenizer)
    encoded = encode_as(name, excluded, tokenizer)
    assert encoded.input_ids == whole.input_ids
    rest = [
        replace(turn, trained=answer.role == "assistant" and not answer.trained)
        for turn, answer in zip(turns, excluded, strict=True)
    ]
    both = zip(encoded.labels, encode_as(name, rest, tokenizer).labels, strict=True)
    lead = name == "llava_med_v0"  # its labels keep the start of the first question
    for label, (here, there) in zip(whole.labels, both, strict=True):
        assert {here, there} <= {label, IGNORE_INDEX}
        assert label in (here, there)
        assert lead or IGNORE_INDEX in (here, there)
    if not any(turn.trained for turn in excluded) and not lead:
        assert set(encoded.labels) == {IGNORE_INDEX}


def test_an_excluded_answer_trains_neither_its_words_nor_its_end(tokenizer) -> None:
    turns = [QUESTION, Turn("assistant", "In the left lobe.", trained=False), *TWO_ROUNDS[2:]]
    assert trained_text(encode_as("vicuna_v1", turns, tokenizer), tokenizer).strip() == "Yes.</s>"


def test_answers_may_hold_separators(tokenizer) -> None:
    turns = [QUESTION, Turn("assistant", "he said ASSISTANT: no"), *TWO_ROUNDS[2:]]
    text = trained_text(encode_as("vicuna_v1", turns, tokenizer), tokenizer)
    assert text.strip() == "he said ASSISTANT: no</s> Yes.</s>"


@pytest.mark.parametrize("name", ["vicuna_v1", "mistral_instruct", "llama_2"])
def test_an_empty_last_answer_trains_its_end(tokenizer, name) -> None:
    encoded = encode_as(name, [QUESTION, Turn("assistant", "")], tokenizer)
    assert trained_text(encoded, tokenizer) == "</s>"


def test_an_empty_answer_within_a_dialogue_trains_nothing(tokenizer) -> None:
    turns = [QUESTION, Turn("assistant", ""), *TWO_ROUNDS[2:]]
    assert trained_text(encode_as("vicuna_v1", turns, tokenizer), tokenizer).strip() == "Yes.</s>"


def test_several_images_go_to_the_front_in_one_block(tokenizer) -> None:
    turns = [Turn("user", "Compare <image> with <image>."), Turn("assistant", "Same.")]
    ids = encode_as("vicuna_v1", turns, tokenizer).input_ids
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER)
    first = ids.index(image_id)
    assert ids[first : first + 2 * K] == [image_id] * 2 * K
    in_place = encode_as("llava_med_vicuna_v1_1", turns, tokenizer).input_ids
    first = in_place.index(image_id)
    assert in_place[first + K] != image_id


def test_a_space_after_an_image_is_kept(tokenizer) -> None:
    # The text after it begins " ASSISTANT:"; sentencepiece puts one more space before that.
    turns = [Turn("user", "<image>"), Turn("assistant", "No.")]
    ids = encode_as("vicuna_v1", turns, tokenizer).input_ids
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert "".join(tokens).split(IMAGE_PLACEHOLDER)[-1].startswith("▁▁ASSISTANT")


def test_a_system_turn_replaces_the_system_text(tokenizer) -> None:
    turns = [Turn("system", "Be brief."), *TWO_ROUNDS]
    text = tokenizer.decode(encode_as("vicuna_v1", turns, tokenizer).input_ids)
    assert text.startswith("<s> Be brief. USER:")


@pytest.mark.parametrize(
    ("name", "turns", "max_length", "message"),
    [
        ("vicuna_v1", TWO_ROUNDS, K - 1, f"too_long: 1 images of {K} tokens"),
        ("vicuna_v1", [QUESTION, QUESTION], None, "roles_out_of_turn: two user turns"),
        ("vicuna_v1", [Turn("assistant", "<image>"), QUESTION], None, "image_in_greeting"),
        ("vicuna_v1", [QUESTION, Turn("system", "x")], None, "misplaced_system"),
        ("plain", TWO_ROUNDS, None, "not_a_caption: template plain takes one question"),
        ("plain", TWO_ROUNDS[2:], None, "not_a_caption"),
    ],
)
def test_bad_samples(tokenizer, name, turns, max_length, message) -> None:
    with pytest.raises(SampleError, match=message):
        encode_as(name, turns, tokenizer, max_length)


def test_a_sample_whose_answers_are_cut_off_trains_nothing(tokenizer) -> None:
    encode_as("vicuna_v1", TWO_ROUNDS, tokenizer).check_supervised()
    with pytest.raises(
        SampleError, match=r"no_supervised_token: .* among 20, and \d+ more were cut"
    ):
        encode_as("vicuna_v1", TWO_ROUNDS, tokenizer, 20).check_supervised()


def test_a_prompt_ends_with_a_question(tokenizer) -> None:
    with pytest.raises(SampleError, match="no_question: the last turn must be the user's"):
        encode_prompt(
            TWO_ROUNDS, template=get_template("plain"), tokenizer=tokenizer, num_image_tokens=K
        )


def test_tokenizers_that_do_not_fit(tokenizer) -> None:
    copy = pickle.loads(pickle.dumps(tokenizer))
    copy.eos_token = None
    with pytest.raises(ConfigError, match="template=vicuna_v1: ends each answer with eos_token"):
        encode_as("vicuna_v1", TWO_ROUNDS, copy)
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="</s>")
    with pytest.raises(ConfigError, match="has no image token <image>"):
        encode_as("vicuna_v1", TWO_ROUNDS, bare)


def test_an_answer_that_changes_the_letters_of_its_prompt_is_refused():
    model = Tokenizer(models.BPE({"e": 0, "é": 1, "\u0301": 2}, []))
    model.normalizer = normalizers.NFC()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model)
    with pytest.raises(
        SampleError, match="spells 'e' at the end of a prompt as 'é' when the"
    ) as it:
        tokenize(LabeledText("e\u0301", [False, True]), tokenizer)
    assert it.value.reason == "prompt_tokens"


def test_of_several_tokens_the_longest_is_found():
    pattern = any_of(["<|a|>", "<|a|>b", "."])
    assert re.findall(pattern, "<|a|>b x <|a|>.") == ["<|a|>b", "<|a|>", "."]
    assert not re.search(any_of([]), "")
