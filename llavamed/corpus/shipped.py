"""Read a YAML file that comes with the package, or the one that a user names in its place."""

from importlib import resources
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from llavamed.errors import ConfigError
from llavamed.storage.location import locate

Form = TypeVar("Form", bound=BaseModel)


def load_shipped(
    form: type[Form], path: str | None, *, package: str, key: str, verdict: str, parts: str
) -> Form:
    """Read a file at any URI, or the one that a package ships.

    Args:
        form: What the file must hold.
        path: The URI, or None for the file of the package.
        package: The package that holds `KEY.yaml`.
        key: The config key that names the file, for errors.
        verdict: What a file of another form is not, for errors, such as `is not a prompt`.
        parts: What a file holds, for errors.

    Raises:
        ConfigError: The file cannot be read or has another form.
    """
    try:
        if path is None:
            text = (resources.files(package) / f"{key}.yaml").read_text(encoding="utf-8")
        else:
            text = locate(path).read_bytes().decode()
        return form.model_validate(yaml.safe_load(text))
    except FileNotFoundError as error:
        raise ConfigError(f"{key}={path}: no such file; check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValidationError) as error:
        raise ConfigError(
            f"{key}={path}: {verdict} ({' '.join(str(error).split())[:200]}); give {parts} as the "
            f"{key}.yaml of the package has them"
        ) from error
