"""The Ray Data job on real files, on a real S3 server, and twice."""

from pathlib import Path

import pytest

from llavamed.config.load import load_config
from llavamed.config.schema import RunConfig
from llavamed.data.prepare import prepare
from llavamed.errors import DataError
from llavamed.lease import LEASE
from llavamed.storage import locate
from tests.integration.conftest import DEMO, SMALL

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def files_of(folder: Path) -> dict[str, bytes]:
    """All but the lease, which tells who prepared them and when."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != LEASE
    }


def test_preparing_again_gives_the_same_bytes_and_progress_is_told(
    small: RunConfig, tmp_path: Path
) -> None:
    told: list[tuple[str, int, int]] = []
    names = ["captions", "questions"]
    first = prepare(small, names, lambda *progress: told.append(progress))
    other = small.model_copy(update={"storage": str(tmp_path / "other")})
    prepare(other, names)
    assert files_of(tmp_path / "datasets") == files_of(tmp_path / "other" / "datasets")
    assert {(name, done) for name, done, total in told if done == total} == {
        ("captions", 40),
        ("questions", first["questions"].num_samples),
    }
    told.clear()
    prepare(small, names, lambda *progress: told.append(progress))
    assert not told, "what is prepared is not prepared again"


def test_real_vqa_rad_is_counted_and_quarantined(reference_data: Path, tmp_path: Path) -> None:
    read = f"{{source: vqa_rad, path: {reference_data}/data/vqa-rad}}"
    overrides = [f"storage={tmp_path}", f"data.datasets.rad.read={read}"]
    strict = load_config(DEMO, overrides)
    with pytest.raises(DataError, match=r"max_bad_fraction=0.01: \d+ of 3064 samples.*missing_im"):
        prepare(strict, ["rad"])
    assert not (locate(strict.datasets_directory) / "rad" / "manifest.json").exists()

    lenient = load_config(DEMO, [*overrides, "data.datasets.rad.max_bad_fraction=0.9"])
    dataset = prepare(lenient, ["rad"])["rad"]
    assert dataset.num_samples + dataset.manifest["num_quarantined"] == 3064
    assert set(dataset.manifest["quarantined"]) == {"missing_image"}
    assert dataset.manifest["num_duplicates"] > 0, "questions that were asked twice are kept"
    quarantine = (dataset.location / "quarantine.parquet").read_table().to_pylist()
    assert len(quarantine) == dataset.manifest["num_quarantined"]
    assert all("no such file" in row["detail"] for row in quarantine)

    changed = load_config(
        DEMO, [*overrides, "data.datasets.rad.max_bad_fraction=0.9", "data.max_length=128"]
    )
    with pytest.raises(DataError, match=r"prepared with another max_length; set data.directory"):
        prepare(changed, ["rad"])


def test_to_object_storage(s3_uri: str) -> None:
    config = load_config(DEMO, [*SMALL, f"storage={s3_uri}/prepare"])
    dataset = prepare(config, ["captions"])["captions"]
    assert dataset.num_samples == 40
    dataset.check_shards()
    assert str(dataset.location).startswith("s3://")
    (dataset.location / "shards" / "000001.parquet").remove()
    with pytest.raises(DataError, match=r"1 of 3 shards are missing.*000001"):
        dataset.check_shards()
