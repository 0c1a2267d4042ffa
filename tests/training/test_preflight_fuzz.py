"""What the config accepts, preflight passes or refuses with one of our errors."""

import contextlib
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llavamed.config.load import parse_config
from llavamed.config.run import RunConfig
from llavamed.errors import LlavaMedError
from llavamed.run.curriculum import plan_curriculum
from llavamed.run.model_checks import check_language_model, check_weights
from llavamed.run.preflight import check_packages

SIZES = st.sampled_from([1, 2, 3, 4, 8, 16])
VALUES = SIZES | st.sampled_from([-1, 0, 2.5, "large", True, None, [2], {}])
FIELDS = ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"]
CHANGES = st.dictionaries(
    st.sampled_from([*FIELDS, "image_size", "patch_size", "vocab_size", "num_key_value_heads"]),
    VALUES,
    max_size=2,
)
LORA = st.none() | st.fixed_dictionaries(
    {"r": SIZES, "target_modules": st.lists(st.sampled_from(["q_proj", "nothing", ""]), max_size=2)}
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(tower={}, text={"num_attention_heads": -1}, layer=-1, lora=None)
@given(tower=CHANGES, text=CHANGES, layer=st.integers(-4, -1), lora=LORA)
def test_no_accepted_config_fails_in_preflight_with_an_error_of_others(
    tower: dict[str, Any],
    text: dict[str, Any],
    layer: int,
    lora: dict[str, Any] | None,
    tiny_config: RunConfig,
) -> None:
    tree = tiny_config.model_dump(mode="json")
    tree["model"]["vision_feature_layer"] = layer
    tree["model"]["vision_tower"]["config"] |= tower
    tree["model"]["language_model"]["config"] |= text
    tree["stages"][0] |= {"trainable": ["projector", "language_model"], "lora": lora}
    with contextlib.suppress(LlavaMedError):
        config = parse_config(tree)
        plans = plan_curriculum(config)
        check_weights(config, plans)
        check_language_model(config, plans)
        check_packages(config, plans)
