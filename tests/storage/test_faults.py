"""Preparing and reading a dataset on storage that fails: the same result, or an end with a name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from llavamed.config.load import parse_config
from llavamed.config.run import RunConfig
from llavamed.data.feed.loader import Batch
from llavamed.data.prepare.job import complete_dataset, list_chunks
from llavamed.data.prepare.shards import Chunk, ShardReport, ShardWriter
from llavamed.data.prepared.dataset import INDEX, open_prepared, shard_name
from llavamed.errors import DataError, StorageError
from llavamed.storage.location import MANIFEST, Location, locate
from tests.support.faulty_s3 import FOR_EVER, Fault, FaultyS3
from tests.support.manifests import dataset_manifest
from tests.support.small_datasets import Prepared, prepare

PASSING: tuple[Fault, ...] = ("500", "503", "reset", "lost", "cut")
NUM_SAMPLES = 24


@pytest.fixture(scope="module")
def figures(
    module_proxy: FaultyS3, s3_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> Location:
    """A LLaVA dataset on S3, one of whose images is corrupt and one absent."""
    folder, random = tmp_path_factory.mktemp("figures"), np.random.default_rng(0)
    turns = [
        {"from": "human", "value": "<image>\nWhat is shown?"},
        {"from": "gpt", "value": "A lung."},
    ]
    items = []
    for number in range(NUM_SAMPLES):
        items.append({"id": f"{number}", "image": f"{number}.png", "conversations": turns})
        pixels = random.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:500])
    (folder / "5.png").unlink()
    (folder / "list.json").write_text(json.dumps(items))
    place = locate(f"{s3_uri}/faults/figures")
    place.upload(folder)
    return place


@pytest.fixture
def config(figures: Location, tiny_config: RunConfig, s3_uri: str, tmp_path: Path) -> RunConfig:
    tree: dict[str, Any] = tiny_config.model_dump(mode="json")
    read = {"source": "llava_json", "path": f"{figures}/list.json", "image_folder": str(figures)}
    tree["storage"] = f"{s3_uri}/faults/{tmp_path.name}"
    tree["data"]["datasets"]["figures"] = {"read": read, "max_bad_fraction": 0.2}
    tree["data"] |= {"rows_per_shard": 8, "row_group_size": 4}
    return parse_config(tree)


def write_shards(config: RunConfig, processor: Path) -> tuple[list[ShardReport], list[bytes]]:
    """List and write the dataset; gives the reports and the shards' bytes."""
    writer = ShardWriter(config, str(processor))
    chunks: list[Chunk] = list(list_chunks(config, ["figures"]))
    reports = [writer.write(chunk) for chunk in chunks]
    place = locate(config.datasets_directory) / "figures"
    return reports, [(place / shard_name(chunk.shard)).read_bytes() for chunk in chunks]


@pytest.mark.parametrize("seed", range(2))
def test_a_dataset_prepared_through_faults_is_the_same_to_the_bit(
    config: RunConfig, processor_folder: Path, faulty: FaultyS3, seed: int
) -> None:
    reports, shards = write_shards(config, processor_folder)
    faulty.fail_at_random(0.15, PASSING, seed)
    again, shards_again = write_shards(config, processor_folder)
    assert faulty.num_faults >= 5
    assert shards_again == shards
    assert again == reports
    bad = [row for report in again for row in report.tables.quarantine.to_pylist()]
    assert [(row["id"], row["reason"]) for row in bad] == [
        ("3", "corrupt_image"),
        ("5", "missing_image"),
    ]


@pytest.mark.parametrize("fault", ["500", "reset", "hang"])
def test_an_image_that_fails_for_a_moment_is_not_quarantined(
    config: RunConfig, processor_folder: Path, faulty: FaultyS3, fault: Fault
) -> None:
    (chunk, *_) = list_chunks(config, ["figures"])
    faulty.fail(fault, "/0.png", times=2)
    report = ShardWriter(config, str(processor_folder)).write(chunk)
    assert faulty.num_faults == 2
    assert report.tables.quarantine["id"].to_pylist() == ["3", "5"]


