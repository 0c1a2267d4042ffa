"""A small bucket with the layout of `pmc-oa-opendata`, made of articles and pictures of our own."""

import gzip
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

BUCKET = "pmc-oa-opendata"
LICENCE_URLS = {
    "CC0": "http://creativecommons.org/publicdomain/zero/1.0/",
    "CC BY": "https://creativecommons.org/licenses/by/4.0/",
    "CC BY-NC": "https://creativecommons.org/licenses/by-nc/4.0/",
}
FIGURE = (
    '<fig id="f{0}"><label>Figure {0}</label><caption><p>{1}</p></caption>'
    '<graphic xlink:href="{2}"/></fig><p>See <xref ref-type="fig" rid="f{0}">Figure {0}</xref>.</p>'
)


def picture(number: int, form: str = "JPEG", size: tuple[int, int] = (48, 32)) -> bytes:
    """A picture that no other number has."""
    colours = hashlib.sha256(str(number).encode()).digest()
    image = Image.new("RGB", size, tuple(colours[:3]))
    image.paste(tuple(colours[3:6]), (4, 4, 20, 20))
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def article_xml(number: int, names: list[str], licence: str = "CC BY", **facts: str) -> bytes:
    """An article with a figure a name, and one that belongs to somebody else where asked."""
    captions = facts.get("captions", "A picture.|").split("|")
    figures = "".join(
        FIGURE.format(n, captions[(n - 1) % (len(captions) - 1)], name)
        for n, name in enumerate(names, start=1)
    )
    body = facts.get("body", f"<body><sec>{figures}</sec></body>")
    url = LICENCE_URLS.get(licence, "")
    stated = f'<permissions><license xlink:href="{url}"/></permissions>' if url else ""
    return (
        f'<article xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'article-type="{facts.get("kind", "case-report")}"><front><journal-meta>'
        f"<journal-title-group><journal-title>{facts.get('journal', 'Journal of Tests')}"
        "</journal-title></journal-title-group></journal-meta><article-meta>"
        f'<article-id pub-id-type="pmcid">PMC{number}</article-id>'
        f'<pub-date pub-type="epub"><day>3</day><month>Feb</month>'
        f"<year>{facts.get('year', '2020')}</year></pub-date>{stated}"
        f"</article-meta></front>{body}</article>"
    ).encode()


@dataclass
class PmcBucket:
    """The files of the bucket below a folder."""

    root: Path

    def put(self, key: str, data: bytes) -> str:
        """Write a file, and return its MD5."""
        file = self.root / key
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        return hashlib.md5(data, usedforsecurity=False).hexdigest()

    def add(
        self,
        number: int,
        version: int = 1,
        *,
        num_figures: int = 2,
        xml: bytes | None = None,
        media: dict[str, bytes] | None = None,
        **facts: Any,
    ) -> None:
        """Add a version of an article.

        Args:
            number: Its number.
            version: Its version.
            num_figures: Figures of the article that is made.
            xml: The article itself, if it is not made here.
            media: Its pictures by name, if they are not made here.
            facts: What its metadata say differently.
        """
        name = f"PMC{number}.{version}"
        names = [f"fig{n}" for n in range(1, num_figures + 1)]
        pictures = {f"{each}.jpg": picture(100 * number + n) for n, each in enumerate(names)}
        media = pictures if media is None else media
        xml = article_xml(number, names) if xml is None else xml
        urls = [
            f"s3://{BUCKET}/{name}/{file}?md5={self.put(f'{name}/{file}', data)}"
            for file, data in media.items()
        ]
        md5 = self.put(f"{name}/{name}.xml", xml)
        metadata = {
            "pmcid": f"PMC{number}",
            "version": version,
            "pmid": number,
            "doi": f"10.1/{number}",
            "title": f"Case {number}",
            "citation": f"J Tests. 2020; {number}",
            "is_retracted": False,
            "is_historical_ocr": False,
            "is_manuscript": False,
            "license_code": "CC BY",
            "xml_url": f"s3://{BUCKET}/{name}/{name}.xml?md5={md5}",
            "media_urls": urls,
        }
        self.put(f"metadata/{name}.json", json.dumps(metadata | facts).encode())

    def remove(self, key: str) -> None:
        """Delete a file."""
        (self.root / key).unlink()

    def write_inventory(self, date: str = "2026-11-24T01-00Z", *, complete: bool = True) -> None:
        """List the metadata as S3 Inventory does, in two files, with a `hive` folder beside."""
        top = f"inventory-reports/{BUCKET}/metadata"
        files = sorted((self.root / "metadata").glob("PMC*.json"))
        rows = [
            f'"{BUCKET}","metadata/{file.name}","2026-01-01T00:00:00.000Z",'
            f'"{hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()}"\n'
            for file in files
        ]
        other = f'"{BUCKET}","metadata/README.txt","2026-01-01T00:00:00.000Z","0"\n'
        described = []
        for number, part in enumerate((rows[::2], [*rows[1::2], other])):
            key = f"{top}/data/{date}-{number}.csv.gz"
            data = gzip.compress("".join(part).encode(), mtime=0)
            md5 = self.put(key, data)
            described.append({"key": key, "size": len(data), "MD5checksum": md5})
        if not complete:
            self.remove(described[-1]["key"])
        manifest = {
            "sourceBucket": BUCKET,
            "version": "2016-11-30",
            "creationTimestamp": "1760000000000",
            "fileFormat": "CSV",
            "fileSchema": "Bucket, Key, LastModifiedDate, ETag",
            "files": described,
        }
        self.put(f"{top}/{date}/manifest.json", json.dumps(manifest).encode())
        self.put(f"{top}/hive/dt={date}/symlink.txt", b"")

    def upload(self, client: Any, bucket: str) -> None:
        """Copy all files into a bucket that anybody may read."""
        client.create_bucket(Bucket=bucket)
        for file in self.root.rglob("*"):
            if file.is_file():
                key = file.relative_to(self.root).as_posix()
                client.put_object(Bucket=bucket, Key=key, Body=file.read_bytes(), ACL="public-read")


