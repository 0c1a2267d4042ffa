"""No selected picture is one that is evaluated on, whatever its size and format."""

import io

import pytest

from llavamed.config.corpus import Select
from llavamed.corpus.figures import read_figures, write_figures
from llavamed.corpus.select.screen import HARVEST, SCREEN, Screen
from llavamed.errors import DataError
from llavamed.storage.location import locate
from llavamed.storage.manifest import write as write_manifest
from tests.support.corpus_figures import figure
from tests.support.planted_datasets import phantom, sample
from tests.support.small_datasets import dialogue, write


def test_a_picture_of_an_evaluation_set_is_refused_and_names_the_set(tmp_path):
    rows = [
        sample(f"test-{n}", phantom("test", n), dialogue("<image>\nWhat is it?", "A mass."))
        for n in range(5)
    ]
    manifest = write(str(tmp_path / "datasets/vqa"), rows).dataset.manifest
    made_from = manifest.made_from.model_dump()
    made_from["images"]["size"] = 48  # that of the phantoms
    write_manifest(locate(str(tmp_path / "datasets/vqa")), manifest.replace(made_from=made_from))
    pictures = [phantom("test", 3), phantom("train", 7)]
    figures = [figure(number) for number in range(2)]
    for each, picture in zip(figures, pictures, strict=True):
        buffer = io.BytesIO()
        picture.convert("RGB").resize((300, 300)).save(buffer, "JPEG", quality=90)
        (locate(str(tmp_path)) / each.pictures[0].path).write_bytes(buffer.getvalue())
    write_figures(locate(str(tmp_path)) / HARVEST / "00000", figures, "")
    # Phantoms are more alike than real pictures.
    chosen = Select(evaluation_sets=(str(tmp_path / "datasets/vqa"),), evaluation_bits=12)
    Screen.load(str(tmp_path), chosen).run("00000")
    found = read_figures(locate(str(tmp_path)) / SCREEN / "00000")
    assert [each.refusal for each in found] == ["in_evaluation_set", ""]
    assert found[0].refusal_detail.endswith("bits from an image of vqa")


def test_an_evaluation_set_must_be_prepared(tmp_path):
    with pytest.raises(DataError, match="prepare"):
        Screen.load(str(tmp_path), Select(evaluation_sets=(str(tmp_path / "absent"),)))
