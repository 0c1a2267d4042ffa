"""What a harvest takes, in which order: inventories, rounds, searches and estimates."""

import json
from datetime import date, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from llavamed.cli.corpus import app
from llavamed.cli.corpus_tables import show_corpus_forecast
from llavamed.cli.options import console
from llavamed.config.harvest import Harvest
from llavamed.config.load import load_config
from llavamed.corpus.pmc.estimate import count_candidates, estimate
from llavamed.corpus.pmc.inventory import CANDIDATES_SCHEMA, Inventory, rank, read_inventory
from llavamed.corpus.pmc.plan import (
    HarvestPlan,
    HarvestRound,
    first_round,
    next_parts,
    next_round,
    read_replaced,
    settings_of,
)
from llavamed.corpus.pmc.search import find_articles, read_numbers
from llavamed.errors import DataError
from llavamed.storage.location import locate
from tests.support.http_server import serving
from tests.support.pmc_bucket import PmcBucket

DEMO = Path(__file__).parents[2] / "ray_jobs" / "configs" / "demo.yaml"


@pytest.fixture
def bucket(tmp_path):
    return PmcBucket(tmp_path / "bucket")


def inventory_of(rows):
    table = pa.Table.from_pylist(
        [dict(zip(CANDIDATES_SCHEMA.names, row, strict=True)) for row in sorted(rows)],
        CANDIDATES_SCHEMA,
    )
    return Inventory("now", "0", table)


ARTICLES = st.dictionaries(
    st.integers(1, 60), st.tuples(st.integers(1, 11), st.sampled_from("ab")), min_size=1
)


def rows_of(found):
    return [(number, *facts) for number, facts in found.items()]


@given(before=ARTICLES, now=ARTICLES, size=st.integers(1, 7))
def test_an_update_takes_exactly_what_is_new_or_changed(before, now, size, tmp_path_factory):
    folder = locate(str(tmp_path_factory.mktemp("harvest")))
    settings = Harvest(articles_per_part=size)
    here = first_round(folder, settings, inventory_of(rows_of(before)), None)
    plan = HarvestPlan(settings=settings_of(settings), rounds=(here,))
    read = [row for part in range(here.num_parts) for row in plan.read_part(folder, part)]
    assert sorted((int(r.pmcid[3:]), r.version, r.etag) for r in read) == sorted(rows_of(before))
    known = inventory_of(rows_of(before)).articles
    found = next_round(folder, plan, settings, inventory_of(rows_of(now)), known, None)
    changed = {n for n in now if n in before and now[n] != before[n]}
    new, gone = now.keys() - before.keys(), before.keys() - now.keys()
    assert (found is None) == (not changed | new | gone)
    if found is None:
        return
    plan = plan.replace(rounds=(here, found))
    parts = range(found.first_part, plan.num_parts)
    taken = [int(row.pmcid[3:]) for part in parts for row in plan.read_part(folder, part)]
    assert sorted(taken) == sorted(changed | new)
    assert set(taken[: len(changed)]) == changed
    assert read_replaced(folder, 1) == {f"PMC{n}" for n in changed | gone}


@given(
    st.lists(st.integers(0, 5), max_size=12),
    st.integers(1, 40),
    st.integers(0, 3),
)
def test_the_shortest_beginning_that_has_enough_is_harvested(kept_of, most, required):
    settings = Harvest(articles_per_part=5, max_articles=most)
    here = HarvestRound(
        inventory="",
        inventory_sha256="",
        first_part=0,
        num_parts=len(kept_of),
        num_required=min(required, len(kept_of)),
        num_articles=0,
        num_replaced=0,
    )
    done: set[int] = set()
    while todo := next_parts(here, done, sum(kept_of[part] for part in done), settings):
        done.update(todo)
    shortest = next((n for n in range(len(kept_of) + 1) if sum(kept_of[:n]) >= most), len(kept_of))
    assert done == set(range(max(shortest, here.num_required)))


@given(st.sets(st.integers(1, 10**7), max_size=30), st.integers(1, 10**7), st.integers(0, 9))
def test_another_article_keeps_the_order_of_the_others(numbers, other, seed):
    some = np.array(sorted(numbers - {other}), np.int64)
    more = np.array(sorted(numbers | {other}), np.int64)
    assert some[rank(some, seed)].tolist() == [n for n in more[rank(more, seed)] if n != other]


