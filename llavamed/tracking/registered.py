"""Find the folder of an export, which may be named as a registered model of MLflow."""

import logging
import os
import re
from typing import Any

from llavamed.errors import CheckpointError, ConfigError
from llavamed.storage.location import Location, locate
from llavamed.storage.manifest import ExportManifest, find

logger = logging.getLogger(__name__)

_SCHEME = "models:/"
_FORM = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[0-9]{1,9}))")
_SETTING = "MLFLOW_TRACKING_URI"


def find_export(name: str) -> Location:
    """Return the folder of an export.

    Args:
        name: The folder at any URI, or a registered model: `models:/NAME@ALIAS` or
            `models:/NAME/VERSION`, in the registry at the environment's `MLFLOW_TRACKING_URI`.

    Raises:
        ConfigError: A registered model is named in another form, or no registry is known.
        TrackingError: The registry does not answer, or has no such model.
        CheckpointError: The folder does not hold the export that was registered.
    """
    if not name.startswith(_SCHEME):
        return locate(name)
    version = _find_version(name)
    place = locate(version.source)
    registered = version.tags.get("fingerprint")
    manifest = find(ExportManifest, place)
    if manifest is None:
        raise CheckpointError(
            f"{name}: version {version.version} is {place}, which holds no complete export; "
            "register one that exists"
        )
    if registered not in {None, manifest.fingerprint}:
        raise CheckpointError(
            f"{name}: version {version.version} has fingerprint={registered}, and {place} has "
            f"{manifest.fingerprint}: another model was written there; register it again"
        )
    logger.info("%s is version %s, %s", name, version.version, place)
    return place


def _find_version(name: str) -> Any:
    """Return MLflow's version of a registered model."""
    form = _FORM.fullmatch(name)
    if form is None:
        raise ConfigError(
            f"export={name}: must be {_SCHEME}NAME@ALIAS or {_SCHEME}NAME/VERSION; correct it"
        )
    uri = os.environ.get(_SETTING)
    if not uri:
        raise ConfigError(
            f"export={name}: {_SETTING} is not set; set it to the server whose registry has the "
            "model"
        )
    from llavamed.tracking.mlflow_client import TrackingClient

    client = TrackingClient(uri, _SETTING)
    if form["alias"]:
        return client.get_model_version_by_alias(form["name"], form["alias"])
    return client.get_model_version(form["name"], form["version"])
