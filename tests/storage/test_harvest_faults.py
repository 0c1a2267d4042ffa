"""A harvest from a bucket that fails as real ones do loses nothing and fetches nothing twice."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import boto3
import pytest

from llavamed.config.harvest import Harvest
from llavamed.corpus.figures import read_figures
from llavamed.corpus.pmc.article import ArticleRow
from llavamed.corpus.pmc.inventory import read_inventory
from llavamed.corpus.pmc.part import JOURNAL, find_part, harvest_part, read_articles
from llavamed.storage.location import locate
from tests.support.faulty_s3 import FOR_EVER, Fault, FaultyS3
from tests.support.pmc_bucket import PmcBucket

NUM_ARTICLES = 12
WORKER = """
import sys
from llavamed.config.harvest import Harvest
from llavamed.corpus.pmc.inventory import read_inventory
from llavamed.corpus.pmc.article import ArticleRow
from llavamed.corpus.pmc.part import harvest_part
from llavamed.storage.location import locate

settings = Harvest(source=sys.argv[1], articles_in_flight=1, requests_per_second=40)
table = read_inventory(locate(sys.argv[1])).articles.to_pylist()
rows = [ArticleRow(f"PMC{row['pmcid']}", row["version"], row["etag"]) for row in table]
corpus = locate(sys.argv[2])
harvest_part(corpus / "harvest" / "00000", rows, settings, corpus, made_from="")
"""


@pytest.fixture(scope="module")
def source(module_proxy: FaultyS3, s3_uri, tmp_path_factory):
    """URI of a public bucket, read without credentials through the proxy."""
    bucket = PmcBucket(tmp_path_factory.mktemp("bucket"))
    for number in range(1, NUM_ARTICLES + 1):
        bucket.add(number)
    bucket.write_inventory()
    bucket.upload(boto3.client("s3", endpoint_url=module_proxy.upstream), "pmc-mirror")
    return f"s3://pmc-mirror?anonymous=true&endpoint={os.environ['AWS_ENDPOINT_URL']}"


def rows_of(source):
    table = read_inventory(locate(source)).articles.to_pylist()
    return [ArticleRow(f"PMC{row['pmcid']}", row["version"], row["etag"]) for row in table]


def harvest(source, corpus, **changes):
    settings = Harvest(source=source, articles_in_flight=4, requests_per_second=5500, **changes)
    place = corpus / "harvest" / "00000"
    harvest_part(place, rows_of(source), settings, corpus, made_from="")
    return place


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """The figures of a harvest without a fault."""
    return read_figures(harvest(source, locate(str(tmp_path_factory.mktemp("whole")))))


@pytest.mark.parametrize("fault", ["500", "503", "reset", "cut", "wrong", "hang"])
def test_a_fault_that_passes_loses_nothing(fault: Fault, source, whole, faulty: FaultyS3, tmp_path):
    for path in ("PMC2.1.json", "PMC5.1.xml", "PMC7.1/fig2.jpg"):
        faulty.fail(fault, path, times=2)
    place = harvest(source, locate(str(tmp_path)))
    assert read_figures(place) == whole
    assert faulty.num_faults == 6
    counts = find_part(place).counts
    failed = sum(count for name, count in counts.items() if name.startswith("failed"))
    assert 0 < failed <= faulty.num_faults  # the client tries a lost connection again itself
    assert counts["requests"] == counts["fetched"] + failed


def test_faults_at_random_lose_nothing_of_a_corpus_in_a_bucket(
    source, whole, faulty: FaultyS3, s3_uri
):
    corpus = locate(f"{s3_uri}/corpus")
    faulty.fail_at_random(0.1, ("500", "503", "reset", "cut"), seed=5)
    place = harvest(source, corpus)
    assert faulty.num_faults > 10
    faulty.heal()
    assert read_figures(place) == whole
    for figure in whole:
        [picture] = figure.pictures
        data = (corpus / picture.path).read_bytes()
        assert hashlib.sha256(data).hexdigest() == picture.sha256
    assert not (place / JOURNAL).exists()


def test_what_stays_away_is_a_row_and_comes_with_the_next_run(
    source, whole, faulty: FaultyS3, tmp_path
):
    faulty.fail("503", "PMC3.1/fig1.jpg", times=FOR_EVER)
    place = harvest(source, locate(str(tmp_path)), max_unavailable_fraction=0.1)
    reasons = Counter(row.reason for row in read_articles(place))
    assert reasons == {"": NUM_ARTICLES - 1, "unavailable": 1}
    faulty.heal()
    harvest(source, locate(str(tmp_path)))
    assert read_figures(place) == whole
    assert faulty.count("PMC3.1", "GET") == 4
    assert faulty.count("PMC4.1", "GET") == 0


def test_a_forbidden_object_is_a_row(source, faulty: FaultyS3, tmp_path):
    faulty.fail("403", "PMC3.1.json", times=FOR_EVER)
    place = harvest(source, locate(str(tmp_path)))
    assert Counter(row.reason for row in read_articles(place))["forbidden_object"] == 1


def test_a_harvest_that_is_killed_goes_on_and_fetches_nothing_twice(
    source,
    whole,
    faulty: FaultyS3,
    tmp_path,
):
    command = [sys.executable, "-c", WORKER, source, str(tmp_path)]
    journal = locate(str(tmp_path)) / "harvest" / "00000" / JOURNAL
    with subprocess.Popen(command) as worker:
        while worker.poll() is None and len(journal.children()) < 4:
            time.sleep(0.02)
        worker.send_signal(signal.SIGKILL)
    finished = {name.removesuffix(".json") for name in journal.children()}
    assert 4 <= len(finished) < NUM_ARTICLES
    before = Counter(path for how, path in faulty.requests if how == "GET" and "PMC" in path)
    place = harvest(source, locate(str(tmp_path)))
    assert read_figures(place) == whole
    after = Counter(path for how, path in faulty.requests if how == "GET" and "PMC" in path)
    twice = {path for path, count in after.items() if count > 1 and path in before}
    assert not any(f"/{name}" in path for path in twice for name in finished)
    assert len({path.split("PMC")[-1].split(".")[0] for path in twice}) <= 1
