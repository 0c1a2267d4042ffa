"""Describe a corpus: a data card, Croissant metadata, and attribution.

The card has the fields of Hugging Face's dataset cards. All numbers are counted from the tables;
nothing in it is written by hand but the name.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import yaml

from llavamed.corpus.dialogues.table import DialoguesManifest
from llavamed.corpus.figures import FigureRow, iter_kept, list_parts, read_figures
from llavamed.corpus.select.job import SELECT
from llavamed.errors import ConfigError, DataError
from llavamed.storage.location import Location
from llavamed.storage.manifest import find

CARD, CROISSANT, ATTRIBUTION = "README.md", "croissant.json", "attribution.csv"
SAMPLES = "samples"
UNKNOWN = "unknown"
_MOST_JOURNALS = 20
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_COLUMNS = ("article", "title", "citation", "journal", "year", "doi", "licence", "licence_url")
_CUT = "figures cut into panels"
_REWRITTEN = "captions and text about them rewritten as dialogues"


@dataclass
class Counts:
    """Counts of the figures of a corpus."""

    kept: int = 0
    articles: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    modalities: Counter[str] = field(default_factory=Counter)
    years: Counter[str] = field(default_factory=Counter)
    journals: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)

    @property
    def known_languages(self) -> list[str]:
        """Codes of the languages that articles state, the most frequent first."""
        return [name for name, _ in self.languages.most_common() if name != UNKNOWN]

    @classmethod
    def of(cls, step: Location) -> "Counts":
        """Count the figures of a step. Raises: StorageError."""
        counts = cls()
        for part, _ in list_parts(step):
            articles = set()
            for figure in read_figures(part):
                if not figure.is_kept:
                    counts.refused[figure.refusal] += 1
                    continue
                counts.kept += 1
                articles.add((figure.pmcid, figure.version))
                counts.licences[figure.licence] += 1
                counts.modalities[figure.modality] += 1
                counts.years[str(figure.year or UNKNOWN)] += 1
                counts.journals[figure.journal or UNKNOWN] += 1
                counts.languages[figure.language or UNKNOWN] += 1
            counts.articles += len(articles)
        return counts


def write_cards(corpus: Location, name: str) -> Counts:
    """Write the data card, the Croissant metadata and the attribution below the corpus folder.

    Args:
        corpus: Folder of the corpus.
        name: What the corpus is called.

    Raises:
        DataError: No figure is selected.
        ConfigError: The package mlcroissant is not installed.
        StorageError: A file cannot be read or written.
    """
    counts = Counts.of(corpus / SELECT)
    if not counts.kept:
        raise DataError(
            f"corpus.directory={corpus}: no figure is selected; run `llavamed corpus select` first"
        )
    dialogues = find(DialoguesManifest, corpus / "dialogues")
    croissant = _croissant(corpus, name, counts)
    figures = iter_kept(corpus / SELECT)
    (corpus / ATTRIBUTION).write_bytes(_attribution(figures, dialogues is not None).encode())
    (corpus / CROISSANT).write_json(croissant)
    (corpus / CARD).write_bytes(_card(name, counts, dialogues).encode())
    return counts


def _attribution(figures: Iterable[FigureRow], is_rewritten: bool) -> str:
    """Return one line per article, with everything that CC BY requires."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, "num_figures", "changes"])
    for (pmcid, version), group in groupby(figures, lambda each: (each.pmcid, each.version)):
        own = list(group)
        first = own[0]
        facts = (getattr(first, column) for column in _COLUMNS[1:])
        changes = [_CUT] * any(each.panel for each in own) + [_REWRITTEN] * is_rewritten
        row = [f"{pmcid}.{version}", *facts, len(own), "; ".join(changes) or "none"]
        writer.writerow(row)
    return text.getvalue()


def _card(name: str, counts: Counts, dialogues: DialoguesManifest | None) -> str:
    head: dict[str, Any] = {
        "pretty_name": name,
        **({"language": languages} if (languages := counts.known_languages) else {}),
        "license": "other",
        "license_name": "per-article",
        "license_link": ATTRIBUTION,
        "annotations_creators": ["machine-generated" if dialogues else "found"],
        "language_creators": ["found", *(["machine-generated"] if dialogues else [])],
        "size_categories": [next((word for most, word in _SIZES if counts.kept < most), "n>1M")],
        "source_datasets": ["original"],
        "task_categories": ["visual-question-answering", "image-text-to-text"],
        "tags": ["medical", "biology", "pubmed-central"],
        "configs": [
            {"config_name": kind, "data_files": f"{SAMPLES}/{kind}-*.parquet"}
            for kind in ("align", *(["instruct"] if dialogues else []))
        ],
    }
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n"
        + "\n".join([f"# {name}\n", *_about(counts), *_written(dialogues), *_end(dialogues)])
        + "\n"
    )


