"""The bucket's metadata name an article's files, and none that lies elsewhere."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavamed.corpus.pmc.metadata import BucketFile, check_metadata, find_media, read_metadata
from llavamed.errors import SampleError

FOLDER = "PMC12.3"
STEMS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}[A-Za-z0-9]", fullmatch=True).filter(
    lambda stem: not stem.lower().endswith((".jpg", ".jpeg", ".png", ".gif", ".tif", ".tiff"))
)
PICTURES = st.sampled_from([".jpg", ".JPG", ".jpeg", ".png", ".gif", ".tif", ".TIFF"])


def metadata(**facts):
    url = f"s3://pmc-oa-opendata/{FOLDER}/{FOLDER}.xml?md5={'A' * 32}"
    plain = {"pmcid": "PMC12", "version": 3, "xml_url": url, "license_code": "CC BY"}
    return json.dumps(plain | facts).encode()


def media(*names):
    return tuple(BucketFile(f"{FOLDER}/{name}", "") for name in names)


def test_what_is_null_is_empty():
    found = read_metadata(metadata(doi=None, media_urls=None, title=" A\n title "), "PMC12", 3)
    assert (found.doi, found.media, found.title) == ("", (), "A title")
    assert (found.xml.name, found.xml.md5) == (f"{FOLDER}.xml", "a" * 32)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b"null", b'{"pmcid": "PMC12"', metadata(xml_url=None)]
)
def test_what_is_no_metadata_is_refused(data):
    with pytest.raises(SampleError, match="bad_metadata"):
        read_metadata(data, "PMC12", 3)


@pytest.mark.parametrize("facts", [{"pmcid": "PMC13"}, {"version": 2}, {"version": "3"}])
def test_metadata_of_another_article_are_refused(facts):
    with pytest.raises(SampleError, match=r"wrong_article: the metadata are of PMC1[23]\.[23]"):
        read_metadata(metadata(**facts), "PMC12", 3)


@pytest.mark.parametrize(
    "address",
    [
        "s3://pmc-oa-opendata/PMC1.1/fig.jpg",
        f"s3://pmc-oa-opendata/{FOLDER}/../PMC1.1/fig.jpg",
        f"s3://pmc-oa-opendata/{FOLDER}/below/fig.jpg",
        f"s3://pmc-oa-opendata/{FOLDER}/..",
        f"s3://pmc-oa-opendata/{FOLDER}/",
        f"s3://pmc-oa-opendata/{FOLDER}/a\\b.jpg",
        f"s3://pmc-oa-opendata/{FOLDER}/%2e%2e",
        f"s3://pmc-oa-opendata/{FOLDER}/a%2Fb.jpg",
        f"file:///{FOLDER}/fig.jpg",
        f"https://example.org/{FOLDER}/fig.jpg",
        "fig.jpg",
    ],
)
def test_a_file_outside_of_the_folder_is_refused(address):
    with pytest.raises(SampleError, match=r"unsafe_key: .* is not in the folder PMC12\.3"):
        read_metadata(metadata(media_urls=[address]), "PMC12", 3)


@pytest.mark.parametrize(
    ("address", "names", "expected"),
    [
        ("pone.0000217.g001", ["pone.0000217.g001.jpg", "pone.0000217.g002.jpg"], 0),
        ("info:doi/10.1371/journal.pone.0000217.g001", ["journal.pone.0000217.g001.jpg"], 0),
        ("https://example.org/a/gr1.tif?x=1", ["gr1.gif", "gr1.jpg"], 1),
        ("GR1", ["gr1.png"], 0),
        ("gr1.tif", ["gr1.tif", "gr1.jpg"], 0),
        ("40_2020_1_Fig1_HTML", ["40_2020_1_Fig10_HTML.jpg", "40_2020_1_Fig1_HTML.jpg"], 1),
        ("fig 1.jpg", ["fig 1.jpg"], 0),
        ("fig%201", ["fig 1.jpg"], 0),
        ("\ngr1.tif ", ["gr1.jpg"], 0),
        ("247835.fig.001a", ["247835.fig.001a.jpg", "247835.fig.001.jpg"], 0),
    ],
)
def test_a_picture_is_found_by_the_name_that_articles_write(address, names, expected):
    assert find_media([address], media(*names)).name == names[expected]


@given(STEMS, PICTURES, PICTURES, st.booleans())
def test_case_and_ending_do_not_matter(stem, written, there, has_ending):
    address = stem.swapcase() + (written if has_ending else "")
    files = media(f"{stem}{there}", f"{stem}-2.jpg", "notes.pdf")
    assert find_media([address], files) == files[0]


def test_the_first_alternative_that_is_there_is_taken():
    files = media("b.png", "c.jpg")
    assert find_media(["a", "c", "b"], files).name == "c.jpg"


@pytest.mark.parametrize(
    ("address", "names", "reason"),
    [
        ("a", ["a.jpg", "A.JPG"], r"ambiguous_media: the .* 'a' may be any of a.jpg, A.JPG"),
        ("a", ["a.pdf", "ab.jpg"], r"missing_media: none of 2 files is a"),
        ("a", [], r"missing_media: none of 0 files is a"),
    ],
)
def test_a_picture_that_is_not_there_is_refused(address, names, reason):
    with pytest.raises(SampleError, match=reason):
        find_media([address], media(*names))


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({}, None),
        ({"is_retracted": True, "license_code": None}, "retracted: the article is retracted"),
        ({"license_code": None}, "unknown_licence: 'none' is stated"),
        ({"license_code": "CC BY-XX"}, "unknown_licence: 'CC BY-XX' is stated"),
        ({"license_code": "CC BY-NC"}, "licence: CC BY-NC is not one of CC0, CC BY"),
        ({"is_historical_ocr": True}, "scanned: its text is read from scanned pages"),
        ({"is_manuscript": True}, "manuscript: it is an author's manuscript"),
    ],
)
def test_an_article_that_may_not_be_taken_is_refused(facts, reason):
    found = read_metadata(metadata(**facts), "PMC12", 3)
    if reason is None:
        check_metadata(found, ("CC0", "CC BY"))
        return
    with pytest.raises(SampleError, match=reason):
        check_metadata(found, ("CC0", "CC BY"))
