"""Benchmarks are read from Parquet files in the layouts of Hugging Face and its converter."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llavamed.data.sources.parquet import ParquetFiles
from llavamed.errors import DataError
from llavamed.evaluate.benchmarks import BENCHMARKS
from llavamed.evaluate.benchmarks.mmmu import SUBJECTS
from llavamed.evaluate.listing import list_questions
from llavamed.evaluate.questions import Question
from llavamed.storage.location import locate
from tests.support.benchmark_files import FORMS, hub_copy, pack, png

CHOICES = {
    f"Choice {letter}": f" {letter}: {words} "
    for letter, words in zip("ABCD", ["effusion", "mass", "fracture", "none"], strict=True)
}
PMC = {"Figure_path": "a.png", "Question": "What does the arrow show?", "Answer": "mass"}
PMC |= {**CHOICES, "Answer_label": "B"}
OPTIONS = dict(zip("ABCDE", ["wait", "x", "y", "z", "operate"], strict=True))
EXPERT = {"id": "MM-1", "question": "What is next?\nAnswer Choices: (A) wait", "label": "E"}
EXPERT |= {"medical_task": "Treatment", "body_system": "Skeletal", "question_type": "Reasoning"}


def asked(name: str, path: Path, **settings: Any) -> list[Question]:
    split = settings.pop("split", BENCHMARKS[name].splits[0])
    out = locate(str(path.parent / f"out-{len(list(path.parent.glob('out-*')))}"))
    found = list_questions(name, split, str(path), out, **settings)
    return [each for chunk in range(found.num_chunks) for each in found.read(chunk)]


def facts(questions: list[Question]) -> list[Any]:
    return [(each.question, each.options, each.references, each.domain) for each in questions]


@pytest.mark.parametrize("layout", ["{}-validation.parquet", "data/validation-{}.parquet"])
def test_mmmu_is_read_from_one_folder_of_all_subjects(layout: str, tmp_path: Path) -> None:
    FORMS["mmmu-health"](tmp_path / "by-subject")
    before = asked("mmmu-health", tmp_path / "by-subject")
    (tmp_path / "one" / "data").mkdir(parents=True)
    for subject in SUBJECTS:
        file = tmp_path / "by-subject" / subject / "validation-00000-of-00001.parquet"
        file.rename(tmp_path / "one" / layout.format(subject))
    found = asked("mmmu-health", tmp_path / "one")
    assert sorted(facts(found), key=str) == sorted(facts(before), key=str)
    assert {each.domain for each in found} == set(SUBJECTS)


def test_mmmu_of_all_thirty_subjects_and_splits_in_one_file_gives_those_asked_for(
    tmp_path: Path,
) -> None:
    FORMS["mmmu-health"](tmp_path / "by-subject")
    tables = [pq.read_table(file) for file in sorted((tmp_path / "by-subject").rglob("*.parquet"))]
    table = pa.concat_tables(tables)
    ids = table["id"].to_pylist()
    others = [
        ["validation_Accounting_1", *ids[1:]],
        [id_.replace("validation", "dev") for id_ in ids],
    ]
    both = [table.set_column(0, "id", pa.array(each)) for each in others]
    (tmp_path / "one").mkdir()
    pq.write_table(pa.concat_tables(both), tmp_path / "one" / "mmmu.parquet")
    for path in (tmp_path / "one", tmp_path / "one" / "mmmu.parquet"):
        assert len(asked("mmmu-health", path)) == len(ids) - 1
        assert len(asked("mmmu-health", path, split="dev")) == len(ids)
    capitals = (tmp_path / "one" / "mmmu.parquet").rename(tmp_path / "MMMU.PARQUET")
    assert len(asked("mmmu-health", capitals)) == len(ids) - 1


def test_mmmu_of_the_converter_and_as_zip_is_read(tmp_path: Path) -> None:
    data = tmp_path / "mmmu"
    FORMS["mmmu-health"](data)
    before = asked("mmmu-health", data)
    for subject in SUBJECTS:
        (data / subject / "validation").mkdir()
        file = data / subject / "validation-00000-of-00001.parquet"
        file.rename(data / subject / "validation" / "0000.parquet")
    assert facts(asked("mmmu-health", data)) == facts(before)
    pack(data, tmp_path / "mmmu.zip", top="MMMU/")
    assert facts(asked("mmmu-health", tmp_path / "mmmu.zip")) == facts(before)


@pytest.mark.parametrize(
    "file", ["data/test-00000-of-00001.parquet", "default/test/0000.parquet", "part.parquet"]
)
def test_pmc_vqa_is_read_with_its_pictures_inside(file: str, tmp_path: Path) -> None:
    hub_copy(tmp_path / "pmc" / file, [PMC])
    [found] = asked("pmc-vqa", tmp_path / "pmc", split="test")
    assert (found.references, found.options["B"], found.question) == (  # type: ignore[index]
        ("B",),
        "mass",
        "What does the arrow show?",
    )
    assert len(found.pictures) == 1


@pytest.mark.parametrize("packed", [False, True])
def test_pmc_vqa_as_converted_is_read_with_its_pictures_beside(
    packed: bool, tmp_path: Path
) -> None:
    data = tmp_path / "pmc"
    (data / "default" / "train").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([PMC]), data / "default" / "train" / "0000.parquet")
    (data / "images").mkdir()
    (data / "images" / "a.png").write_bytes(png(1))
    if packed:
        pack(data / "images", data / "images.zip", top="figures/")
    [found] = asked("pmc-vqa", data, split="train")
    assert len(found.pictures) == 1
    with pytest.raises(
        DataError,
        match=r"pmc: has Parquet files of train, and none of test_clean; name another --split, or "
        "the file itself",
    ):
        asked("pmc-vqa", data)


@pytest.mark.parametrize("kind", ["mapping", "texts", "letters", "written", "number"])
def test_medxpertqa_is_read_from_copies_of_every_kind(kind: str, tmp_path: Path) -> None:
    options: Any = {
        "mapping": OPTIONS,
        "texts": list(OPTIONS.values()),
        "letters": [{"letter": key, "content": text} for key, text in OPTIONS.items()],
        "written": str(list(OPTIONS.values())),
        "number": OPTIONS,
    }[kind]
    pictures = [{"bytes": png(number), "path": f"{number}.png"} for number in (1, 2)]
    row = {**EXPERT, "options": options, "images": pictures}
    file = tmp_path / "expert" / "MM" / "test" / "0000.parquet"
    file.parent.mkdir(parents=True)
    table = pa.Table.from_pylist([row | {"label": 4} if kind == "number" else row])
    features = (
        {"label": {"names": list(OPTIONS), "_type": "ClassLabel"}} if kind == "number" else {}
    )
    note = json.dumps({"info": {"features": features}})
    pq.write_table(table.replace_schema_metadata({"huggingface": note}), file)
    hub_copy(tmp_path / "expert" / "Text" / "test" / "0000.parquet", [EXPERT])
    [found] = asked("medxpertqa-mm", tmp_path / "expert")
    assert (found.references, found.options, found.question) == (("E",), OPTIONS, "What is next?")
    assert (found.organ, found.domain, len(found.pictures)) == ("Skeletal", "Treatment", 2)


def test_medxpertqa_with_names_of_pictures_is_read(tmp_path: Path) -> None:
    FORMS["medxpertqa-mm"](tmp_path / "expert")
    before = asked("medxpertqa-mm", tmp_path / "expert")
    rows = [json.loads(line) for line in (tmp_path / "expert/MM/test.jsonl").open()]
    pq.write_table(
        pa.Table.from_pylist(rows[:1]), tmp_path / "expert/MM/test-00000-of-00001.parquet"
    )
    [found] = asked("medxpertqa-mm", tmp_path / "expert")
    assert facts([found]) == facts(before[:1])
    assert found.image == before[0].image


def test_labels_of_a_copy_are_names_where_rows_are_chosen_by_them(tmp_path: Path) -> None:
    """Hugging Face stores a column of labels as numbers."""
    read = ParquetFiles(
        f"{tmp_path}/a.parquet", images=(), required=(("question",),), listed=("split",)
    )
    table = pa.table({"question": ["Where?", "What?"], "split": [1, 0]})
    note = json.dumps({"info": {"features": {"split": {"names": ["train", "test"]}}}})
    pq.write_table(
        table.replace_schema_metadata({"huggingface": note}),
        tmp_path / "a.parquet",
        row_group_size=1,
    )
    assert [row["split"] for row in read.rows()] == ["test", "train"]


def test_path_vqa_is_read_from_a_zip_of_its_copy_on_the_hub(tmp_path: Path) -> None:
    rows = [{"question": "Is it necrosis?", "answer": "yes"}]
    hub_copy(tmp_path / "path" / "data" / "test-00000-of-00001.parquet", rows)
    before = asked("path-vqa", tmp_path / "path")
    pack(tmp_path / "path", tmp_path / "path.zip", top="PathVQA/")
    [found] = asked("path-vqa", tmp_path / "path.zip")
    assert (facts([found]), found.image) == (facts(before), before[0].image)


def test_pmc_vqa_is_read_from_a_zip(tmp_path: Path) -> None:
    FORMS["pmc-vqa"](tmp_path / "pmc")
    before = asked("pmc-vqa", tmp_path / "pmc")
    pack(tmp_path / "pmc", tmp_path / "pmc.zip", top="PMC-VQA/")
    assert facts(asked("pmc-vqa", tmp_path / "pmc.zip")) == facts(before)


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tgz"])
def test_an_archive_that_cannot_be_read_in_place_is_refused(
    name: str, ending: str, tmp_path: Path
) -> None:
    FORMS[name](tmp_path / "data")
    archive = tmp_path / f"all.{ending}"
    with tarfile.open(archive, "w" if ending == "tar" else "w:gz") as packed:
        packed.add(tmp_path / "data", "data")
    with pytest.raises(
        DataError,
        match=rf"all\.{ending}: of archives only zip is read in place; unpack it and name the "
        "folder, or pack it as zip",
    ):
        asked(name, archive)


def test_a_folder_without_mmmu_says_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        DataError,
        match="empty: has no Parquet file of validation, and no folder of a subject such as "
        "Basic_Medical_Science; check the path",
    ):
        asked("mmmu-health", tmp_path / "empty")
