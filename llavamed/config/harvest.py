"""The `corpus.harvest` section: which articles of PubMed Central to take, and how fast."""

from datetime import date
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from llavamed.config.section import Count, Fraction, Section, Seed

Licence = Literal["CC0", "CC BY", "CC BY-SA", "CC BY-ND", "CC BY-NC", "CC BY-NC-SA", "CC BY-NC-ND"]
"""Licences, by the codes of PubMed Central. NC forbids commercial use, and ND forbids sharing
adaptations, such as crops and dialogues."""
ThirdParty = Literal["no", "unclear", "yes"]


class Harvest(Section):
    """Which articles to take from PubMed Central's open subset, and how fast."""

    source: str = "s3://pmc-oa-opendata?anonymous=true&endpoint=https://s3.us-east-1.amazonaws.com"
    """URI of the bucket, or of a mirror or folder with its layout. It names its endpoint,
    because the environment's may be another store."""
    licences: Annotated[tuple[Licence, ...], Field(min_length=1)] = ("CC0", "CC BY")
    """Licences to take, as the bucket states them. An article that states another is refused."""
    third_party: Annotated[tuple[ThirdParty, ...], Field(min_length=1)] = ("no",)
    """Figures to take, by whether they name another owner. Pictures of other owners are not
    fetched."""
    published_from: date | None = None
    """First publication day to take, such as `2015-01-01`. By default there is no limit."""
    published_to: date | None = None
    """Last publication day to take. By default there is no limit."""
    journals: tuple[str, ...] = ()
    """Titles of journals to take, in upper or lower case. By default all."""
    article_types: tuple[str, ...] = ()
    """Types of articles to take in JATS's words, such as `case-report`. By default all."""
    articles: str | None = None
    """URI of a file with the numbers of articles to take, such as `PMC123`, one per line. By
    default all of the inventory."""
    query: str | None = None
    """Search query of PubMed Central for the articles to take, in its own syntax, such as
    `chest radiograph[title] AND case reports[filter]`."""
    search_url: Annotated[str, Field(pattern=r"^https?://[^\s@?#]+$")] = (
        "https://eutils.ncbi.nlm.nih.gov/entrez/eutils"
    )
    """Address of NCBI's E-utilities, which run `query`."""
    max_articles: Count | None = None
    """Stop when this many articles have figures; the part that reaches it is finished. By default
    all articles are taken."""
    seed: Seed = 0
    """Seed for the order in which articles are taken. A larger corpus extends a smaller one."""
    articles_per_part: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """Number of articles per part. A part is the unit of work and of completeness."""
    articles_in_flight: Annotated[int, Field(ge=1, le=64)] = 16
    """Number of articles that a worker fetches at once."""
    requests_per_second: Annotated[float, Field(gt=0, le=5500)] = 200.0
    """Maximum number of requests per second, over all workers."""
    max_image_bytes: Count = 50_000_000
    """Maximum size of a picture, in bytes. Larger ones are refused."""
    max_unavailable_fraction: Fraction = 0.01
    """Maximum fraction of a part's articles that may fail for temporary reasons. The next run tries
    them again."""

    @model_validator(mode="after")
    def _dates_are_in_order(self) -> Self:
        first, last = self.published_from, self.published_to
        if first is not None and last is not None and first > last:
            raise ValueError(f"published_from={first}: is after published_to={last}; exchange them")
        return self

    @model_validator(mode="after")
    def _one_list_of_articles(self) -> Self:
        if self.articles is not None and self.query is not None:
            raise ValueError(
                f"query={self.query}: articles={self.articles} names the articles, too; remove one"
            )
        return self
