"""Build Hugging Face's LLaVA from a tower and a language model, or load it whole.

With `image_grid_pinpoints` it is Hugging Face's LLaVA-NeXT, which cuts images into tiles.

None of its classes is ours, so plain transformers loads what is exported.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)
from transformers.utils.logging import disable_progress_bar

from llavamed.config.engine import Precision
from llavamed.config.model import Model, Pretrained
from llavamed.errors import CheckpointError, ConfigError
from llavamed.model.attention import avoid_cudnn, check_attention
from llavamed.model.positions import at_image_size
from llavamed.model.projector import ACTIVATIONS, make_projector
from llavamed.processor.build import Processor, num_image_tokens
from llavamed.processor.forms.find import find_form
from llavamed.processor.pretrained import (
    LLAVA_TYPES,
    config_tiling,
    declared_config,
    loading_problem,
    part_config,
    pinpoints_of,
    set_pinpoints,
    split_gguf,
    whole_config,
)
from llavamed.processor.tiles import check_pinpoints
from llavamed.processor.tower import UNUSED_WEIGHTS, check_feature_layer, tower_of
from llavamed.storage.fetch import fetch_once

disable_progress_bar()  # our log lines already report each load and save

Llava: TypeAlias = LlavaForConditionalGeneration | LlavaNextForConditionalGeneration

LLAVAS = {"llava": LlavaForConditionalGeneration, "llava_next": LlavaNextForConditionalGeneration}
"""The classes of a whole LLaVA, by `LLAVA_TYPES`."""
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
TOWER_KEY = "model.vision_tower.weights"
_LAYER = re.compile(r"\.\d+\.")
VOCABULARY_MULTIPLE = 64
"""Embedding rows are padded to a multiple of this, as tensor cores prefer."""


def build_model(model: Model, processor: Processor, *, seed: int, precision: Precision) -> Llava:
    """Return the initial model of a run, which depends only on the config and the seed.

    Raises:
        ConfigError: Weights cannot be found or do not fit together.
        CheckpointError: Weights are damaged or incomplete.
    """
    if model.weights is not None:
        whole = load_model(model.weights, precision, model.attn_implementation)
        set_pinpoints(model, whole.config)
        return whole
    assert model.vision_tower is not None
    assert model.language_model is not None
    vision = part_config(model.vision_tower, "model.vision_tower")
    text = part_config(model.language_model, "model.language_model")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        language_model = _make_part(
            AutoModelForCausalLM, model.language_model, "model.language_model", text, precision
        )
        # Use the tower's config: the folder may hold a whole CLIP or SigLIP with a text encoder.
        tower_class = MODEL_MAPPING[type(vision)]
        tower = _make_part(tower_class, model.vision_tower, "model.vision_tower", vision, precision)
        tower = at_image_size(tower, vision.image_size)
        _fit_vocabulary(language_model, processor, model.language_model)
        config = llava_config(model, tower.config, language_model.config)
        config.image_token_index = processor.image_token_id
        config.image_seq_length = num_image_tokens(processor)
        config.text_config.architectures = [type(language_model).__name__]  # other engines need it
        projector = make_projector(config).to(DTYPES[precision])
        newline = torch.randn(config.text_config.hidden_size) / config.text_config.hidden_size**0.5
    with torch.device("meta"):
        llava = _make_llava(config)
    llava.model.vision_tower = tower
    llava.model.multi_modal_projector = projector
    if isinstance(config, LlavaNextConfig):
        llava.model.image_newline = nn.Parameter(newline.to(DTYPES[precision]))
    llava.model.language_model = language_model.get_decoder()
    llava.lm_head = language_model.get_output_embeddings()
    llava.generation_config = language_model.generation_config
    llava.set_attn_implementation(model.attn_implementation)
    return llava


def load_model(source: str | Path, precision: Precision, attn_implementation: str) -> Llava:
    """Load a whole LLaVA or LLaVA-NeXT from a folder, its URI, or a name on the hub.

    Raises:
        CheckpointError: It cannot be found, or is not a whole LLaVA.
    """
    avoid_cudnn()
    return _read_weights(
        None,
        str(source),
        "weights",
        dtype=DTYPES[precision],
        attn_implementation=attn_implementation,
    )


def check_image_token(config: LlavaConfig | LlavaNextConfig, image_token_id: int, key: str) -> None:
    """Check that a LLaVA looks for images where datasets have them. Raises: ConfigError.

    Args:
        config: The config of the LLaVA.
        image_token_id: The id of the token of images in the datasets.
        key: The config key that names it, for errors.
    """
    if config.image_token_id != image_token_id:
        raise ConfigError(
            f"{key}: its token of images is {config.image_token_id}, but that of the datasets, "
            f"which are prepared by the model section, is {image_token_id}; name these weights in "
            "model.weights too"
        )


def shape_on_meta(model: Model) -> Llava:
    """Return the model on `meta`, without memory, to count its parameters.

    A part whose shape the config declares is taken from there; of others the config that comes with
    the weights is read, and no weights.

    Raises:
        ConfigError: There is no config with the weights, or it does not fit.
    """
    if model.weights is not None:
        config = whole_config(model.weights, "model.weights")
        set_pinpoints(model, config)
    else:
        assert model.vision_tower is not None
        assert model.language_model is not None
        vision, text = (
            declared_config(part, key) if part.config else part_config(part, key)
            for key, part in (
                ("model.vision_tower", model.vision_tower),
                ("model.language_model", model.language_model),
            )
        )
        config = llava_config(model, vision, text)
    with torch.device("meta"):
        return _make_llava(config)


def image_arguments(
    model: Any, pixel_values: torch.Tensor, image_sizes: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return images as the arguments of a forward pass; only a LLaVA-NeXT reads their sizes.

    Args:
        model: A LLaVA, or DeepSpeed's engine around one.
        pixel_values: float32 tensor of shape [tiles, 3, size, size].
        image_sizes: int64 tensor of shape [images, 2] on the CPU, where the model reads it.
    """
    sizes = {"image_sizes": image_sizes} if pinpoints_of(_config(model)) else {}
    return {"pixel_values": pixel_values, **sizes}


