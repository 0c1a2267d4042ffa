"""Let a LLaVA compute with faster kernels, which change its numbers by no more than rounding.

No other module imports Liger.
"""

import os
import shutil
import sys
from typing import Any

import torch

from llavamed.config.engine import Kernels
from llavamed.errors import ConfigError
from llavamed.model.attention import attend_per_sample

_COMPILERS = ("gcc", "clang")
"""C compilers that Triton looks for; inductor needs g++ or clang++, which come with them."""


def use_kernels(model: Any, kernels: Kernels, device: torch.device) -> None:
    """Let a LLaVA attend within each sample by itself, with the kernels of its stage.

    Args:
        model: A LLaVA, without adapters.
        kernels: The kernels.
        device: Where it will compute.

    Raises:
        ConfigError: The kernels cannot run on this machine or with this model.
    """
    _check_machine(kernels, device)
    attend_per_sample(model, varlen=kernels.varlen)
    if kernels.liger:
        use_liger(model.model.language_model)
    if kernels.compile:
        for layer in model.model.language_model.layers:
            layer.compile()


def use_liger(decoder: Any) -> None:
    """Give the norms and feed-forward layers of a language model Liger's kernels.

    Rotary embeddings stay as they are, because Liger replaces them for all models of this process;
    and so does the loss, which we compute from the supervised tokens alone.

    Raises:
        ConfigError: Liger is not installed, or has no kernels for this kind of language model.
    """
    apply = check_liger(decoder.config.model_type)
    # Liger also replaces classes for the models to come, which may run on a CPU: take that back.
    module = vars(sys.modules[type(decoder).__module__])
    before = dict(module)
    apply(model=decoder, rope=False, cross_entropy=False, fused_linear_cross_entropy=False)
    module.update(before)


def check_liger(model_type: str) -> Any:
    """Return the function of Liger that gives a language model its kernels.

    Args:
        model_type: Transformers' name of the kind of language model.

    Raises:
        ConfigError: Liger is not installed, or has no kernels for this kind.
    """
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except ImportError as error:
        raise ConfigError(
            "engine.kernels.liger=true: needs the package liger-kernel, which is not installed; "
            "install llavamed[liger], or set it to false"
        ) from error
    if model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ConfigError(
            f"engine.kernels.liger=true: Liger has no kernels for language models of the kind "
            f"{model_type}; set it to false"
        )
    return MODEL_TYPE_TO_APPLY_LIGER_FN[model_type]


def _check_machine(kernels: Kernels, device: torch.device) -> None:
    for name in ("liger", "varlen"):
        if getattr(kernels, name) and device.type != "cuda":
            raise ConfigError(
                f"engine.kernels.{name}=true: its kernels are for NVIDIA GPUs, and this worker "
                f"computes on {device.type}; set it to false, or scaling.use_gpu to true"
            )
    has_compiler = "CC" in os.environ or any(map(shutil.which, _COMPILERS))
    if (kernels.compile or kernels.liger) and not has_compiler:
        name = "compile" if kernels.compile else "liger"
        raise ConfigError(
            f"engine.kernels.{name}=true: compiles kernels when they are first used, and this "
            f"machine has none of the C compilers {', '.join(_COMPILERS)}; install one, or set it "
            "to false"
        )
