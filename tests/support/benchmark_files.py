"""Small benchmarks in the forms in which they are published, each with two pictures."""

import base64
import csv
import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from llavamed.evaluate.benchmarks.mmmu import SUBJECTS


def png(number: int, size: tuple[int, int] = (20, 16)) -> bytes:
    """A picture of its own for each number."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_images(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(png(number))


def write_json(file: Path, rows: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows), encoding="utf-8")


def vqa_rad(folder: Path) -> None:
    shared = {"image_organ": "CHEST", "phrase_type": "freeform"}
    rows = [
        {"qid": 1, "image_name": "a.png", "question": "Is there a pneumothorax?", "answer": "Yes"}
        | {"answer_type": "CLOSED", "question_type": "PRES"},
        {"qid": 2, "image_name": "a.png", "question": "Is there a fracture?", "answer": "no"}
        | {"answer_type": "CLOSED", "question_type": "PRES"},
        {"qid": 3, "image_name": "b.png", "question": "Which lobe?", "answer": "left lower lobe"}
        | {"answer_type": "OPEN", "question_type": "POS"},
    ]
    rows = [row | shared for row in rows]
    write_json(folder / "testset.json", rows)
    write_json(folder / "trainset.json", [*rows[:2], rows[2] | {"phrase_type": "frame"}])
    write_images(folder / "images", ["a.png", "b.png"])


def slake(folder: Path) -> None:
    shared = {"location": "Lung", "modality": "X-Ray", "content_type": "Abnormality"}
    shared |= {"answer_type": "CLOSED", "img_name": "xmlab1/source.png"}
    rows = [
        {"qid": 1, "q_lang": "en", "question": "Does it look normal?", "answer": "No"} | shared,
        {"qid": 2, "q_lang": "zh", "question": "看起来正常吗?", "answer": "不是"} | shared,
    ]
    write_json(folder / "test.json", rows)
    write_images(folder / "imgs" / "xmlab1", ["source.png"])


def path_vqa(folder: Path) -> None:
    rows = [
        {"image": "test_0001", "question": "is necrosis present?", "answer": "yes"},
        {"image": "test_0002", "question": "what is shown?", "answer": "squamous cells"},
    ]
    (folder / "qas" / "test").mkdir(parents=True)
    (folder / "qas" / "test" / "test_qa.pkl").write_bytes(pickle.dumps(rows))
    write_images(folder / "images" / "test", ["test_0001.jpg", "test_0002.jpg"])


def pmc_vqa(folder: Path) -> None:
    head = ["Figure_path", "Question", "Answer", *(f"Choice {letter}" for letter in "ABCD")]
    choices = [" A:effusion ", " B:mass ", " C:fracture ", " D:none "]
    folder.mkdir(parents=True)
    with (folder / "test_clean.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow([*head, "Answer_label"])
        lines.writerow(["a.png", "What does the arrow show?", "mass", *choices, "B"])
    write_images(folder / "images", ["a.png"])


def omnimedvqa(folder: Path) -> None:
    row = {
        **{"dataset": "ACRIMA", "question_id": "ACRIMA_0", "question_type": "Disease Diagnosis"},
        **{"question": "What disease is it?", "gt_answer": "Glaucoma"},
        **{"image_path": "Images/ACRIMA/a.png", "modality_type": "Fundus Photography"},
        **{"option_A": "Healthy", "option_B": "Glaucoma"},
    }
    write_json(folder / "QA_information" / "Open-access" / "ACRIMA.json", [row])
    write_images(folder / "Images" / "ACRIMA", ["a.png"])


def mmmu(folder: Path) -> None:
    def struct(number: int) -> dict[str, Any]:
        return {"bytes": png(number), "path": f"{number}.png"}

    choice = {
        **{"id": "validation_Pharmacy_1", "question": "Compare <image 1> and <image 2>."},
        **{"options": "['the same', 'as <image 3>']", "answer": "B", "subfield": "Toxicology"},
        **{"question_type": "multiple-choice"},
        **{f"image_{number}": struct(number) for number in (1, 2, 3)},
        **{f"image_{number}": None for number in (4, 5, 6, 7)},
    }
    words = choice | {
        **{"id": "validation_Pharmacy_2", "question": "How many mg?", "options": "[]"},
        **{"answer": "['5', 'five']", "question_type": "open"},
    }
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pictures = {f"image_{number}": picture for number in range(1, 8)}
    schema = pa.schema([(name, pictures.get(name, pa.string())) for name in choice])
    for subject in SUBJECTS:
        (folder / subject).mkdir(parents=True)
        rows = [row | {"id": row["id"].replace("Pharmacy", subject)} for row in (choice, words)]
        file = folder / subject / "validation-00000-of-00001.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema), file)


def medxpertqa(folder: Path) -> None:
    row = {
        **{"id": "MM-1", "label": "E", "images": ["MM-1-a.png", "MM-1-b.png"]},
        **{"question": "What is next?\nAnswer Choices: (A) wait (B) x (C) y (D) z (E) operate"},
        **{"options": dict(zip("ABCDE", ["wait", "x", "y", "z", "operate"], strict=True))},
        **{"medical_task": "Treatment", "body_system": "Skeletal", "question_type": "Reasoning"},
    }
    listed = [{"letter": key, "content": text} for key, text in row["options"].items()]
    (folder / "MM").mkdir(parents=True)
    lines = [json.dumps(row), json.dumps(row | {"id": "MM-2", "options": listed})]
    (folder / "MM" / "test.jsonl").write_text("\n".join(lines))
    write_images(folder / "images", ["MM-1-a.png", "MM-1-b.png"])


def figure_chat(folder: Path) -> None:
    facts = {"domain": "ct_scan", "caption": "CT of the liver with a cyst.", "mentions": []}
    plain = {
        **{"id": "PMC1.1-0-0", "image": "PMC1.1-0.png", "type": "conversation"},
        **{"question": "What does the liver contain?", "reference": "It contains a cyst."},
    }
    published = {
        **{"question_id": 1, "image": "PMC1.1-0.png", "type": "detailed_description"},
        **{"text": "Describe the image.\n<image>", "gpt4_answer": "A scan of a liver with a cyst."},
        **{"domain": {"ct_scan": True, "mri": False}},
    }
    write_images(folder / "images", ["PMC1.1-0.png"])
    lines = [json.dumps(plain | facts), json.dumps(published)]
    (folder / "questions.jsonl").write_text("\n".join(lines))


FORMS: Mapping[str, Callable[[Path], None]] = {
    "vqa-rad": vqa_rad,
    "slake-en": slake,
    "slake-zh": slake,
    "path-vqa": path_vqa,
    "pmc-vqa": pmc_vqa,
    "omnimedvqa": omnimedvqa,
    "mmmu-health": mmmu,
    "medxpertqa-mm": medxpertqa,
    "figure-chat": figure_chat,
}
"""What writes the files of each benchmark into a folder."""


def pack(folder: Path, archive: Path, *, top: str = "") -> None:
    """Move a folder into a zip archive, below a folder of its own where `top` names one."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in sorted(each for each in folder.rglob("*") if each.is_file()):
            packed.write(file, f"{top}{file.relative_to(folder)}")
        packed.writestr("__MACOSX/._a.png", b"no picture")
    shutil.rmtree(folder)


def cell(number: int) -> str:
    """Return a picture as VLMEvalKit writes it into a cell."""
    return base64.b64encode(png(number)).decode()


def tsv(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as pandas writes them, which is how VLMEvalKit makes its tables."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as stream:
        lines = csv.DictWriter(stream, list(rows[0]), delimiter="\t", lineterminator="\n")
        lines.writeheader()
        lines.writerows(rows)


def hub_copy(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as Hugging Face's Parquet files, with a picture in each."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pictures = [{"bytes": png(number), "path": f"{number}.png"} for number in range(len(rows))]
    table = [row | {"image": picture} for row, picture in zip(rows, pictures, strict=True)]
    pq.write_table(pa.Table.from_pylist(table), file)
