"""Estimate what a harvest takes: articles, figures, requests, bytes and hours.

The shares and sizes are measurements of others of the bucket as a whole; a corpus of one topic or
journal may be far from them.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from llavamed.config.harvest import Harvest
from llavamed.corpus.pmc.inventory import read_inventory
from llavamed.corpus.pmc.search import count_articles, read_numbers
from llavamed.storage.location import locate

NUM_ARTICLES = 9_129_850
"""Articles of the inventory of 2026-09-01."""
NUM_BY_LICENCE = {
    "CC0": 169_017,
    "CC BY": 5_242_023,
    "CC BY-SA": 2_102,
    "CC BY-ND": 11_976,
    "CC BY-NC": 995_888,
    "CC BY-NC-SA": 301_732,
    "CC BY-NC-ND": 1_076_046,
}
"""Articles by licence, as NCBI's E-utilities count them on 2026-09-07."""
FIGURES_PER_ARTICLE = 4.0
"""Source: BIOMEDICA, 24 million figures of 6 million articles."""
METADATA_BYTES = 1_000
XML_BYTES = 74_000
"""Mean of 308 articles of PubMed Central and Europe PMC."""
PICTURE_BYTES = 96_000
"""Mean of the 721,000 figures that LLaVA-Med names."""
CPU_SECONDS_PER_REQUEST = 0.0031
"""Measured with 16 requests in flight to an S3 server on the same machine."""
CPU_SECONDS_PER_XML = 0.005
"""Measured on 18 real articles of 123 kB on average, without reading and writing."""


@dataclass(frozen=True)
class HarvestEstimate:
    """What a harvest takes."""

    num_articles: int
    """Articles whose metadata are read."""
    num_taken: int
    """Articles whose licence is allowed, and whose XML is read."""
    num_figures: int
    num_requests: int
    num_bytes: int
    """Bytes to fetch."""
    stored_bytes: int
    """Bytes to store."""
    hours_of_requests: float
    """Hours that `requests_per_second` allows no less than."""
    hours_of_cpu: float
    """Hours that the CPUs need at least."""

    @property
    def hours(self) -> float:
        """Hours that it takes, by whichever is slower."""
        return max(self.hours_of_requests, self.hours_of_cpu)


def count_candidates(settings: Harvest) -> int:
    """Return how many articles a harvest may look at: those that a query or a list names, those of
    a mirror, or all of the bucket. No article is fetched.

    Raises:
        DataError: The query is refused, or the list or the mirror cannot be read.
        StorageError: A server does not answer.
    """
    if settings.query is not None:
        return count_articles(settings.query, settings.search_url, datetime.now(UTC).date())
    if settings.articles is not None:
        return len(set(read_numbers(locate(settings.articles))))
    if settings.source != Harvest().source:
        return read_inventory(locate(settings.source)).articles.num_rows
    return NUM_ARTICLES


def estimate(
    settings: Harvest, num_cpus: int, num_candidates: int = NUM_ARTICLES
) -> HarvestEstimate:
    """Estimate a harvest without looking at its articles.

    Dates, journals and types are not counted: they leave less to store, but little less to read.

    Args:
        settings: The settings.
        num_cpus: CPUs that work on it.
        num_candidates: Articles that it may look at.
    """
    share = sum(NUM_BY_LICENCE[licence] for licence in settings.licences) / NUM_ARTICLES
    num_articles = num_candidates
    if settings.max_articles is not None:
        num_articles = min(num_articles, round(settings.max_articles / share))
    num_taken = round(num_articles * share)
    num_figures = round(num_taken * FIGURES_PER_ARTICLE)
    num_requests = num_articles + num_taken + num_figures
    stored = num_figures * PICTURE_BYTES
    # Each picture is also written, and a note of each article.
    num_writes = num_figures + num_articles
    cpu_seconds = (num_requests + num_writes) * CPU_SECONDS_PER_REQUEST
    cpu_seconds += num_taken * CPU_SECONDS_PER_XML
    return HarvestEstimate(
        num_articles=num_articles,
        num_taken=num_taken,
        num_figures=num_figures,
        num_requests=num_requests,
        num_bytes=num_articles * METADATA_BYTES + num_taken * XML_BYTES + stored,
        stored_bytes=stored,
        hours_of_requests=num_requests / settings.requests_per_second / 3600,
        hours_of_cpu=cpu_seconds / num_cpus / 3600,
    )
