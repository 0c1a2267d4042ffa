"""botocore fetches what s3fs would: the same bytes, by the same requests, with the same errors."""

import json
import os
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import s3fs
from hypothesis import given
from hypothesis import strategies as st

from llavamed.errors import StorageError
from llavamed.storage import ranges, retry
from llavamed.storage.location import Location, locate
from llavamed.storage.ranges import RangeFile
from llavamed.storage.retry import RetryingFile
from tests.support.faulty_s3 import FOR_EVER, Fault, FaultyS3

DATA = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()


def opened(place: Location, size: int | None = len(DATA)) -> RangeFile:
    return RangeFile(place.fs, place.path, size, {})


@contextmanager
def s3fs_alone() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "_KNOWN", set())
        yield


@contextmanager
def botocore_alone() -> Iterator[None]:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("s3fs was asked")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3fs.S3FileSystem, "cat_file", refuse)
        yield


def retries(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The attempts that were logged, without the seconds to the next."""
    ours = [record for record in caplog.records if record.name == retry.__name__]
    return [record.getMessage().rpartition(", the next")[0] for record in ours]


@pytest.fixture(scope="module")
def place(s3_uri: str) -> Location:
    place = locate(f"{s3_uri}/ranges/blob")
    place.write_bytes(DATA)
    return place


SIZES = st.one_of(st.integers(-1, 50), st.integers(0, 2 * len(DATA)))


@given(seeks=st.lists(st.tuples(st.integers(0, len(DATA) + 10), SIZES), max_size=5))
def test_both_clients_read_the_same_bytes(place: Location, seeks: list[tuple[int, int]]) -> None:
    for alone in (botocore_alone, s3fs_alone):
        with alone():
            file = opened(place)
            for start, size in seeks:
                file.seek(start)
                data = file.read(size)
                assert data == DATA[start : len(DATA) if size < 0 else start + size]
                assert file.tell() == start + len(data)


def test_threads_get_their_own_ranges(place: Location) -> None:
    def read(number: int) -> bool:
        file = opened(place)
        file.seek(number * 1000)
        return file.read(90_000) == DATA[number * 1000 : number * 1000 + 90_000]

    with botocore_alone(), ThreadPoolExecutor(16) as pool:
        assert all(pool.map(read, range(200)))


def test_a_forked_process_has_no_connection_of_its_parent(place: Location) -> None:
    opened(place).read(1)
    assert ranges._clients
    if (child := os.fork()) == 0:
        os._exit(len(ranges._clients))
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("fault", ["500", "503", "reset", "cut"])
def test_a_request_that_fails_once_is_made_again_by_s3fs(
    place: Location, faulty: FaultyS3, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    behind = locate(str(place))
    faulty.fail(fault, "/blob", method="GET")
    assert opened(behind).read(1000) == DATA[:1000]
    assert (faulty.num_faults, faulty.count("/blob")) == (1, 2)
    assert not retries(caplog)


@pytest.mark.parametrize("fault", ["403", "500", "503", "reset", "cut", "absent", "no bucket"])
def test_what_stays_bad_is_told_as_s3fs_tells_it(
    place: Location, faulty: FaultyS3, fault: Any, caplog: pytest.LogCaptureFixture
) -> None:
    behind = locate(str(place))
    if fault == "absent":
        behind = Location(behind.fs, f"{behind.path}-absent")
    elif fault == "no bucket":
        behind = locate("s3://llavamed-tset/blob")
    else:
        faulty.fail(fault, "/blob", times=FOR_EVER, method="GET")
    told = []
    for alone in (s3fs_alone, lambda: pytest.MonkeyPatch.context()):
        caplog.clear()
        with alone(), pytest.raises((StorageError, FileNotFoundError)) as error:
            RetryingFile(behind, opened(behind)).read(1000)
        told.append((type(error.value), str(error.value), retries(caplog)))
    assert told[0] == told[1]


@dataclass
class Recorder:
    """A server that gives credentials and bytes to all, and keeps how it was asked."""

    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """Of each request for bytes the URL and range, who signed it for where, and the token."""
    port: int = 0
    region: str = ""
    """Requests for another region are sent on to this one."""

    def answer(self, handler: BaseHTTPRequestHandler) -> tuple[int, str, bytes]:
        path = urlsplit(handler.path).path
        told = {"AccessKeyId": "ROLE", "SecretAccessKey": "secret", "Token": "of-role"}
        told["Expiration"] = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        if handler.command == "PUT":  # of an instance, before it tells its role
            return 200, "text/plain", b"token"
        if path == "/latest/meta-data/iam/security-credentials/":
            return 200, "text/plain", b"instance"
        if path in {"/latest/meta-data/iam/security-credentials/instance", "/container"}:
            return 200, "application/json", json.dumps({"Code": "Success", **told}).encode()
        if handler.command == "POST":
            told["SessionToken"] = told.pop("Token")
            inner = "".join(f"<{key}>{value}</{key}>" for key, value in told.items())
            action = "AssumeRoleWithWebIdentity"
            body = f"<{action}Result><Credentials>{inner}</Credentials></{action}Result>"
            return 200, "text/xml", f"<{action}Response>{body}</{action}Response>".encode()
        signer = handler.headers.get("Authorization", "nobody").partition(",")[0]
        host = handler.headers["Host"]
        url = handler.path if "://" in handler.path else f"http://{host}{handler.path}"
        token = handler.headers.get("X-Amz-Security-Token", "none")
        self.asked.append((f"{url} {handler.headers['Range']}", signer, token))
        if self.region not in signer:
            return 301, "text/xml", b"<Error><Code>PermanentRedirect</Code></Error>"
        return 206, "application/octet-stream", b"12345"


@contextmanager
def recording(context: ssl.SSLContext | None = None) -> Iterator[Recorder]:
    recorder = Recorder()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, kind, body = recorder.answer(self)
            self.send_response_only(status)
            self.send_header("Content-Type", kind)
            self.send_header("X-Amz-Bucket-Region", recorder.region)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_POST = do_GET  # noqa: N815

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        server.daemon_threads, server.block_on_close = True, False
        recorder.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield recorder
        server.shutdown()


KEYS = {"AWS_ACCESS_KEY_ID": "KEY", "AWS_SECRET_ACCESS_KEY": "secret"}
PROFILE = "[profile other]\naws_access_key_id = OTHER\naws_secret_access_key = secret\n"
PROCESS = f"[default]\ncredential_process = {sys.executable} process.py\n"
HERE = {"AWS_ENDPOINT_URL": "{here}"}
WAYS: dict[str, tuple[dict[str, str], str, str]] = {
    "environment": (HERE | KEYS, "", "Credential=KEY/"),
    "session token": (HERE | KEYS | {"AWS_SESSION_TOKEN": "of-session"}, "", "of-session"),
    "profile": (HERE | {"AWS_PROFILE": "other"}, PROFILE + "region = eu-west-3\n", "eu-west-3"),
    "endpoint of a profile": (
        {"AWS_PROFILE": "other"},
        PROFILE + "endpoint_url = {here}\n",
        "OTHER",
    ),
    "process": (HERE, PROCESS, "Credential=PROCESS/"),
    "web identity": (
        HERE
        | {"AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/r", "AWS_WEB_IDENTITY_TOKEN_FILE": "t"},
        "",
        "of-role",
    ),
    "container": (HERE | {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "{here}/container"}, "", "of-role"),
    "instance": (HERE | {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "{here}/"}, "", "of-role"),
    "host of the bucket, by a proxy": (
        KEYS | {"AWS_ENDPOINT_URL": "http://minio.example.org", "HTTP_PROXY": "{here}"},
        "[default]\ns3 =\n  addressing_style = virtual\n",
        "http://bucket.minio.example.org/a%20b/%2B",
    ),
    "no proxy": (
        HERE | KEYS | {"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"},
        "",
        "KEY",
    ),
}


@pytest.fixture
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Sets an environment in which nothing else leads to S3."""

    def surround(variables: dict[str, str], config: str, here: str) -> None:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        (tmp_path / "config").write_text(config.replace("{here}", here))
        (tmp_path / "t").write_text("token")
        told = {"Version": 1, "AccessKeyId": "PROCESS", "SecretAccessKey": "secret"}
        (tmp_path / "process.py").write_text(f"print({json.dumps(told)!r})")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        if "region" in config:
            monkeypatch.delenv("AWS_DEFAULT_REGION")
        for name, value in variables.items():
            monkeypatch.setenv(name, value.replace("{here}", here))

    return surround


def read_by_both(uri: str) -> None:
    """Read five bytes of an object by s3fs and then by botocore."""
    for alone in (s3fs_alone, botocore_alone):
        s3fs.S3FileSystem.clear_instance_cache()
        with alone():
            assert opened(locate(uri), 10).read(5) == b"12345"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("way", WAYS)
def test_credentials_endpoint_and_proxy_are_found_as_s3fs_finds_them(
    way: str, surroundings: Callable[..., None]
) -> None:
    variables, config, expected = WAYS[way]
    with recording() as recorder:
        surroundings(variables, config, f"http://127.0.0.1:{recorder.port}")
        read_by_both("s3://bucket/a b/+")
    by_s3fs, by_botocore = recorder.asked
    assert by_s3fs == by_botocore
    assert expected in " ".join(by_botocore)


def test_the_region_of_a_bucket_is_found_alike(surroundings: Callable[..., None]) -> None:
    with recording() as recorder:
        recorder.region = "eu-west-3"
        surroundings(HERE | KEYS, "", f"http://127.0.0.1:{recorder.port}")
        read_by_both("s3://bucket/key")
    assert [signer.split("/")[2] for _, signer, _ in recorder.asked] == 2 * [
        "us-east-1",
        "eu-west-3",
    ]


def test_options_of_a_uri_hold_for_both(surroundings: Callable[..., None]) -> None:
    with recording() as recorder:
        surroundings(KEYS, "", "")
        read_by_both(f"s3://bucket/key?anonymous=true&endpoint=http://127.0.0.1:{recorder.port}")
        assert recorder.asked[0] == recorder.asked[1]
        assert recorder.asked[0][1] == "nobody"


def test_what_fsspec_is_told_by_its_own_config_is_left_to_s3fs(
    surroundings: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with recording() as recorder:
        surroundings(HERE | KEYS, "", f"http://127.0.0.1:{recorder.port}")
        monkeypatch.setitem(s3fs.core.fsspec.config.conf, "s3", {"key": "OF-FSSPEC", "secret": "s"})
        s3fs.S3FileSystem.clear_instance_cache()
        assert opened(locate("s3://bucket/key"), 10).read(5) == b"12345"
    s3fs.S3FileSystem.clear_instance_cache()
    assert "Credential=OF-FSSPEC/" in recorder.asked[0][1]


def test_certificates_are_trusted_alike(
    surroundings: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with recording(context) as recorder:
        surroundings(HERE | KEYS, "", f"https://127.0.0.1:{recorder.port}")
        assert opened(locate("s3://bucket/key"), 10)._fetch(0, 5) is None
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
        read_by_both("s3://bucket/key")
    assert recorder.asked[0] == recorder.asked[1]


def self_signed(folder: Path) -> Path:
    """Write a key and a certificate of 127.0.0.1 into one file."""
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    file = folder / "certificate.pem"
    plain = serialization.NoEncryption()
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return file