@pytest.mark.parametrize("fault", ["500", "503", "403"])
def test_an_image_that_stays_unreachable_stops_the_run_with_its_name(
    config: RunConfig, processor_folder: Path, faulty: FaultyS3, fault: Fault
) -> None:
    (chunk, *_) = list_chunks(config, ["figures"])
    faulty.fail(fault, "/0.png", times=FOR_EVER)
    with pytest.raises(StorageError, match=r"figures/0\.png: cannot read it: .*; check that the"):
        ShardWriter(config, str(processor_folder)).write(chunk)
    place = locate(config.datasets_directory) / "figures" / shard_name(0)
    assert not place.exists()


@pytest.mark.parametrize("name", [INDEX, MANIFEST])
def test_a_dataset_that_cannot_be_written_whole_is_no_dataset(
    config: RunConfig, processor_folder: Path, faulty: FaultyS3, name: str
) -> None:
    reports, _ = write_shards(config, processor_folder)
    place = locate(config.datasets_directory) / "figures"
    faulty.fail("500", name, times=FOR_EVER, method="PUT")
    with pytest.raises(StorageError, match=rf"figures/{name}: cannot write it"):
        complete_dataset(place, dataset_manifest(), reports, config.data.datasets["figures"])
    faulty.heal()
    assert not (place / MANIFEST).exists()
    with pytest.raises(DataError, match=r"no prepared dataset there .*; run `llavamed prepare`"):
        open_prepared(place)


@pytest.fixture(scope="module")
def prepared(module_proxy: FaultyS3, s3_uri: str) -> Prepared:
    # Shards that are no longer fetched whole, for then S3 tells their checksum.
    return prepare(f"{s3_uri}/faults/prepared", 120, num_images=(10, 14))


def batches(prepared: Prepared) -> list[Batch]:
    opened = Prepared(open_prepared(prepared.dataset.location), prepared.rows)  # all read anew
    order = opened.order(num_epochs=1)
    return [batch for step in opened.loader(order).steps() for batch in step]


@pytest.mark.parametrize("seed", range(2))
def test_training_through_faults_sees_the_same_batches_once_each(
    prepared: Prepared, faulty: FaultyS3, seed: int
) -> None:
    expected = batches(prepared)
    faulty.fail_at_random(0.3, (*PASSING, "wrong"), seed)
    found = batches(prepared)
    assert faulty.num_faults >= 3
    assert [batch.sample_ids for batch in found] == [batch.sample_ids for batch in expected]
    for batch, twin in zip(found, expected, strict=True):
        for name in ("input_ids", "targets", "position_ids", "pixel_values"):
            assert torch.equal(getattr(batch, name), getattr(twin, name))
    seen = sorted(name for batch in found for name in batch.sample_ids)
    assert seen == sorted(row["id"] for row in prepared.rows)


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("500", StorageError, r"cannot read it: .*; check that the place exists"),
        ("cut", StorageError, r"cannot read it: .*; check that the place exists"),
        ("wrong", DataError, r"shard 1 of dataset prepared is damaged \(.+\); prepare the dataset"),
    ],
)
def test_a_shard_that_stays_bad_stops_the_run_with_its_name(
    prepared: Prepared, faulty: FaultyS3, fault: Fault, error: type[Exception], message: str
) -> None:
    faulty.fail(fault, shard_name(1), times=FOR_EVER, method="GET")
    with pytest.raises(error, match=r"prepared/shards/000001\.parquet: " + message):
        batches(prepared)


def test_a_shard_that_is_gone_stops_the_run_with_its_name_at_once(
    faulty: FaultyS3, s3_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    prepared = prepare(f"{s3_uri}/faults/gone", 120)
    (prepared.dataset.location / shard_name(1)).remove()
    with pytest.raises(DataError, match=r"shard 1 of dataset gone is missing; prepare the dataset"):
        batches(prepared)
    assert not [record for record in caplog.records if record.name == "llavamed.storage.retry"]