def fill(bucket: PmcBucket) -> dict[str, str]:
    """Add an article of every kind that a harvest meets; return the reason that each ends with."""
    add = bucket.add
    expected = {"PMC1": "", "PMC2": "", "PMC3": ""}
    for number in (1, 2):
        add(number)
    add(3, 2)
    add(3, 10, num_figures=1)  # after .2, though not as text
    refusals: dict[str, dict[str, Any]] = {
        "retracted": {"is_retracted": True},
        "licence": {"license_code": "CC BY-NC"},
        "unknown_licence": {"license_code": None},
        "scanned": {"is_historical_ocr": True},
        "manuscript": {"is_manuscript": True, "media": {}},
        "licence_conflict": {"xml": article_xml(9, ["fig1"], "CC BY-NC")},
        "no_body": {"xml": article_xml(10, ["fig1"], body="")},
        "bad_xml": {"xml": article_xml(11, ["fig1"])[:-40]},
        "wrong_article": {"xml": article_xml(99, ["fig1"])},
        "unsafe_key": {"media_urls": [f"s3://{BUCKET}/PMC1.1/fig1.jpg"]},
    }
    for number, (reason, facts) in enumerate(refusals.items(), start=4):
        add(number, **facts)
        expected[f"PMC{number}"] = reason
    add(14, license_code="TDM")
    add(15)
    bucket.remove("PMC15.1/PMC15.1.xml")
    add(16, media_urls=[f"s3://{BUCKET}/PMC16.1/fig{n}.jpg?md5={'0' * 32}" for n in (1, 2)])
    add(17, media={"FIG1.JPG": picture(1), "fig2.png": picture(2, "PNG"), "fig2.gif": b"GIF89a"})
    add(18, media={"fig1.jpg": picture(3, "PNG"), "table.xlsx": b"PK"})
    own = "A picture.|Reproduced with permission from Elsevier.|"
    add(19, xml=article_xml(19, ["fig1", "fig2"], captions=own))
    add(20, media={"fig1.jpg": picture(5), "fig1.JPG": picture(6), "fig2.jpg": b"no picture"})
    add(21)
    bucket.remove("PMC21.1/fig2.jpg")
    expected |= {"PMC14": "licence", "PMC15": "missing_object"}
    return expected | {f"PMC{number}": "" for number in range(16, 22)}


REFUSED_FIGURES = {
    "PMC16": ["md5_mismatch", "md5_mismatch"],
    "PMC17": ["", ""],
    "PMC18": ["", "missing_media"],
    "PMC19": ["", "third_party"],
    "PMC20": ["ambiguous_media", "corrupt_image"],
    "PMC21": ["", "missing_object"],
}
"""Reasons of figures of `fill`, by article; those of other articles are all kept."""