def _config(model: Any) -> LlavaConfig | LlavaNextConfig:
    return getattr(model, "module", model).config


def check_forward(
    config: LlavaConfig | LlavaNextConfig, key: str, attn_implementation: str = "sdpa"
) -> None:
    """Pass an image and a few tokens through a LLaVA on `meta`, before anything is started.

    Args:
        config: The config of the LLaVA.
        key: The config key that names it, for errors.
        attn_implementation: The attention kernels of the run.

    Raises:
        ConfigError: The tower is of an unknown kind, lacks the hidden state, or makes another
            number of tokens than the text has; or the language model accepts no embeddings, or
            has no such attention.
    """
    tower = tower_of(config.vision_config, f"{key}: vision_config")
    check_feature_layer(config.vision_feature_layer, tower, f"{key}: vision_feature_layer")
    tiles = config_tiling(config, key)
    if tiles.pinpoints:
        check_pinpoints(tiles.pinpoints, tower, f"{key}: image_grid_pinpoints")
    size = (tiles.tile_size, tiles.tile_size)
    number = tiles.num_tokens(size)
    try:
        with torch.device("meta"):
            model = _make_llava(config)
            _check_dense(model, key)
            check_attention(model, attn_implementation, key)
            pixels = torch.empty(tiles.num_tiles(size), 3, *size)
            images = image_arguments(model, pixels, torch.tensor([size], device="cpu"))
            features = torch.stack(list(model.get_image_features(**images).pooler_output))
            # A mask of four dimensions, because others are read, and `meta` holds no values.
            mask = torch.zeros(1, 1, number, number)
            model.model.language_model(inputs_embeds=features, attention_mask=mask, use_cache=False)
    except ConfigError:
        raise
    except Exception as error:  # the code of a tower may raise anything
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{key}: an image cannot pass through the model: {type(error).__name__}: {reason}; "
            "correct its config, or use another tower or language model"
        ) from error
    if features.shape[1] != number:
        raise ConfigError(
            f"{key}: its tower makes {features.shape[1]} tokens of an image, not the {number} of "
            f"image_size={tower.image_size} and patch_size={tower.patch_size}; correct its config"
        )


def llava_config(model: Model, vision: Any, text: Any) -> LlavaConfig | LlavaNextConfig:
    """Return the config of a LLaVA of these two parts, or of a LLaVA-NeXT if it cuts tiles.

    Args:
        model: The model section of the config.
        vision: The Hugging Face config of the tower.
        text: The Hugging Face config of the language model.

    Raises:
        ConfigError: The tower is of an unknown kind, lacks the hidden state, or does not fit the
            pinpoints; or the language model is none, or has parts besides text.
    """
    is_causal = type(text) in MODEL_FOR_CAUSAL_LM_MAPPING
    if not is_causal or text.get_text_config() is not text:
        problem = "has parts besides text" if is_causal else "is not a causal language model"
        raise ConfigError(
            f"model.language_model.config.model_type={text.model_type}: {problem}; name the "
            "weights of one for text alone, of a kind such as llama or qwen3"
        )
    tower = tower_of(vision, "model.vision_tower.config")
    check_feature_layer(model.vision_feature_layer, tower, "model.vision_feature_layer")
    kind, tiles = LlavaConfig, {}
    if model.image_grid_pinpoints is not None:
        check_pinpoints(model.image_grid_pinpoints, tower, "model.image_grid_pinpoints")
        kind = LlavaNextConfig
        tiles = {"image_grid_pinpoints": [list(size) for size in model.image_grid_pinpoints]}
    return kind(
        vision_config=vision,
        text_config=text,
        projector_hidden_act=ACTIVATIONS[model.projector],
        vision_feature_layer=model.vision_feature_layer,
        vision_feature_select_strategy=tower.strategy,
        tie_word_embeddings=text.tie_word_embeddings,  # a LlavaNextConfig does not look for itself
        **tiles,
    )


