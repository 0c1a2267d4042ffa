"""The settings of DeepSpeed that a config may set are those the installed DeepSpeed has."""

from typing import Any, get_args

import pytest
from deepspeed.comm.config import CommsLoggerConfig
from deepspeed.profiling.config import DeepSpeedFlopsProfilerConfig
from deepspeed.runtime import constants
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.swap_tensor.aio_config import AIO_DEFAULT_DICT
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadParamConfig

from llavamed.config.deepspeed import (
    AsyncIo,
    CommsLogger,
    DeepSpeed,
    FlopsProfiler,
    OffloadParam,
    ZeroOptimization,
)
from llavamed.config.section import Section

LEFT_OUT = {
    *("stage", "offload_optimizer"),  # other fields of ours decide them
    *("cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory"),  # deprecated
    *("legacy_stage1", "stage3_gather_fp16_weights_on_model_save"),
    # Our engine sets or needs them as they are: norms, checkpoints and the weights of an export.
    *("compute_grad_norm", "load_from_fp32_weights", "elastic_checkpoint"),
    *("stage3_gather_16bit_weights_on_model_save", "pipeline_loading_checkpoint"),
    # Optimizers and ways to load a model that we do not use.
    *("zenflow", "override_module_apply", "leaf_module", "save_muon_momentum_buffer_in_memory"),
}


def examples(section: type[Section]) -> dict[str, list[Any]]:
    """Values of each field, of the types it declares."""
    found: dict[str, list[Any]] = {}
    for name, field in section.model_fields.items():
        of, *_ = get_args(field.annotation)
        if isinstance(of, type) and issubclass(of, Section):
            continue
        known: dict[Any, list[Any]] = {
            bool: [True, False],
            int: [1, 2],
            float: [0.5, 1.0],
            str: ["text"],
            tuple[str, ...]: [["text"]],
        }
        found[name] = known.get(of) or known.get(get_args(of)[0]) or list(get_args(of))
    return found


def test_zero_s_settings_are_deepspeed_s_without_those_left_out() -> None:
    theirs = {field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()}
    assert set(ZeroOptimization.model_fields) == theirs - LEFT_OUT
    assert theirs >= LEFT_OUT


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ZeroOptimization, DeepSpeedZeroConfig),
        (OffloadParam, DeepSpeedZeroOffloadParamConfig),
        (CommsLogger, CommsLoggerConfig),
    ],
    ids=["zero", "offload", "collectives"],
)
def test_deepspeed_takes_each_value_that_we_take(ours: type[Section], theirs: Any) -> None:
    for name, values in examples(ours).items():
        for value in values:
            assert ours.model_validate({name: value}).model_dump(mode="json") == {name: value}
            theirs(**{name: value})  # refuses unknown keys and wrong types
    with pytest.raises(ValueError, match="unknown"):
        theirs(unknown=1)


def test_the_settings_of_dictionaries_are_those_that_deepspeed_reads() -> None:
    assert set(AsyncIo.model_fields) == set(AIO_DEFAULT_DICT)
    assert set(FlopsProfiler.model_fields) == set(vars(DeepSpeedFlopsProfilerConfig({})))


def test_deepspeed_reads_each_setting_at_the_top() -> None:
    names = {value for value in vars(constants).values() if isinstance(value, str)}
    sections = {"zero_optimization", "comms_logger", "flops_profiler", "aio"}
    assert set(DeepSpeed.model_fields) - sections <= names
    for name, values in examples(DeepSpeed).items():
        for value in values:
            settings = DeepSpeed.model_validate({name: value}).model_dump(mode="json")
            DeepSpeedConfig({"train_batch_size": 1, **settings})
