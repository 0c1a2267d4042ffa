"""The Ray Data job on real files, on a real S3 server, and twice."""

import csv
import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llavamed.config.load import load_config
from llavamed.config.run import RunConfig
from llavamed.data.prepare.job import prepare
from llavamed.errors import DataError
from llavamed.storage.lease import LEASE
from llavamed.storage.location import locate
from tests.cluster.conftest import DEMO, SMALL

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def files_of(folder: Path) -> dict[str, bytes]:
    """All but the lease, which tells who prepared them and when."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and LEASE not in path.parts
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
    assert dataset.num_samples + dataset.manifest.num_quarantined == 3064
    assert set(dataset.manifest.quarantined) == {"missing_image"}
    assert dataset.manifest.num_duplicates > 0, "questions that were asked twice are kept"
    quarantine = (dataset.location / "quarantine.parquet").read_table().to_pylist()
    assert len(quarantine) == dataset.manifest.num_quarantined
    assert all("no such file" in row["detail"] for row in quarantine)

    changed = load_config(
        DEMO, [*overrides, "data.datasets.rad.max_bad_fraction=0.9", "data.max_length=128"]
    )
    with pytest.raises(
        DataError, match=r"prepared with other settings: max_length=\d+, was \d+; restore"
    ):
        prepare(changed, ["rad"])


def test_published_question_sets_pass_through_the_whole_job(tmp_path: Path) -> None:
    """In the form of each; of each question, one of every eight has an image that is not there."""
    numbers, places = range(16), write_question_sets(tmp_path / "published", 14)
    reads = {
        "slake": f"{{source: slake, path: {places}/slake, languages: [en, zh]}}",
        "path": f"{{source: path_vqa, path: {places}/path}}",
        "pmc": f"{{source: pmc_vqa, path: {places}/pmc/train.csv, image_folder: {places}/pmc}}",
        "web": f"{{source: webdataset, path: '{places}/web/{{00..01}}.tar'}}",
    }
    config = load_config(
        DEMO,
        [
            *(f"storage={tmp_path}", "data.row_group_size=4", "data.rows_per_shard=8"),
            *(f"data.datasets.{name}.read={read}" for name, read in reads.items()),
            *(f"data.datasets.{name}.max_bad_fraction=0.2" for name in reads),
        ],
    )
    for name, dataset in prepare(config, list(reads)).items():
        dataset.check_shards()
        shards, groups = dataset.column("shard"), dataset.column("row_group")
        found = [
            turn["text"]
            for shard, group in sorted(set(zip(shards.tolist(), groups.tolist(), strict=True)))
            for turns in dataset.read_samples(shard, group, ["turns"]).column("turns").to_pylist()
            for turn in turns[:1]
        ]
        is_whole = name == "web"  # a tar without an image is another sample, not a bad one
        asked = [number for number in numbers if is_whole or number < 14]
        assert len(found) == dataset.num_samples == len(asked), name
        for number, text in zip(asked, sorted(found), strict=True):
            assert f"number {number:02d}" in text
        assert dataset.manifest.num_quarantined == len(numbers) - len(asked)


def write_question_sets(folder: Path, num_images: int) -> Path:
    """SLAKE, PathVQA, PMC-VQA and tars of 16 questions; the last ones' images are missing."""
    rows = [{"text": f"What is number {n:02d}?", "image": f"{n:02d}.jpg"} for n in range(16)]
    images = {}
    for number, row in enumerate(rows):
        sink = io.BytesIO()
        texture = np.random.default_rng(number).integers(0, 255, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(texture).resize((60, 50)).save(sink, "JPEG")
        images[row["image"]] = sink.getvalue()
    for below in ("slake/imgs", "path/images/train", "path/qas/train", "pmc", "web"):
        (folder / below).mkdir(parents=True)
    for name in list(images)[:num_images]:
        for below in ("slake/imgs", "path/images/train", "pmc"):
            (folder / below / name).write_bytes(images[name])
    slake = [
        {"qid": number, "q_lang": ("en", "zh")[number % 2], "img_name": row["image"]}
        | {"question": row["text"], "answer": "A spot", "answer_type": "OPEN"}
        for number, row in enumerate(rows)
    ]
    (folder / "slake" / "train.json").write_text(json.dumps(slake))
    pickled = [
        {"image": row["image"].removesuffix(".jpg"), "question": row["text"], "answer": "yes"}
        for row in rows
    ]
    (folder / "path" / "qas" / "train" / "train_qa.pkl").write_bytes(pickle.dumps(pickled))
    with (folder / "pmc" / "train.csv").open("w", newline="") as file:
        choices = {f"Choice {letter}": f"a spot {letter}" for letter in "ABCD"}
        writer = csv.DictWriter(file, ["Figure_path", "Question", "Answer", *choices])
        writer.writeheader()
        for row in rows:
            known = {"Figure_path": row["image"], "Question": row["text"], "Answer": "B"}
            writer.writerow(known | choices)
    for number in range(2):
        with tarfile.open(folder / "web" / f"{number:02d}.tar", "w") as archive:
            for row in rows[number * 8 : number * 8 + 8]:
                turns = [("human", f"<image>\n{row['text']}"), ("gpt", "A spot")]
                dialogue = [{"from": who, "value": text} for who, text in turns]
                name = row["image"].removesuffix(".jpg")
                for suffix, data in (
                    ("json", json.dumps({"id": name, "conversations": dialogue}).encode()),
                    ("jpg", images[row["image"]]),
                ):
                    member = tarfile.TarInfo(f"{name}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return folder


def test_to_object_storage(s3_uri: str) -> None:
    config = load_config(DEMO, [*SMALL, f"storage={s3_uri}/prepare"])
    dataset = prepare(config, ["captions"])["captions"]
    assert dataset.num_samples == 40
    dataset.check_shards()
    assert str(dataset.location).startswith("s3://")
    (dataset.location / "shards" / "000001.parquet").remove()
    with pytest.raises(DataError, match=r"1 of 3 shards are missing.*000001"):
        dataset.check_shards()
