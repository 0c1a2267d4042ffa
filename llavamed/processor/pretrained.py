"""Load published configs and processors from a folder, object storage or the hub."""

import os
import re
from importlib.util import find_spec
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, LlavaConfig, LlavaNextConfig

from llavamed.config.model import Model, Pretrained, VisionTower
from llavamed.errors import ConfigError, LlavaMedError
from llavamed.processor.forms.find import find_form
from llavamed.processor.forms.form import find_file
from llavamed.processor.forms.gguf_file import read_gguf_config
from llavamed.processor.forms.xtuner import refuse_xtuner
from llavamed.processor.tiles import Size, Tiling
from llavamed.processor.tower import tower_of
from llavamed.storage.fetch import LFS_ADVICE, fetch_once, lfs_pointers

LLAVA_TYPES = ("llava", "llava_next")
"""Model types of a whole LLaVA: one that reads an image in one tile, and one that cuts tiles."""
_LACKING_FILE = re.compile(r"path to a directory containing an? (\w*processor_config\.json) file")
"""What transformers says of a folder without the settings of a processor."""


def part_config(part: Pretrained, key: str) -> Any:
    """Return the Hugging Face config of a tower or language model, from its weights or as declared.

    A tower has the image size that the run wants.

    Args:
        part: The tower or language model in the config.
        key: Its config key, for errors.

    Raises:
        ConfigError: The weights cannot be found, or their config differs from the declared one.
    """
    if part.weights is None:
        return declared_config(part, key)
    config = _trainable_config(part.weights, f"{key}.weights")
    config = getattr(config, "vision_config", config) if key.endswith("tower") else config
    for name, declared in part.config.items():
        found = getattr(config, name, None)
        if name != "model_type" and found != declared:
            raise ConfigError(
                f"{key}.config.{name}={declared}: the weights {part.weights} have {found}; "
                "correct the declared value or remove it"
            )
    return _at_wanted_size(config, part)


def text_config(model: Model) -> Any:
    """Return the Hugging Face config of the language model.

    Raises:
        ConfigError: The config cannot be found or is refused.
    """
    if model.language_model is not None:
        return part_config(model.language_model, "model.language_model")
    assert model.weights is not None
    return whole_config(model.weights, "model.weights").get_text_config()


def declared_config(part: Pretrained, key: str) -> Any:
    """Return the Hugging Face config that a part declares, without looking at any weights.

    Raises:
        ConfigError: `config` is empty or transformers refuses it.
    """
    name = part.config.get("model_type")
    if name not in CONFIG_MAPPING:
        raise ConfigError(
            f"{key}.config.model_type={name}: transformers knows no such model; give the name of "
            "one, such as clip_vision_model or llama"
        )
    try:
        config = AutoConfig.for_model(**part.config)
    except Exception as error:  # ValueError, TypeError and transformers' own strict errors
        reason = str(error).strip().splitlines()[-1].strip()
        raise ConfigError(
            f"{key}.config: transformers refuses it: {reason}; correct the field"
        ) from error
    return _at_wanted_size(config, part)


def _at_wanted_size(config: Any, part: Pretrained) -> Any:
    if isinstance(part, VisionTower) and part.image_size is not None:
        config.image_size = part.image_size
    return config


def whole_config(source: str, key: str) -> LlavaConfig | LlavaNextConfig:
    """Return the config of a whole LLaVA or LLaVA-NeXT.

    Raises:
        ConfigError: The config cannot be loaded, or is not that of a LLaVA.
    """
    config = _trainable_config(source, key)
    if config.model_type not in LLAVA_TYPES:
        refuse_xtuner(fetch_once(source, weights=False))
        raise ConfigError(
            f"{key}={source}: its model_type is {config.model_type}, not llava; name a whole "
            "LLaVA, or make one of vision_tower and language_model"
        )
    return config


def _trainable_config(source: str, key: str) -> Any:
    """Return the Hugging Face config of weights that can be trained.

    Raises:
        ConfigError: They are quantized, or in a GGUF file that transformers does not read whole; or
            the config cannot be loaded.
    """
    config = load_pretrained(AutoConfig, source, key)
    for part in (config, config.get_text_config()):
        if quantization := getattr(part, "quantization_config", None):
            method = dict(quantization).get("quant_method")
            raise ConfigError(
                f"{key}={source}: the weights are quantized (quant_method={method}), and such "
                "weights are not trained or exported; name the weights that they were made of, "
                "and set lora.quantize=nf4 in a stage to train adapters on four bits"
            )
    return config


def pinpoints_of(config: LlavaConfig | LlavaNextConfig) -> tuple[Size, ...]:
    """Return the pinpoints of a LLaVA-NeXT; none of a LLaVA, which reads an image in one tile."""
    return tuple((high, wide) for high, wide in getattr(config, "image_grid_pinpoints", ()))


def config_tiling(config: LlavaConfig | LlavaNextConfig, key: str) -> Tiling:
    """Return how a whole LLaVA cuts images into tiles.

    Args:
        config: Its Hugging Face config.
        key: The config key that names it, for errors.

    Raises:
        ConfigError: Its tower is of an unknown kind.
    """
    tower = tower_of(config.vision_config, f"{key}: vision_config")
    number = tower.num_image_tokens(config.vision_feature_select_strategy)
    return Tiling(tower.image_size, number, pinpoints_of(config))


