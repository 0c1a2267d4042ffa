"""Selection on Ray: every part is screened, and a worker's error comes back as ours."""

import io

import numpy as np
import pytest
from PIL import Image

from llavamed.config.load import load_config
from llavamed.corpus.figures import list_parts, read_figures, write_figures
from llavamed.corpus.select.job import select_figures
from llavamed.errors import DataError
from llavamed.storage.location import locate
from tests.conftest import CONFIGS
from tests.support.corpus_figures import CAPTIONS, figure

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def picture(number):
    grey = np.random.default_rng(number).integers(20, 200, (6, 6), dtype=np.uint8)
    buffer = io.BytesIO()
    image = Image.fromarray(grey).resize((256, 256), Image.Resampling.BICUBIC)
    image.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def test_all_parts_are_screened_from_object_storage_and_done_once(s3_uri):
    config = load_config(CONFIGS / "demo.yaml", [f"storage={s3_uri}/select", "corpus={}"])
    with pytest.raises(DataError, match=r"nothing is harvested; run `llavamed corpus harvest` fi"):
        select_figures(config)
    corpus = locate(config.corpus_directory)
    names = list(CAPTIONS)
    for part in range(3):
        numbers = range(4 * part, 4 * part + 4)
        rows = [figure(n, caption=CAPTIONS[names[n % 5]].format(n)) for n in numbers]
        for each, number in zip(rows, numbers, strict=True):
            # The last figure of all repeats the first.
            (corpus / each.pictures[0].path).write_bytes(picture(number % 11))
        write_figures(corpus / "harvest" / f"{part:05d}", rows, "")
    selection = select_figures(config)
    assert (selection.num_figures, selection.num_kept) == (12, 11)
    assert selection.refused == {"duplicate": 1}
    parts = list_parts(corpus / "select")
    assert [part.name for part, _ in parts] == ["00000", "00001", "00002"]
    assert read_figures(parts[2][0])[-1].refusal_detail == "of PMC1.1-0"
    assert select_figures(config) == selection
    assert list_parts(corpus / "select") == parts
