"""Recognize LLaVAs in the form of xtuner, which are a language model with further folders."""

from llavamed.errors import ConfigError
from llavamed.processor.forms.form import read_json


def refuse_xtuner(source: str) -> None:
    """Raise ConfigError, with how to convert it, if a model is a LLaVA in the form of xtuner.

    Args:
        source: A folder, or a name on the hub.
    """
    projector = read_json(source, "projector/config.json") or {}
    if projector.get("model_type") == "projector":
        raise ConfigError(
            f"{source}: is a LLaVA in the form of xtuner, with a folder `projector` next to its "
            "language model; convert it with xtuner's convert_xtuner_weights_to_hf.py, and name "
            "the folder of the result"
        )