def test_the_newest_complete_inventory_is_read(bucket, caplog):
    bucket.add(1)
    bucket.write_inventory("2026-11-22T01-00Z")
    bucket.add(2, 2)
    bucket.add(2, 10)
    bucket.write_inventory("2026-11-23T01-00Z")
    bucket.add(3)
    bucket.write_inventory("2026-11-24T01-00Z", complete=False)
    found = read_inventory(locate(str(bucket.root)))
    assert found.name == "2026-11-23T01-00Z"
    assert [(r["pmcid"], r["version"]) for r in found.articles.to_pylist()] == [(1, 1), (2, 10)]
    assert "2026-11-24T01-00Z: is not complete" in caplog.text


def test_a_mirror_without_an_inventory_is_listed(bucket):
    bucket.add(12, 3)
    bucket.add(5)
    found = read_inventory(locate(str(bucket.root)))
    assert found.name == "listing"
    assert [(r["pmcid"], r["version"]) for r in found.articles.to_pylist()] == [(5, 1), (12, 3)]


def test_an_inventory_that_is_not_there_is_refused(bucket, tmp_path):
    with pytest.raises(DataError, match=r"holds no inventory and no metadata/PMC\*.json; check"):
        read_inventory(locate(str(tmp_path)))
    bucket.add(1)
    bucket.write_inventory(complete=False)
    with pytest.raises(DataError, match=r"none of the newest 3 inventories is complete; try"):
        read_inventory(locate(str(bucket.root)))


def test_numbers_of_articles_are_read_from_a_file(tmp_path):
    file = tmp_path / "articles.txt"
    file.write_text("PMC12\n 7 \npmc9.2\n")
    assert read_numbers(locate(str(file))) == [12, 7, 9]
    file.write_text("PMC12\nhttps://example.org\n")
    with pytest.raises(DataError, match=r"'https://example.org' is not the number of an article"):
        read_numbers(locate(str(file)))
    with pytest.raises(DataError, match=r"absent: is not a readable text file; check"):
        read_numbers(locate(str(tmp_path / "absent")))