def _about(counts: Counts) -> Iterator[str]:
    yield (
        f"{counts.kept:,} figures of {counts.articles:,} articles of PubMed Central's open access "
        f"subset, with their captions. Each article keeps its own licence; `{ATTRIBUTION}` names "
        "every article, its authors' citation, its licence and what was changed.\n"
    )
    for title, found in (
        ("Licences", counts.licences),
        ("Modalities", counts.modalities),
        ("Languages that articles state", counts.languages),
        ("Years", counts.years),
        ("Journals", Counter(dict(counts.journals.most_common(_MOST_JOURNALS)))),
    ):
        yield _table(title, "figures", found)
    if len(counts.journals) > _MOST_JOURNALS:
        yield f"And {len(counts.journals) - _MOST_JOURNALS:,} more journals.\n"
    yield _table("Refused figures, by reason", "figures", counts.refused)


def _written(dialogues: DialoguesManifest | None) -> Iterator[str]:
    if dialogues is None:
        return
    yield (
        f"## Dialogues\n\n{dialogues.num_dialogues:,} dialogues with {dialogues.num_exchanges:,} "
        f"questions, written by the language model `{dialogues.generator}` from captions and "
        f"mentions, for {dialogues.num_figures:,} figures; it did not need to see the pictures. "
        "Whether its terms allow training on what it writes is for whoever publishes this to say.\n"
    )
    if dialogues.checker:
        yield f"The model `{dialogues.checker}` scored each against its notes.\n"
    price = "not stated" if dialogues.cost is None else f"{dialogues.cost:.4g}"
    yield (
        f"It read {dialogues.prompt_tokens:,} tokens and wrote {dialogues.completion_tokens:,}; "
        f"cost: {price}. Prompt `{dialogues.prompt_hash}`, rules `{dialogues.filters_hash}`.\n"
    )
    yield _table("Requests, by outcome", "figures", Counter(dialogues.outcomes))
    yield _table("Found by the rules", "findings", Counter(dialogues.findings))


def _table(title: str, what: str, counts: Counter[str]) -> str:
    named = ((name.replace("|", "/"), count) for name, count in sorted(counts.items()))
    rows = "".join(f"| {name} | {count:,} |\n" for name, count in named)
    return f"## {title}\n\n| | {what} |\n| --- | ---: |\n{rows}" if rows else ""


def _end(dialogues: DialoguesManifest | None) -> Iterator[str]:
    yield _LIMITS
    if dialogues is not None:
        yield (
            "Dialogues are machine-written from text and may state what the picture does not show."
            "\n"
        )
    yield _SOURCE


_LIMITS = """\
## Limits

Captions describe single cases that somebody found worth publishing. Modalities and panels are told
by rules, which err. Nothing here is for clinical use, or for finding out who a patient is.
"""
_SOURCE = """\
## Source

Articles come from the PubMed Central Open Access Subset of the National Library of Medicine. This
copy may not reflect its most current data. An article that is retracted or changes its licence is
removed when the corpus is updated; to ask for a removal, write to whoever publishes this copy and
name the article.
"""


def _croissant(corpus: Location, name: str, counts: Counts) -> dict[str, Any]:
    """Return the metadata of the samples. Raises: ConfigError, without mlcroissant."""
    try:
        import mlcroissant as mlc
    except ImportError as error:
        raise ConfigError(
            "corpus.card: needs the package mlcroissant, which is not installed; install "
            "llavamed[card]"
        ) from error
    kinds = sorted({each.partition("-")[0] for each in (corpus / SAMPLES).children()})
    files = [
        mlc.FileObject(
            id="corpus",
            name="corpus",
            description="The folder that holds the samples and the pictures.",
            content_url="./",
            encoding_formats=["git+https"],
            sha256="main",
        ),
        *(
            mlc.FileSet(
                id=f"{kind}-files",
                name=f"{kind}-files",
                contained_in=["corpus"],
                encoding_formats=["application/x-parquet"],
                includes=[f"{SAMPLES}/{kind}-*.parquet"],
            )
            for kind in kinds
        ),
    ]
    columns = ("id", "image", "domain", "pmid", "licence")
    sets = [
        mlc.RecordSet(
            id=kind,
            name=kind,
            fields=[
                mlc.Field(
                    id=f"{kind}/{column}",
                    name=column,
                    data_types=[mlc.DataType.TEXT],
                    source=mlc.Source(file_set=f"{kind}-files", extract=mlc.Extract(column=column)),
                )
                for column in columns
            ],
        )
        for kind in kinds
    ]
    licences = ", ".join(f"{code} {count}" for code, count in sorted(counts.licences.items()))
    metadata = mlc.Metadata(
        name=name,
        description=f"{counts.kept} figures of {counts.articles} open articles, with captions.",
        license=[f"per article: {licences}"],
        version="1.0.0",
        in_language=counts.known_languages or None,
        cite_as=f"See {ATTRIBUTION}.",
        distribution=files,
        record_sets=sets,
        data_collection="Figures of PubMed Central's open access subset, selected by rules.",
        data_biases="Single cases that were published; see the card for counts.",
        personal_sensitive_information="Pictures of patients, de-identified by their publishers.",
    )
    loaded: dict[str, Any] = json.loads(json.dumps(metadata.to_json(), default=str))
    return loaded
