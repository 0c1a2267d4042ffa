"""The metadata that the bucket has of an article, and whether the article may be taken.

They name the article's files with their MD5. What they say of the licence decides.
"""

import json
import posixpath
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from llavamed.errors import SampleError

KNOWN_LICENCES = frozenset(
    {"CC0", "CC BY", "CC BY-SA", "CC BY-ND", "CC BY-NC", "CC BY-NC-SA", "CC BY-NC-ND", "TDM"}
)
"""Codes of the bucket. TDM allows mining and no copies."""

_PICTURES = (".jpg", ".jpeg", ".png", ".gif", ".tif", ".tiff")
"""Endings of pictures, the likeliest to be of full size first."""


@dataclass(frozen=True)
class BucketFile:
    """A file of an article: its key below the bucket, and its MD5 where that is known."""

    key: str
    md5: str

    @property
    def name(self) -> str:
        """Name without the folder."""
        return posixpath.basename(self.key)


@dataclass(frozen=True)
class Metadata:
    """The bucket's metadata of one version of an article."""

    pmcid: str
    version: int
    pmid: str
    doi: str
    title: str
    citation: str
    licence: str
    is_retracted: bool
    is_scanned: bool
    is_manuscript: bool
    xml: BucketFile
    media: tuple[BucketFile, ...]


def read_metadata(data: bytes, pmcid: str, version: int) -> Metadata:
    """Read the metadata of an article.

    Args:
        data: The file.
        pmcid: The article whose file it should be.
        version: Its version.

    Raises:
        SampleError: `bad_metadata`, `wrong_article`, or `unsafe_key` where a file would lie outside
            of the article's folder.
    """
    try:
        found = json.loads(data)
        facts = (found["pmcid"], found["version"])
        media = found.get("media_urls") or []
        xml_url = found["xml_url"]
        if not isinstance(xml_url, str) or not all(isinstance(each, str) for each in media):
            raise TypeError("an address is not text")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SampleError("bad_metadata", f"not readable: {error!r}") from error
    if facts != (pmcid, version):
        raise SampleError("wrong_article", f"the metadata are of {facts[0]}.{facts[1]}")
    folder = f"{pmcid}.{version}"
    return Metadata(
        pmcid=pmcid,
        version=version,
        pmid=_text(found, "pmid"),
        doi=_text(found, "doi"),
        title=_text(found, "title"),
        citation=_text(found, "citation"),
        licence=_text(found, "license_code"),
        is_retracted=bool(found.get("is_retracted")),
        is_scanned=bool(found.get("is_historical_ocr")),
        is_manuscript=bool(found.get("is_manuscript")),
        xml=_file(xml_url, folder),
        media=tuple(_file(each, folder) for each in media),
    )


def _text(found: dict[str, Any], key: str) -> str:
    value = found.get(key)
    return "" if value is None else " ".join(str(value).split())


def _file(address: str, folder: str) -> BucketFile:
    parts = urlsplit(address)
    key = unquote(parts.path).lstrip("/")
    name = key.removeprefix(f"{folder}/")
    is_inside = key != name and "/" not in name and "\\" not in name and name not in {"", ".", ".."}
    if parts.scheme != "s3" or not is_inside or "\0" in name:
        raise SampleError("unsafe_key", f"{address!r} is not in the folder {folder}")
    md5 = re.search(r"(?:^|&)md5=([0-9a-fA-F]{32})(?:&|$)", parts.query)
    return BucketFile(key, md5[1].lower() if md5 else "")


def check_metadata(metadata: Metadata, licences: tuple[str, ...]) -> None:
    """Refuse an article that may not be taken, by what the bucket says of it.

    Raises:
        SampleError: `retracted`, `unknown_licence`, `licence`, `scanned` or `manuscript`.
    """
    if metadata.is_retracted:
        raise SampleError("retracted", "the article is retracted")
    if metadata.licence not in KNOWN_LICENCES:
        raise SampleError("unknown_licence", f"{metadata.licence or 'none'!r} is stated")
    if metadata.licence not in licences:
        raise SampleError("licence", f"{metadata.licence} is not one of {', '.join(licences)}")
    if metadata.is_scanned:
        raise SampleError("scanned", "its text is read from scanned pages, and marks no figures")
    if metadata.is_manuscript:
        raise SampleError("manuscript", "it is an author's manuscript, whose pictures are not kept")


def find_media(addresses: list[str], media: tuple[BucketFile, ...]) -> BucketFile:
    """Return the file of a picture that an article names.

    Articles name pictures by file, by stem, in another case, or by a whole address.

    Args:
        addresses: Address of the picture as written, or those of its alternatives.
        media: Files of the article.

    Raises:
        SampleError: `missing_media` or `ambiguous_media`.
    """
    for address in addresses:
        name = posixpath.basename(unquote(urlsplit(address).path) or address).strip()
        if exact := [file for file in media if file.name == name]:
            return exact[0]
        same = [file for file in media if _stem(file.name) == _stem(name) and _rank(file.name) >= 0]
        if same:
            best = min(_rank(file.name) for file in same)
            fitting = [file for file in same if _rank(file.name) == best]
            if len(fitting) > 1:
                names = ", ".join(file.name for file in fitting)
                raise SampleError(
                    "ambiguous_media", f"the figure's file {address!r} may be any of {names}"
                )
            return fitting[0]
    raise SampleError("missing_media", f"none of {len(media)} files is {', '.join(addresses)}")


def _stem(name: str) -> str:
    """Return a name in lower case without the ending of a picture; other dots belong to it."""
    name = name.lower()
    ending = next((each for each in _PICTURES if name.endswith(each)), "")
    return name.removesuffix(ending)


def _rank(name: str) -> int:
    """Return the place of a name's ending among those of pictures, -1 for any other."""
    found = [rank for rank, each in enumerate(_PICTURES) if name.lower().endswith(each)]
    return found[0] if found else -1