def test_articles_that_are_not_there_are_refused(tmp_path):
    inventory = inventory_of([(1, 1, "a")])
    with pytest.raises(DataError, match=r"none of 2 wanted articles is in the inventory; check"):
        first_round(locate(str(tmp_path)), Harvest(), inventory, [2, 3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"published_from": "2021-01-01", "published_to": "2020-01-01"},
            r"published_from=2021-01-01: is after published_to=2020-01-01; exchange them",
        ),
        (
            {"articles": "list.txt", "query": "lung"},
            r"query=lung: articles=list.txt names the articles, too; remove one",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Harvest(**changes)


def test_the_public_bucket_is_reached_wherever_ones_own_store_is(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio:9000")
    place = locate(Harvest().source)
    assert (place.path, place.fs.anon) == ("pmc-oa-opendata", True)
    assert place.fs.endpoint_url == "https://s3.us-east-1.amazonaws.com"


def test_an_estimate_adds_up():
    found = estimate(Harvest(licences=["CC0", "CC BY"]), num_cpus=64)
    assert found.num_taken == 169_017 + 5_242_023
    assert found.num_requests == found.num_articles + found.num_taken + found.num_figures
    assert found.hours == max(found.hours_of_requests, found.hours_of_cpu)
    few = estimate(Harvest(max_articles=60_000), num_cpus=64)
    assert abs(few.num_taken - 60_000) <= 1
    assert few.num_bytes < found.num_bytes / 50


@given(st.integers(0, 20_000_000), st.none() | st.integers(1, 10_000_000))
def test_no_estimate_looks_at_more_articles_than_are_named(named, most):
    found = estimate(Harvest(max_articles=most), num_cpus=2, num_candidates=named)
    assert found.num_articles <= named
    assert found.num_taken <= (named if most is None else min(named, most + 1))


def test_a_list_a_query_and_a_mirror_tell_how_many_articles_there_are(
    tmp_path, bucket, search_server, monkeypatch
):
    monkeypatch.setattr("llavamed.corpus.pmc.search.SECONDS_BETWEEN_REQUESTS", 0)
    names = tmp_path / "names.txt"
    names.write_text("PMC1\nPMC2\n2\n")
    assert count_candidates(Harvest(articles=str(names))) == 2
    url, asked = search_server
    asked.append("before")  # the server fails once, at the second question
    asked.append("before")
    assert count_candidates(Harvest(query="lung", search_url=url)) == 25_000
    assert len(asked) == 3
    for number in (1, 2, 3):
        bucket.add(number)
    bucket.write_inventory()
    assert count_candidates(Harvest(source=str(bucket.root))) == 3
    assert count_candidates(Harvest()) == 9_129_850


def forecast(corpus: str) -> str:
    run = load_config(DEMO, [f"corpus={corpus}"])
    with console.capture() as printed:
        show_corpus_forecast(run.corpus, 4)
    return printed.get()


def test_a_plan_says_what_the_corpus_takes(tmp_path, bucket):
    for number in range(1, 9):
        bucket.add(number)
    bucket.write_inventory()
    endpoint = "{url: 'http://127.0.0.1:9/v1', model: writer, prices: {input: 1, output: 1}}"
    corpus = f"{{harvest: {{source: '{bucket.root}'}}, dialogues: {{endpoint: {endpoint}}}}}"
    text = forecast(corpus)
    assert "8 articles to look at, 5 with an allowed licence, about 20 figures" in text
    assert "dialogues: 20 figures, if all are selected" in text
    assert "writer: 20 requests, about" in text
    assert "cost up to" in text


def test_without_a_network_the_plan_of_a_query_is_that_of_the_bucket():
    harvest = "{query: lung, search_url: 'http://127.0.0.1:9/entrez'}"
    text = forecast(f"{{harvest: {harvest}}}")
    assert "corpus.harvest.query=lung: its articles cannot be counted, so these are" in text
    assert "(http://127.0.0.1:9/entrez: cannot ask it: ConnectionError" in text
    assert "9,129,850 articles to look at" in text


def test_the_command_estimates_and_fetches_nothing(tmp_path):
    words = ["harvest", "--estimate", "--num-cpus", "64", "--config", str(DEMO)]
    found = CliRunner().invoke(app, [*words, "corpus={harvest: {max_articles: 60000}}"])
    assert "60,000 with an allowed licence, about 240,000 figures" in found.output
    assert "on 64 CPUs" in found.output
    refused = CliRunner().invoke(app, words)
    assert "corpus=null: does not say what to harvest; add a section" in str(refused.exception)


@pytest.fixture
def search_server():
    """Answers as E-utilities do, for 25,000 articles that entered evenly over some years."""
    days = [date(2000, 1, 1) + timedelta(days=n // 10) for n in range(25_000)]
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            query = parse_qs(urlsplit(self.path).query)
            asked.append(query["term"][0])
            if len(asked) == 2:
                self.send_error(500)
                return
            first, last = (
                datetime.strptime(query[key][0], "%Y/%m/%d").date()
                for key in ("mindate", "maxdate")
            )
            found = [n for n, day in enumerate(days) if first <= day <= last]
            result = {"count": str(len(found)), "idlist": [str(n) for n in found[:9_999]]}
            if len(asked) == 4:
                result = {"ERROR": "Search Backend failed: Unable to open connection"}
            if query["term"][0] == "[":
                result = {"ERROR": "cannot parse"}
            body = json.dumps({"esearchresult": result}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

    with serving(Handler) as url:
        yield url, asked


def test_a_query_with_many_results_is_asked_for_by_date(search_server, monkeypatch):
    monkeypatch.setattr("llavamed.corpus.pmc.search.SECONDS_BETWEEN_REQUESTS", 0)
    url, asked = search_server
    assert find_articles("lung", url, date(2026, 11, 25)) == list(range(25_000))
    assert set(asked) == {"lung"}
    with pytest.raises(
        DataError, match=r"corpus.harvest.query=\[: cannot parse; correct the query"
    ):
        find_articles("[", url, date(2026, 11, 25))
