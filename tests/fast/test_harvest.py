"""A harvest takes what may be taken, refuses the rest with a reason, and loses nothing."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from llavamed.config.harvest import Harvest
from llavamed.corpus.figures import iter_kept, read_figures
from llavamed.corpus.pmc.article import ArticleRow
from llavamed.corpus.pmc.inventory import read_inventory
from llavamed.corpus.pmc.part import (
    JOURNAL,
    find_part,
    harvest_part,
    read_articles,
    remove_articles,
)
from llavamed.errors import DataError
from llavamed.storage.location import MANIFEST, locate
from tests.support.pmc_bucket import REFUSED_FIGURES, PmcBucket, article_xml, fill, picture


@pytest.fixture
def bucket(tmp_path):
    return PmcBucket(tmp_path / "bucket")


@pytest.fixture
def corpus(tmp_path):
    return locate(str(tmp_path / "corpus"))


def settings_for(bucket, **changes):
    fast = {"requests_per_second": 5500, "articles_in_flight": 4}
    return Harvest(source=str(bucket.root), **fast | changes)


def candidates(bucket):
    table = read_inventory(locate(str(bucket.root))).articles
    return [ArticleRow(f"PMC{r['pmcid']}", r["version"], r["etag"]) for r in table.to_pylist()]


def run(bucket, corpus, rows=None, **changes):
    """Harvest a part, and return its folder."""
    place = corpus / "harvest" / "00000"
    rows = candidates(bucket) if rows is None else rows
    harvest_part(place, rows, settings_for(bucket, **changes), corpus, made_from="")
    return place


def test_every_kind_of_article_ends_as_it_should(bucket, corpus):
    expected = fill(bucket)
    bucket.write_inventory()
    place = run(bucket, corpus)
    rows = read_articles(place)
    assert {row.pmcid: row.reason for row in rows} == expected
    figures = read_figures(place)
    refusals = {}
    for figure in figures:
        refusals.setdefault(figure.pmcid, []).append(figure.refusal)
    taken = [pmcid for pmcid, reason in expected.items() if not reason]
    numbers = {row.pmcid: row.num_figures for row in rows}
    assert refusals == {pmcid: REFUSED_FIGURES.get(pmcid, [""] * numbers[pmcid]) for pmcid in taken}
    assert numbers["PMC3"] == 1  # version 10, not 2


def test_a_picture_is_what_its_row_says_whatever_its_name(bucket, corpus):
    fill(bucket)
    bucket.write_inventory()
    run(bucket, corpus)
    kept = list(iter_kept(corpus / "harvest"))
    assert len(kept) == 10
    for figure in kept:
        [each] = figure.pictures
        data = (corpus / each.path).read_bytes()
        assert len(data) == each.num_bytes
        with Image.open(Path((corpus / each.path).path)) as image:
            assert (image.format.lower(), *image.size) == (each.format, each.width, each.height)
    [png] = [figure.pictures[0] for figure in kept if figure.pmcid == "PMC18"]
    assert (png.format, png.source[-8:], png.path[-4:]) == ("png", "fig1.jpg", ".png")
    stored = {str(path) for path in Path(str(corpus / "images")).rglob("*") if path.is_file()}
    assert stored == {str(corpus / figure.pictures[0].path) for figure in kept}


def test_a_row_names_its_article_for_attribution(bucket, corpus):
    bucket.add(7)
    bucket.write_inventory()
    [figure, _] = read_figures(run(bucket, corpus))
    assert figure.id == "PMC7.1-0"
    assert (figure.citation, figure.doi, figure.pmid) == ("J Tests. 2020; 7", "10.1/7", "7")
    assert (figure.journal, figure.year) == ("Journal of Tests", 2020)
    assert (figure.licence, figure.article_type) == ("CC BY", "case-report")
    assert (figure.caption, figure.mentions) == ("A picture.", ("See Figure 1.",))


@pytest.mark.parametrize(
    ("stated", "code"), [("", ""), (' xml:lang="EN"', "en"), (' xml:lang="pt-BR"', "pt")]
)
def test_the_language_of_an_article_is_what_it_states(bucket, corpus, stated, code):
    xml = article_xml(7, ["fig1"]).replace(b"<article ", f"<article{stated} ".encode(), 1)
    bucket.add(7, xml=xml)
    bucket.write_inventory()
    [figure] = read_figures(run(bucket, corpus))
    assert figure.language == code


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"published_from": "2020-02-03", "published_to": "2020-02-03"}, ""),
        ({"published_from": "2020-02-04"}, "other_date"),
        ({"published_to": "2020-02-02"}, "other_date"),
        ({"journals": ["journal of  TESTS"]}, ""),
        ({"journals": ["Nature"]}, "other_journal"),
        ({"article_types": ["case-report", "letter"]}, ""),
        ({"article_types": ["letter"]}, "other_type"),
        ({"licences": ["CC0"]}, "licence"),
    ],
)
def test_articles_are_selected_by_what_they_say(bucket, corpus, changes, reason):
    bucket.add(1)
    bucket.write_inventory()
    [row] = read_articles(run(bucket, corpus, **changes))
    assert row.reason == reason


def test_pictures_of_others_are_taken_only_where_asked(bucket, corpus):
    own = "Reproduced with permission from Elsevier.|"
    bucket.add(1, xml=article_xml(1, ["fig1", "fig2"], captions=own))
    bucket.write_inventory()
    [first, _] = read_figures(run(bucket, corpus, third_party=["no", "yes"]))
    assert (first.third_party, first.refusal) == ("yes", "")


def test_a_finished_article_is_not_fetched_again(bucket, corpus):
    for number in range(1, 7):
        bucket.add(number)
    bucket.write_inventory()
    rows = candidates(bucket)
    whole = run(bucket, corpus, rows)
    expected = read_figures(whole)
    (whole / MANIFEST).remove()  # killed at the last moment, with nothing in the journal
    journal = whole / JOURNAL
    assert not journal.exists()
    half = run(bucket, locate(f"{corpus}-2"), rows[:3])
    assert find_part(half).num_articles == 3
    # The others come later: those that are finished need not exist in the bucket any more.
    for number in (1, 2, 3):
        bucket.remove(f"metadata/PMC{number}.1.json")
    harvest_part(
        half,
        rows,
        settings_for(bucket),
        locate(f"{corpus}-2"),
        made_from="",
    )
    assert read_figures(half) == expected


def test_articles_are_removed_with_their_pictures_and_twice_is_once(bucket, corpus):
    for number in (1, 2, 3):
        bucket.add(number)
    bucket.write_inventory()
    place = run(bucket, corpus)
    [kept] = {figure.pictures[0].path for figure in read_figures(place)[:1]}
    assert remove_articles(place, {"PMC1", "PMC2"}, corpus, {kept}) == 2
    assert remove_articles(place, {"PMC1", "PMC2"}, corpus, {kept}) == 0
    assert [row.pmcid for row in read_articles(place)] == ["PMC3"]
    assert find_part(place).num_articles == 1
    assert (corpus / kept).exists()
    assert (corpus / "images" / "PMC2.1").children() == []


def test_a_part_with_too_many_failures_is_not_completed(bucket, corpus, monkeypatch):
    for number in (1, 2, 3, 4):
        bucket.add(number)
    bucket.write_inventory()
    file = bucket.root / "PMC2.1" / "PMC2.1.xml"
    data = file.read_bytes()
    file.unlink()
    file.mkdir()  # reading a folder is an error of the file system
    message = r"max_unavailable_fraction=0.01: 1 of 4 articles of 00000 are unavailable, the first"
    with pytest.raises(DataError, match=message):
        run(bucket, corpus)
    assert find_part(corpus / "harvest" / "00000") is None
    place = run(bucket, corpus, max_unavailable_fraction=0.5)
    assert [row.reason for row in read_articles(place)] == ["", "unavailable", "", ""]
    os.rmdir(file)
    file.write_bytes(data)
    bucket.remove("metadata/PMC1.1.json")  # what is finished is not asked for again
    run(bucket, corpus)
    assert [row.reason for row in read_articles(place)] == ["", "", "", ""]
    assert len(read_figures(place)) == 8


def test_a_changed_picture_is_taken_as_the_metadata_now_name_it(bucket, corpus, monkeypatch):
    bucket.add(1, num_figures=1)
    bucket.write_inventory()
    old = (bucket.root / "metadata/PMC1.1.json").read_bytes()
    bucket.add(1, media={"fig1.jpg": picture(77)}, xml=article_xml(1, ["fig1"]))
    new = (bucket.root / "metadata/PMC1.1.json").read_bytes()
    answers = [old, new]  # it changes after the first look at the metadata
    from llavamed.corpus.pmc.fetch import Fetcher

    read = Fetcher.read

    def read_changing(self, key, md5=""):
        return answers.pop(0) if key.startswith("metadata/") else read(self, key, md5)

    monkeypatch.setattr(Fetcher, "read", read_changing)
    [figure] = read_figures(run(bucket, corpus))
    assert (figure.refusal, figure.pictures[0].num_bytes) == ("", len(picture(77)))
    assert json.loads(new)["media_urls"] != json.loads(old)["media_urls"]
