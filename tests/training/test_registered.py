"""A registered model stands for the export that its version names, and for no other."""

from pathlib import Path

import pytest

from llavamed.errors import CheckpointError, ConfigError, TrackingError
from llavamed.storage.location import locate
from llavamed.storage.manifest import write
from llavamed.tracking.mlflow_client import TrackingClient
from llavamed.tracking.registered import find_export
from tests.support.manifests import export_manifest


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A registry with a model that has no version."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db"
    TrackingClient(uri).create_registered_model("known")
    return uri


@pytest.fixture
def client(registry: str, monkeypatch: pytest.MonkeyPatch) -> TrackingClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry)
    return TrackingClient(registry)


def register(client: TrackingClient, name: str, folder: Path, fingerprint: str) -> None:
    write(locate(str(folder)), export_manifest(fingerprint=fingerprint))
    tags = {"fingerprint": fingerprint}
    version = client.create_model_version(name, str(folder), tags=tags)
    client.set_registered_model_alias(name, "champion", version.version)


def test_an_alias_stands_for_the_export_it_was_moved_to(
    client: TrackingClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "llavamed.tracking")
    client.create_registered_model("rad")
    for number in (1, 2):
        register(client, "rad", tmp_path / f"v{number}", f"of-{number}")
        assert str(find_export("models:/rad@champion")) == str(tmp_path / f"v{number}")
    assert str(find_export("models:/rad/1")) == str(tmp_path / "v1")
    assert f"models:/rad/1 is version 1, {tmp_path}/v1" in caplog.text
    assert find_export(str(tmp_path)) == locate(str(tmp_path))


def test_a_folder_that_changed_since_is_refused(client: TrackingClient, tmp_path: Path) -> None:
    client.create_registered_model("changed")
    register(client, "changed", tmp_path, "first")
    write(locate(str(tmp_path)), export_manifest(fingerprint="other"))
    with pytest.raises(CheckpointError, match=r"version 1 has fingerprint=first, and .* has other"):
        find_export("models:/changed@champion")
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="which holds no complete export; register one that"):
        find_export("models:/changed/1")


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("models:/known@runner-up", "runner-up"),
        ("models:/known/7", "name=known, version=7"),
        ("models:/nobody@champion", "nobody"),
    ],
)
def test_what_the_registry_lacks_is_named(name: str, found: str) -> None:
    with pytest.raises(
        TrackingError, match=f"^MLFLOW_TRACKING_URI=sqlite.*: its registry has no .*{found}"
    ):
        find_export(name)


@pytest.mark.parametrize(
    "name",
    ["models:/", "models:/rad", "models:/rad@", "models:/rad/latest", "models:/a/b@champion"],
)
def test_other_forms_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"export={name}: must be models:/NAME@ALIAS or"):
        find_export(name)


def test_the_address_of_the_registry_must_be_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI is not set; set it to the server"):
        find_export("models:/rad@champion")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "ftp://nowhere")
    with pytest.raises(
        TrackingError, match=r"^MLFLOW_TRACKING_URI=ftp://nowhere: is not an address"
    ):
        find_export("models:/rad@champion")