def _check_dense(model: Llava, key: str) -> None:
    """Raise ConfigError if a language model is a mixture of experts."""
    if any(".experts." in name for name, _ in model.named_parameters()):
        raise ConfigError(
            f"{key}: {model.config.text_config.model_type} is a mixture of experts, and a LLaVA of "
            "transformers has no loss that keeps them in balance; use a dense language model"
        )


def _make_llava(config: LlavaConfig | LlavaNextConfig) -> Llava:
    return LLAVAS[config.model_type](config)


def _make_part(
    auto_class: Any, part: Pretrained, key: str, config: Any, precision: Precision
) -> Any:
    dtype = DTYPES[precision]
    if part.weights is not None:
        return _read_weights(auto_class, part.weights, f"{key}.weights", dtype=dtype)
    make = getattr(auto_class, "from_config", None) or auto_class._from_config
    return make(config, dtype=dtype)  # unlike `.to`, this keeps rotary frequencies in float32


def _read_weights(auto_class: Any, source: str, key: str, **settings: Any) -> Any:
    """Load a model with all its weights, without running code that comes with them.

    Raises:
        CheckpointError: The weights cannot be found or loaded, or are incomplete.
    """
    folder: str | None = None
    try:
        place, gguf = split_gguf(source, key)
        folder = fetch_once(place, weights=gguf.get("gguf_file", True))
        form = None if gguf else find_form(str(folder))
        if form is not None:
            config = form.config
            settings |= {"config": config, "state_dict": form.read_weights()}
        else:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **gguf)
        if auto_class is None and config.model_type not in LLAVA_TYPES:
            raise ValueError(f"its model_type is {config.model_type}, not llava")
        # An Auto class would read a config from a folder, and a form has none.
        auto_class = auto_class or LLAVAS[config.model_type]
        model, report = auto_class.from_pretrained(
            folder if form is None else None,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **gguf,
            **settings,
        )
        if gguf:
            del model.config.quantization_config  # they are dequantized
        _state_ties(model)
    except (OSError, ValueError, RuntimeError, EOFError, SafetensorError, UnpicklingError) as error:
        raise CheckpointError(f"{key}={source}: {loading_problem(error, folder)}") from error
    wrong = report["missing_keys"] | {name for name, *_ in report["mismatched_keys"]}
    if key == TOWER_KEY:
        wrong = {name for name in wrong if not name.startswith(UNUSED_WEIGHTS)}
    if wrong:
        raise CheckpointError(
            f"{key}={source}: {len(wrong)} tensors are missing or of another shape: "
            f"{_kinds(wrong)}; name a folder that holds a whole {type(model).__name__}"
        )
    if left := _left_out(model, report["unexpected_keys"]):
        raise CheckpointError(
            f"{key}={source}: {len(left)} tensors have no place in the model of its config.json: "
            f"{_kinds(left)}; correct num_hidden_layers, attention_bias or the like there, or "
            "remove them from the weights"
        )
    return model


def _kinds(names: set[str]) -> str:
    """Return the names of tensors with N for the numbers of layers."""
    return ", ".join(sorted({_LAYER.sub(".N.", name) for name in names}))


def _left_out(model: Any, unexpected: Iterable[str]) -> set[str]:
    """Return which tensors belong to modules of a model that has no place for them.

    These are further layers, or a bias that the config does not ask for. Other tensors belong to
    other parts of a published model, such as the text encoder of a CLIP.
    """
    known = {_LAYER.sub(".N.", name) for name in model.state_dict()}
    modules = {name for name, _ in model.named_modules() if name}
    return {
        name
        for name in unexpected
        if _LAYER.sub(".N.", name) in known or name.rpartition(".")[0] in modules
    }


def _state_ties(model: Any) -> None:
    """Let a config say whether the embeddings and the output layer are one table, as loaded.

    Where a config ties them and the weights hold two, two are loaded. Then a new row would make
    them one, and so would another engine that reads the config of an export.
    """
    head = model.get_output_embeddings()
    if head is not None:
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = head.weight is model.get_input_embeddings().weight


def _fit_vocabulary(language_model: Any, processor: Processor, part: Pretrained) -> None:
    rows, needed = language_model.config.vocab_size, len(processor.tokenizer)
    if needed <= rows:
        return
    if part.weights is None:
        raise ConfigError(
            f"model.language_model.config.vocab_size={rows}: the tokenizer has {needed} entries; "
            f"set it to at least {needed}"
        )
    language_model.resize_token_embeddings(needed, pad_to_multiple_of=VOCABULARY_MULTIPLE)
