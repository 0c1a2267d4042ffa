"""The bytes of an answer's tokens are those of its text, whatever a token is a part of."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from llavamed.serve.openai import token_logprob
from llavamed.serve.spelling import Spelling
from tests.support.small_tokenizers import chatml, llama_like

TOKENIZERS = [llama_like(), chatml()]
SPELLINGS = [Spelling(tokenizer) for tokenizer in TOKENIZERS]


@pytest.mark.parametrize("number", range(2), ids=["bytes that fall back", "all bytes"])
@given(text=st.text(st.sampled_from("ab #é漢🫁\n<x0"), min_size=1, max_size=14))
def test_the_bytes_of_tokens_add_up_to_the_text(number: int, text: str) -> None:
    tokenizer, spell = TOKENIZERS[number], SPELLINGS[number].spell
    ids = tokenizer.encode(f"a{text}", add_special_tokens=False)
    ids.append(tokenizer.eos_token_id)
    spelled = b"".join(bytes(spell(token).data or ()) for token in ids)
    assert spelled.decode().removeprefix(" ") == f"a{text}"


def test_a_token_whose_name_tells_no_bytes_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(tokens: list[int], **_: object) -> str:
        return "a" + "\N{REPLACEMENT CHARACTER}" * (tokens[-1] == 7)

    tokenizer: PreTrainedTokenizerBase = llama_like()
    monkeypatch.setattr(tokenizer, "decode", decode)
    monkeypatch.setattr(tokenizer, "convert_ids_to_tokens", lambda _: "\N{REPLACEMENT CHARACTER}")
    token = Spelling(tokenizer).spell(7)
    assert token_logprob(token, -1.0, [])["bytes"] is None
