"""Duplicates: counted, or quarantined where the config says so, and never taken for bad data."""

import numpy as np
import pytest

from llavamed.config.data import Dataset
from llavamed.config.sources import Phantoms
from llavamed.data.prepare.job import complete_dataset
from llavamed.data.prepare.shards import ShardReport
from llavamed.data.prepared.dataset import open_prepared
from llavamed.data.prepared.sample_tables import SampleTables, join, read_sample_tables
from llavamed.errors import DataError
from llavamed.evaluate.questions import PreparedQuestions
from llavamed.storage.location import locate
from tests.support.manifests import dataset_manifest
from tests.support.small_datasets import dialogue, make_row, prepare, write

READ = Phantoms(source="phantoms", kind="captions", num_images=1)


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> SampleTables:
    """Samples 3 and 5 repeat sample 1, sample 4 only its question, sample 6 only its image."""
    random = np.random.default_rng(0)
    rows = [make_row(random, number, 1) for number in range(8)]
    for number in (3, 5):
        rows[number] |= {key: rows[1][key] for key in ("pixels", "turns")}
    rows[4]["turns"] = dialogue(rows[1]["turns"][0]["text"], "Another.")
    rows[6]["pixels"] = rows[1]["pixels"]
    return read_sample_tables(write(str(tmp_path_factory.mktemp("data") / "figures"), rows).dataset)


def publish_all(tables, place, **settings):
    half = ShardReport(place.name, tables)
    complete_dataset(place, dataset_manifest(), [half], Dataset(read=READ, **settings))
    return open_prepared(place)


def test_duplicates_are_counted_and_kept(tables, tmp_path):
    dataset = publish_all(tables, locate(str(tmp_path)) / "kept")
    facts = dataset.manifest
    assert (facts.num_samples, facts.num_duplicates, facts.num_quarantined) == (8, 2, 0)
    assert tables.first_alike().tolist() == [0, 1, 2, 1, 4, 1, 6, 7]


def test_dropped_duplicates_are_quarantined_and_name_the_first(tables, tmp_path):
    place = locate(str(tmp_path)) / "dropped"
    dataset = publish_all(tables, place, drop_duplicates=True, max_bad_fraction=0)
    facts = dataset.manifest
    assert (facts.num_samples, facts.num_duplicates, facts.num_quarantined) == (6, 0, 2)
    assert facts.quarantined == {"duplicate": 2}
    found = read_sample_tables(dataset)
    assert found.content["row"].to_pylist() == [0, 1, 2, 4, 6, 7]
    assert found.quarantine.to_pylist() == [
        {
            "source": "dropped",
            "row": row,
            "id": f"sample-{row}",
            "reason": "duplicate",
            "detail": "same images and words as sample-1",
        }
        for row in (3, 5)
    ]


def test_duplicates_are_found_across_shards_and_tables_join_in_order(tables):
    both = join([tables, tables])
    assert both.num_rows == 16
    assert both.counts()["num_duplicates"] == 10
    assert both.first_alike().tolist()[8:] == tables.first_alike().tolist()


def test_without_a_good_sample_there_is_no_dataset(tables, tmp_path):
    place = locate(str(tmp_path)) / "empty"
    bad = tables.move_out("empty", range(8), "absent", ["none"] * 8)
    with pytest.raises(DataError, match=r"8 of 8 samples are unusable \(8 absent\)"):
        publish_all(bad, place, max_bad_fraction=1)
    with pytest.raises(DataError, match="no prepared dataset there"):
        open_prepared(place)


def test_an_evaluation_does_not_see_removed_samples(tmp_path):
    rows = prepare(str(tmp_path / "whole"), 120, num_images=(1,)).rows
    rows = [row | {"answer_type": "CLOSED"} for row in rows]
    dataset = write(str(tmp_path / "some"), rows).dataset
    leaving = [0, *range(8, 16), 55, 119]
    tables = read_sample_tables(dataset).move_out("some", leaving, "duplicate", [""] * len(leaving))
    tables.write(dataset.location)
    left = [row for number, row in enumerate(rows) if number not in leaving]
    dataset = open_prepared(dataset.location)
    questions = PreparedQuestions(dataset)
    asked = [each for chunk in range(questions.num_chunks) for each in questions.read(chunk)]
    assert [each.references for each in asked] == [(row["turns"][-1]["text"],) for row in left]
