"""Pictures that show or name a person are refused, by the libraries that read them."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from llavamed.config.corpus import Select
from llavamed.corpus.figures import read_figures, write_figures
from llavamed.corpus.select import faces
from llavamed.corpus.select.faces import FaceFinder
from llavamed.corpus.select.screen import HARVEST, SCREEN, Screen
from llavamed.errors import ConfigError
from llavamed.storage.location import locate
from tests.support.corpus_figures import figure
from tests.support.drawn_pictures import encoded, radiograph


def portrait():
    """The one photograph of a person that a package of ours brings."""
    folder = Path(find_spec("matplotlib").origin).parent / "mpl-data/sample_data"
    [file] = folder.glob("*.jpg")
    return np.asarray(Image.open(file).convert("RGB"))


def labelled(text):
    """A radiograph with words in its margin, as a viewer burns them in."""
    picture = Image.fromarray(radiograph(np.random.default_rng(3), 420, 300))
    ImageDraw.Draw(picture).text((10, 2), text, "white", ImageFont.load_default(24))
    return np.asarray(picture)


def screened(tmp_path, settings, pictures):
    here = locate(str(tmp_path))
    rows = [figure(number) for number in range(len(pictures))]
    for row, pixels in zip(rows, pictures, strict=True):
        (here / row.pictures[0].path).write_bytes(encoded(pixels))
    write_figures(here / HARVEST / "00000", rows, "")
    Screen.load(str(tmp_path), settings).run("00000")
    return read_figures(here / SCREEN / "00000")


def test_a_face_in_a_picture_is_refused_where_faces_are_looked_for(tmp_path):
    plain = radiograph(np.random.default_rng(0), 300, 300)
    pictures = [plain, portrait()]
    found = screened(tmp_path, Select(find_faces=True), pictures)
    assert [each.refusal for each in found] == ["", "face"]
    assert found[1].refusal_detail == "1 in the picture"
    assert [each.refusal for each in screened(tmp_path, Select(), pictures)] == ["", ""]


def test_no_radiology_image_has_a_face(reference_data):
    finder = FaceFinder()
    files = sorted((reference_data / "data/vqa-rad").rglob("*.jpg"))[::4]
    pictures = [Image.open(file).convert("RGB").resize((400, 400)) for file in files]
    assert [finder.count(np.asarray(each)) for each in pictures] == [0] * 15
    assert finder.count(portrait()) == 1


def test_looking_for_faces_needs_its_package_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(faces, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package dlib, .* install llavamed\[faces"):
        Screen.load(str(tmp_path), Select(find_faces=True))


def test_burned_in_text_is_read_and_refused_where_it_names_somebody(tmp_path):
    pictures = [labelled("Name: X, 12/03/2019"), labelled("SUPINE")]
    found = screened(tmp_path, Select(read_text=True), pictures)
    assert [each.refusal for each in found] == ["identifying_text", ""]
    assert "2019" not in found[0].refusal_detail
