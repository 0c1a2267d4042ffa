"""Samples are no longer than a language model can tell positions apart, whatever is beside them."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaModel

from llavamed.config.run import RunConfig
from llavamed.errors import ConfigError
from llavamed.run.preflight import check_positions
from tests.support.training_setup import make_job

ORIGINAL, MOST = 16, 64
LLAMA_3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0},
    "llama3": {"factor": 4.0, **LLAMA_3},
    "longrope": {"factor": 4.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4},
    "dynamic": {"factor": 4.0},
}
BOUNDS = dict.fromkeys(ROPES, MOST) | {"longrope": ORIGINAL, "dynamic": ORIGINAL}
each_kind = pytest.mark.parametrize("kind", list(ROPES))


def language_model(kind: str) -> LlamaConfig:
    rope = {"rope_type": kind, "rope_theta": 1e4, **ROPES[kind]}
    if kind not in ("default", "linear"):
        rope["original_max_position_embeddings"] = ORIGINAL
    return LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=50,
        max_position_embeddings=ORIGINAL if kind == "dynamic" else MOST,
        rope_parameters=rope,
        initializer_range=0.5,
    )


@each_kind
def test_within_the_bound_a_sample_does_not_depend_on_those_beside_it(kind: str) -> None:
    torch.manual_seed(0)
    model = LlamaModel(language_model(kind)).eval()
    for longest in (8, BOUNDS[kind]):
        ids = torch.randint(50, (1, 6 + longest))
        places = torch.cat([torch.arange(6), torch.arange(longest)])[None]
        with torch.no_grad():
            alone = model(ids[:, :6], position_ids=places[:, :6], use_cache=False)
            packed = model(ids, position_ids=places, use_cache=False)
        torch.testing.assert_close(
            packed.last_hidden_state[:, :6], alone.last_hidden_state, rtol=1e-4, atol=1e-4
        )


@each_kind
@settings(max_examples=25, derandomize=True, deadline=None)
@given(lengths=st.lists(st.integers(1, 2 * MOST), min_size=1, max_size=9))
def test_samples_beyond_the_bound_are_refused_and_the_advice_is_accepted(
    tiny_config: RunConfig, kind: str, lengths: list[int]
) -> None:
    job, language, bound = make_job(tiny_config), language_model(kind), BOUNDS[kind]
    samples = np.array(lengths)
    if samples.max() <= bound:
        check_positions(job, language, samples)
        return
    with pytest.raises(ConfigError) as error:
        check_positions(job, language, samples)
    counted = f"{(samples > bound).sum()} samples of stage align are longer than the {bound} pos"
    assert counted in str(error.value)
    assert f"longest has {samples.max()} tokens" in str(error.value)
    advised = re.search(r"; set it to (\d+), and data.directory to another", str(error.value))
    assert advised is not None
    check_positions(job, language, samples.clip(max=int(advised[1])))


def test_rotary_embeddings_may_differ_between_layers(tiny_config: RunConfig) -> None:
    language = language_model("default")
    language.rope_parameters = {
        "full_attention": language_model("longrope").rope_parameters,
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    job = make_job(tiny_config)
    check_positions(job, language, np.array([ORIGINAL]))
    with pytest.raises(ConfigError, match=r"of rope_type longrope\), the longest has 17 tokens"):
        check_positions(job, language, np.array([ORIGINAL + 1]))
