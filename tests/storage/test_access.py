"""A URI says how its storage is reached, wherever it travels, and never holds a secret."""

import os
import pickle

import boto3
import pytest
import s3fs
from hypothesis import given
from hypothesis import strategies as st

from llavamed.config.uri import below
from llavamed.errors import StorageError
from llavamed.storage.location import check_writable, locate

NAMES = st.from_regex(r"[a-z0-9][a-z0-9.-]{1,20}[a-z0-9]", fullmatch=True)
SCHEMES = st.sampled_from(["http", "https"])
ENDPOINTS = st.builds("{}://{}:{}".format, SCHEMES, NAMES, st.integers(1, 65535))
OPTIONS = st.lists(
    st.one_of(st.just("anonymous=true"), ENDPOINTS.map("endpoint={}".format)),
    unique_by=lambda option: option.partition("=")[0],
)


@pytest.fixture
def public(s3_uri, monkeypatch):
    """Address of a server with a public file, to which the environment does not lead."""
    address = os.environ["AWS_ENDPOINT_URL"]
    client = boto3.client("s3", endpoint_url=address)
    client.create_bucket(Bucket="public")
    client.put_object(Bucket="public", Key="folder/a.txt", Body=b"open", ACL="public-read")
    client.put_object(Bucket="public", Key="folder/b.txt", Body=b"closed")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    yield address
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_bucket_is_read_without_credentials_at_an_endpoint_of_its_own(public, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    folder = locate(f"s3://public/folder?anonymous=true&endpoint={public}")
    assert (folder / "a.txt").read_bytes() == b"open"
    assert folder.children() == ["a.txt", "b.txt"]
    with pytest.raises(StorageError, match=r"b.txt\?anonymous=true&endpoint=.*cannot read it"):
        (folder / "b.txt").read_bytes()


def test_an_endpoint_alone_takes_the_credentials_of_the_environment(public):
    folder = locate(f"s3://public/folder?endpoint={public}")
    assert (folder / "b.txt").read_bytes() == b"closed"
    check_writable(folder)


def test_the_way_goes_on_to_workers(public):
    folder = locate(f"s3://public/folder?anonymous=true&endpoint={public}")
    for again in (pickle.loads(pickle.dumps(folder)), locate(str(folder))):
        assert again == folder
        assert (again / "a.txt").read_bytes() == b"open"


@given(NAMES, st.lists(NAMES, max_size=3), OPTIONS)
def test_a_location_is_written_as_it_is_read(bucket, names, options):
    uri = "/".join([f"s3://{bucket}", *names])
    place = locate("?".join(filter(None, [uri, "&".join(options)])))
    assert locate(str(place)) == place
    assert place.path == uri.removeprefix("s3://")
    joined = below(str(place), "name")
    assert locate(joined) == place / "name"
    assert place.without_retries().fs.anon == place.fs.anon
    assert place.without_retries().fs.endpoint_url == place.fs.endpoint_url


@pytest.mark.parametrize(
    "options",
    [
        "anonymous=false",
        "anonymous",
        "anon=true",
        "endpoint=",
        "endpoint=minio:9000",
        "endpoint=ftp://host",
        "endpoint=http://key:secret@host",
        "endpoint=http://host:port",
        "secret=abc",
    ],
)
def test_an_option_that_is_not_known_is_refused(options):
    with pytest.raises(
        StorageError, match=r"\?\w*=\.\.\.: is not an option of a location"
    ) as refused:
        locate(f"s3://bucket/path?{options}")
    assert "secret" not in str(refused.value).replace("?secret=", "")
    assert "abc" not in str(refused.value)


def test_credentials_in_a_uri_are_refused_and_not_repeated():
    with pytest.raises(StorageError, match=r"s3://\*\*\*@bucket/x: a URI holds no cred") as refused:
        locate("s3://key:secret@bucket/x")
    assert "secret" not in str(refused.value).partition(":")[2].partition(": a URI")[0]


def test_a_question_mark_of_a_local_path_is_part_of_it(tmp_path):
    file = locate(str(tmp_path)) / "a?anonymous=true"
    file.write_bytes(b"1")
    assert locate(str(file)).read_bytes() == b"1"
    assert below("/a?b", "c") == "/a?b/c"
