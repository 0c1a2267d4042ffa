"""The articles that a bucket has: from its newest complete inventory, or by listing a mirror.

`pmc-oa-opendata` lists the metadata of its articles every day, one row a version of an article, in
Amazon's S3 Inventory format. It tells the version and what has changed (ETag), but no licence.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from llavamed.errors import DataError, StorageError
from llavamed.storage.location import Location

INVENTORIES = "inventory-reports"
METADATA = "metadata"
NUM_TRIED = 3
"""Number of inventories to try, newest first, because the newest may still be being written."""
LISTING = "listing"
"""Name of the inventory of a mirror that has none."""

CANDIDATES_SCHEMA = pa.schema(
    [("pmcid", pa.int64()), ("version", pa.int32()), ("etag", pa.string())]
)
"""One row per article: its number, its latest version, and the ETag of its metadata."""

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}-\d{2}Z")
_KEY = r"^metadata/PMC(?P<pmcid>\d{1,12})\.(?P<version>\d{1,6})\.json$"
_COLUMNS = {"key", "etag"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inventory:
    """The content of a bucket at one time: a table of `CANDIDATES_SCHEMA`, ordered by article."""

    name: str
    """Date of the inventory, or `listing`."""
    sha256: str
    """Hash of the inventory's manifest, or of the listing."""
    articles: pa.Table


def read_inventory(bucket: Location) -> Inventory:
    """Read the newest complete inventory of a bucket, or list its metadata where it has none.

    Raises:
        DataError: No inventory is complete, or the place holds no articles.
        StorageError: It cannot be read.
    """
    top = bucket / INVENTORIES
    folders = [top / name / METADATA for name in top.children()]
    dated = [folder / name for folder in folders for name in folder.children()]
    newest = sorted((each for each in dated if _DATE.fullmatch(each.name)), key=lambda e: e.name)
    for place in reversed(newest[-NUM_TRIED:]):
        try:
            return _read(bucket, place)
        except (FileNotFoundError, DataError, StorageError) as error:
            logger.warning("%s: is not complete (%s); the one before is read", place, error)
    if newest:
        raise DataError(
            f"{top}: none of the newest {NUM_TRIED} inventories is complete; try again later"
        )
    found = _list(bucket)
    if not found.articles.num_rows:
        raise DataError(
            f"{bucket}: holds no inventory and no metadata/PMC*.json; check corpus.harvest.source"
        )
    return found


def _read(bucket: Location, place: Location) -> Inventory:
    data = (place / "manifest.json").read_bytes()
    try:
        manifest = json.loads(data)
        columns = [name.strip().lower() for name in manifest["fileSchema"].split(",")]
        files = [(file["key"], file.get("MD5checksum", "")) for file in manifest["files"]]
        if manifest["fileFormat"] != "CSV" or not set(columns) >= _COLUMNS:
            raise ValueError("no CSV with Key and ETag")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{place}: {error}: is not an inventory of a known form") from error
    tables = [batch for key, md5 in files for batch in _read_csv(bucket / key, md5, columns)]
    return Inventory(place.name, hashlib.sha256(data).hexdigest(), _latest(tables))


def _read_csv(file: Location, md5: str, columns: list[str]) -> Iterator[pa.Table]:
    data = file.read_bytes()
    if md5 and hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
        raise DataError(f"{file}: differs from its MD5 in the manifest")
    stream = pa.CompressedInputStream(pa.BufferReader(data), "gzip")
    try:
        rows = csv.open_csv(
            stream,
            read_options=csv.ReadOptions(column_names=columns),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.string()), include_columns=["key", "etag"]
            ),
        )
        for batch in rows:
            yield _articles(pc.replace_substring(batch["key"], "%2F", "/"), batch["etag"])
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file}: is not a gzipped CSV: {error}") from error


def _articles(keys: pa.Array, etags: pa.Array) -> pa.Table:
    found = pc.extract_regex(keys, _KEY)
    is_article = found.is_valid()
    found, etags = found.filter(is_article), etags.filter(is_article)
    return pa.table(
        {
            "pmcid": pc.struct_field(found, "pmcid").cast(pa.int64()),
            "version": pc.struct_field(found, "version").cast(pa.int32()),
            "etag": pc.utf8_trim(etags, '"'),
        },
        CANDIDATES_SCHEMA,
    )


def _latest(tables: list[pa.Table]) -> pa.Table:
    """Keep the latest version of every article, ordered by article."""
    table = pa.concat_tables(tables) if tables else CANDIDATES_SCHEMA.empty_table()
    pmcid, version = table["pmcid"].to_numpy(), table["version"].to_numpy()
    order = np.lexsort((version, pmcid))
    ordered = pmcid[order]
    is_last = np.append(ordered[1:] != ordered[:-1], True) if len(ordered) else order
    return table.take(order[is_last.astype(bool)]).combine_chunks()


def _list(bucket: Location) -> Inventory:
    files = sorted((bucket / METADATA).list_files().items())
    keys = [f"{METADATA}/{path.rpartition('/')[2]}" for path, _ in files]
    etags = pa.array([_change_of(facts) for _, facts in files], pa.string())
    table = _latest([_articles(pa.array(keys, pa.string()), etags)])
    names = [f"{row['pmcid']}.{row['version']} {row['etag']}" for row in table.to_pylist()]
    return Inventory(LISTING, hashlib.sha256("\n".join(names).encode()).hexdigest(), table)


def _change_of(facts: dict[str, Any]) -> str:
    """Return what a filesystem tells of a file that changes with its content."""
    return str(facts.get("ETag") or f"{facts.get('size')}-{facts.get('mtime')}")


def rank(pmcids: Any, seed: int) -> Any:
    """Return the order in which articles are taken: that of a hash of the seed and their numbers.

    It is the same on every machine, and adding articles keeps the order of the others.

    Args:
        pmcids: Numbers of articles, an int64 array of shape [articles].
        seed: Seed of the order.

    Returns:
        Positions, an int64 array of shape [articles].
    """
    hashes = (hashlib.sha256(f"{seed} PMC{number}".encode()).digest()[:8] for number in pmcids)
    keys = np.fromiter((int.from_bytes(each, "big") for each in hashes), np.uint64, len(pmcids))
    return np.argsort(keys, kind="stable")
