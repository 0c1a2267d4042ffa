"""Find out in which form a published model is."""

from llavamed.errors import ConfigError
from llavamed.processor.forms import llava, open_clip
from llavamed.processor.forms.form import Form, read_json
from llavamed.processor.forms.xtuner import refuse_xtuner


def find_form(source: str) -> Form | None:
    """Return a model that another program saved, or None if transformers reads it itself.

    Args:
        source: A folder, or a name on the hub.

    Raises:
        ConfigError: The form is known, and the model does not fit; or there are adapters, which
            transformers would add to a model without a word.
    """
    if read_json(source, "adapter_config.json") is not None:
        raise ConfigError(
            f"{source}: holds adapters that are not merged (adapter_config.json); merge them into "
            "their base model, and name the folder of the result"
        )
    config = read_json(source, "config.json")
    if config is not None:
        return llava.llava_form(source, config) if llava.TOWER in config else None
    if settings := read_json(source, open_clip.CONFIG):
        return open_clip.tower_form(source, settings)
    refuse_xtuner(source)  # without a config it has adapters of a language model
    return None