def set_pinpoints(model: Model, config: LlavaConfig | LlavaNextConfig) -> None:
    """Let a whole LLaVA cut images into the tiles that are asked for: its own, or a single one.

    Its weights would take any, but other sizes than it was trained with are likely a mistake.

    Raises:
        ConfigError: Others are asked for.
    """
    own, wanted = pinpoints_of(config), model.image_grid_pinpoints or ()
    if own == wanted:
        return
    edge = config_tiling(config, f"model.weights={model.weights}").tile_size
    if own and wanted == ((edge, edge),):
        config.image_grid_pinpoints = [[edge, edge]]
        return
    asked, found = ([list(size) for size in each] or "null" for each in (wanted, own))
    single = f", or to [[{edge}, {edge}]] for one tile beside the whole image" if own else ""
    raise ConfigError(
        f"model.image_grid_pinpoints={asked}: the weights {model.weights}, a {config.model_type}, "
        f"have {found}; set it to that{single}"
    )


def check_rows(tokenizer: Any, config: Any, key: str) -> None:
    """Check that a whole LLaVA has an embedding for each token. Raises: ConfigError.

    Args:
        tokenizer: The tokenizer of its text.
        config: Its Hugging Face config.
        key: The config key that names it, with its value, for errors.
    """
    rows = config.get_text_config().vocab_size
    if len(tokenizer) > rows:
        raise ConfigError(
            f"{key}: has embeddings for {rows} tokens, and the tokenizer has {len(tokenizer)}; "
            "resize its embeddings, or remove the tokens that were added"
        )


def load_pretrained(auto_class: Any, source: str, key: str, **kwargs: Any) -> Any:
    """Load a config, tokenizer or processor without running code that comes with it.

    Args:
        auto_class: The class of transformers that loads it.
        source: A folder, its URI, or a name on the hub.
        key: The config key that names it, for errors.
        **kwargs: Passed to `from_pretrained`.

    Raises:
        ConfigError: It cannot be found or loaded, or needs code of its own.
        StorageError: The URI cannot be read.
    """
    named = f"{key}={source}"
    source, gguf = split_gguf(source, key)
    check_folder(source, key)
    folder = None
    try:
        folder = fetch_once(source, weights=gguf.get("gguf_file", False))
        if gguf and auto_class is AutoConfig and (file := find_file(folder, gguf["gguf_file"])):
            return read_gguf_config(folder, file, named)
        if gguf:
            return auto_class.from_pretrained(folder, trust_remote_code=False, **gguf, **kwargs)
        form = find_form(folder)
        if form is not None and auto_class is AutoConfig:
            return form.config
        if form is not None and auto_class in form.processors:
            return form.processors[auto_class]()
        return auto_class.from_pretrained(folder, trust_remote_code=False, **kwargs)
    except LlavaMedError:
        raise
    except Exception as error:  # transformers raises KeyError and others for files of other forms
        raise ConfigError(f"{key}={source}: {loading_problem(error, folder)}") from error


def split_gguf(source: str, key: str) -> tuple[str, dict[str, str]]:
    """Return the folder of a GGUF file, and the argument of transformers that names the file.

    Args:
        source: The file, as a path, a URI or below a name on the hub; or a source of another form,
            which is returned as it is.
        key: The config key that names it, for errors.

    Raises:
        ConfigError: The package that reads such files is not installed, or there is no such file.
    """
    if not source.endswith(".gguf"):
        return source, {}
    if find_spec("gguf") is None:
        raise ConfigError(
            f"{key}={source}: needs the package gguf, which is not installed; install "
            "llavamed[gguf], or give weights in another form"
        )
    folder, name = os.path.split(source)
    if os.path.isdir(folder or ".") and not os.path.isfile(source):
        raise ConfigError(f"{key}={source}: no such file; check the path")
    return folder or ".", {"gguf_file": name}


def check_folder(source: str, key: str) -> None:
    """Raise ConfigError if a source is a path (and so no name on the hub) without a folder."""
    if "://" in source:
        return
    is_path = source.startswith(("/", ".", "~")) or source.count("/") > 1
    if is_path and not os.path.isdir(source):  # false for a name too long to be one
        raise ConfigError(f"{key}={source}: no such folder; give one, or a name on the hub")


def loading_problem(error: Exception, folder: str | None = None) -> str:
    """Return what transformers could not load and what to do, without its own advice.

    Args:
        error: What transformers raised.
        folder: The folder that it loads from, if there is one.
    """
    if folder is not None and (pointers := lfs_pointers(folder)):
        return f"holds pointers of Git LFS in place of {', '.join(pointers)}; {LFS_ADVICE}"
    first_line = (str(error).strip() or repr(error)).splitlines()[0]
    if not isinstance(error, (OSError, ValueError)):
        first_line = f"{type(error).__name__}: {first_line}"
    if "custom code" in first_line:
        return (
            "needs code that comes with it (auto_map in its config), and such code is never run; "
            "name a model whose kind transformers itself knows"
        )
    if (lacks := _LACKING_FILE.search(first_line)) is not None:
        return (
            f"has no {lacks[1]}, which says how a model reads images or text; save the processor "
            "of the model there with `save_pretrained`"
        )
    if "backend tokenizer" in first_line:
        return (
            "has no tokenizer that can be loaded; save the tokenizer there with `save_pretrained`"
        )
    return (
        f"cannot be loaded: {first_line}; give a folder that holds it, or a hub name this machine "
        "can reach"
    )
