"""Say what every form has in common: where its files are, and how settings and tensors convert."""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.file_download import repo_folder_name
from safetensors import safe_open
from transformers.utils import cached_file

from llavamed.errors import ConfigError

Tensors = dict[str, torch.Tensor]
Rules = Mapping[str, str | tuple[str, ...]]
"""New names by patterns of the names they replace. A tuple names the equal parts, along the first
axis, of a tensor that transformers keeps in several."""


@dataclass(frozen=True)
class Form:
    """A model that another program saved, as transformers would have it."""

    config: Any
    """Its Hugging Face config."""
    processors: Mapping[type, Callable[[], Any]]
    """What makes its processor or image processor, by the Auto class of transformers for it."""
    read_weights: Callable[[], Tensors]
    """Return its weights by the names of transformers, as far as the form knows them."""


def find_file(source: str, name: str) -> Path | None:
    """Return a file of a model, or None if there is none.

    Args:
        source: A folder, or a name on the hub.

    Raises:
        OSError: The hub does not answer, and nothing of the model is on this machine.
    """
    try:
        found = cached_file(source, name, _raise_exceptions_for_gated_repo=False)
    except OSError as error:
        if isinstance(error.__cause__, LocalEntryNotFoundError):
            if HF_HUB_OFFLINE or _is_cached(source):
                return None
            raise  # at once, because each further file would wait for the hub as long again
        if isinstance(error.__cause__, HfHubHTTPError | None):
            return None
        raise
    return None if found is None else Path(found)


def _is_cached(source: str) -> bool:
    """Return whether anything of a model on the hub is on this machine."""
    return os.path.isdir(
        os.path.join(HF_HUB_CACHE, repo_folder_name(repo_id=source, repo_type="model"))
    )


def read_json(source: str, name: str) -> dict[str, Any] | None:
    """Return a JSON file of a model, or None if there is none."""
    file = find_file(source, name)
    return None if file is None else json.loads(file.read_text(encoding="utf-8"))


def read_tensors(file: Path) -> Tensors:
    """Return the tensors of a file by name, without running code that it may hold."""
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    return dict(found.get("state_dict", found))


def rename(tensors: Tensors, rules: Rules, *, unused: str, source: str) -> Tensors:
    """Return tensors under their new names.

    Args:
        tensors: The tensors by the names of another program.
        rules: The new names.
        unused: Pattern of the names of tensors that no rule matches and that are left out.
        source: The folder or hub name that they are from, for errors.

    Raises:
        ConfigError: There are others, so the model computes something that is not converted.
    """
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        for pattern, target in rules.items():
            if match := re.fullmatch(pattern, name):
                targets = (target,) if isinstance(target, str) else target
                names = [match.expand(each) for each in targets]
                renamed |= zip(names, tensor.chunk(len(names)), strict=True)
                break
        else:
            if not re.fullmatch(unused, name):
                raise ConfigError(
                    f"{source}: has a tensor {name}, which is in no model that can be converted; "
                    "use another model, or save it in the form of transformers"
                )
    return renamed


def counterpart(
    known: Mapping[str, Any],
    settings: Mapping[str, Any],
    field: str,
    *,
    default: str,
    where: str,
    rule: str = "cannot be converted",
) -> Any:
    """Return what transformers has for a setting of the program that saved a model.

    Args:
        known: The counterparts by the values that have one.
        settings: Settings of that program.
        field: The one to convert.
        default: Its value where it is not set.
        where: The config key or model, for errors.
        rule: What is wrong with other values.

    Raises:
        ConfigError: The value has no counterpart.
    """
    value = settings.get(field) or default
    if not isinstance(value, str) or value not in known:
        raise ConfigError(
            f"{where}: {field}={value}: {rule}; use a model with one of: {', '.join(known)}"
        )
    return known[value]
