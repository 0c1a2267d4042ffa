"""Find the numbers of articles: in a file, or by a query with NCBI's E-utilities.

A search gives at most 9,999 articles and no order that holds from page to page, so that a query
with more is asked again for each half of its range of dates.
"""

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from datetime import date, timedelta

from llavamed.errors import DataError
from llavamed.storage.location import Location
from llavamed.storage.retry import ATTEMPTS, with_retries

MOST_RESULTS = 9_999
SECONDS_BETWEEN_REQUESTS = 0.34
"""NCBI allows three requests a second."""
FIRST_DAY = date(1990, 1, 1)
"""No article entered PubMed Central before."""


@dataclass(frozen=True)
class _Server:
    """Prints as its address, and knows how often to try and how long to wait."""

    url: str
    attempts: int = ATTEMPTS
    seconds: float = 60.0
    is_local: bool = False

    def __str__(self) -> str:
        return self.url


def find_articles(query: str, url: str, last_day: date) -> list[int]:
    """Return the numbers of the articles that a query finds, in order.

    Args:
        query: In PubMed Central's syntax.
        url: Address of the E-utilities.
        last_day: Last day on which an article may have entered PubMed Central.

    Raises:
        DataError: The query is refused, or a single day has too many articles.
        StorageError: The server does not answer.
    """
    found: set[int] = set()
    windows = [(FIRST_DAY, last_day)]
    while windows:
        first, last = windows.pop()
        count, numbers = _search(query, _Server(url), first, last)
        if count <= MOST_RESULTS:
            found.update(numbers)
        elif first == last:
            raise DataError(
                f"corpus.harvest.query={query}: finds {count:,} articles of {first}, and at most "
                f"{MOST_RESULTS:,} of a day can be listed; narrow it"
            )
        else:
            middle = first + (last - first) // 2
            windows += [(first, middle), (middle + timedelta(days=1), last)]
    return sorted(found)


def count_articles(query: str, url: str, last_day: date) -> int:
    """Return how many articles a query finds, by one request; see `find_articles`.

    A server that does not answer is given up within half a minute.
    """
    server = _Server(url, attempts=2, seconds=10.0)
    return _search(query, server, FIRST_DAY, last_day)[0]


def read_numbers(file: Location) -> list[int]:
    """Return the numbers of a file of articles, one per line, with or without `PMC`.

    Raises:
        DataError: There is no such file, or a line is not a number.
    """
    try:
        lines = file.read_bytes().decode().split()
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise DataError(
            f"corpus.harvest.articles={file}: is not a readable text file; check the path"
        ) from error
    numbers = [line.upper().removeprefix("PMC").partition(".")[0] for line in lines]
    for line, number in zip(lines, numbers, strict=True):
        if not (number.isascii() and number.isdigit()):
            raise DataError(
                f"corpus.harvest.articles={file}: {line[:40]!r} is not the number of an article; "
                "write one such as PMC123 on each line"
            )
    return [int(number) for number in numbers]


def _search(query: str, server: _Server, first: date, last: date) -> tuple[int, list[int]]:
    """Return how many articles a query finds between two days, and the first of them."""
    parameters = {
        "db": "pmc",
        "term": query,
        "retmode": "json",
        "retmax": str(MOST_RESULTS),
        "datetype": "edat",
        "mindate": first.strftime("%Y/%m/%d"),
        "maxdate": last.strftime("%Y/%m/%d"),
    }
    address = f"{server.url.rstrip('/')}/esearch.fcgi?{urllib.parse.urlencode(parameters)}"
    time.sleep(SECONDS_BETWEEN_REQUESTS)
    data = with_retries(server, "ask", lambda: _get(address, server.seconds))
    try:
        result = json.loads(data)["esearchresult"]
        if problem := result.get("ERROR"):
            raise DataError(f"corpus.harvest.query={query}: {problem}; correct the query")
        return int(result["count"]), [int(number) for number in result["idlist"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{server}: answers in a form that is not known ({type(error).__name__}: {error}); "
            "check corpus.harvest.search_url"
        ) from error


def _get(address: str, seconds: float) -> bytes:
    try:
        with urllib.request.urlopen(address, timeout=seconds) as answer:
            data: bytes = answer.read()
    except urllib.error.HTTPError as error:
        if error.code in {408, 429} or error.code >= 500:
            raise ConnectionError(f"HTTP {error.code}") from error
        raise
    except urllib.error.URLError as error:
        raise ConnectionError(str(error.reason)) from error
    if b"Search Backend failed" in data:  # with status 200, and for a while only
        raise ConnectionError(" ".join(data.decode(errors="replace").split())[:200])
    return data
