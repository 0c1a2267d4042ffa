"""Articles that left the corpus, by a retraction, a correction or another licence.

Raw answers outlive every change of prompts, filters and selections, because they were paid for.
They do not outlive the article that they tell of.
"""

from llavamed.corpus.figures import iter_kept
from llavamed.corpus.pmc.plan import HarvestManifest
from llavamed.llm.answer import AnswerCache
from llavamed.storage.location import Location
from llavamed.storage.manifest import find

_HASHES = ("request_hash", "checker_hash")


def gone_articles(harvest: Location, dialogues: Location) -> frozenset[str]:
    """Return the articles, such as `PMC123.1`, that dialogues tell of and a harvest has no more.

    Without a finished harvest nothing is known to have gone: articles may still be to come.

    Raises:
        StorageError: A table cannot be read.
    """
    if find(HarvestManifest, harvest) is None:
        return frozenset()
    told = {
        article_of(name)
        for file in _tables(dialogues)
        for name in file.read_table().column("figure_id").to_pylist()
    }
    for figure in iter_kept(harvest) if told else ():
        told.discard(article_of(figure.id))
    return frozenset(told)


def forget(dialogues: Location, answers: str, gone: frozenset[str]) -> int:
    """Remove the raw answers, and their checks, about some articles; return their number.

    Raises:
        StorageError: They cannot be removed.
    """
    if not gone:
        return 0
    cache = AnswerCache(answers)
    keys = {
        row[name]
        for file in _tables(dialogues)
        for row in file.read_table().select(["figure_id", *_HASHES]).to_pylist()
        for name in _HASHES
        if row[name] and article_of(row["figure_id"]) in gone
    } & cache.keys()
    for key in keys:
        cache.remove(key)
    return len(keys)


def article_of(figure_id: str) -> str:
    """Return the article with its version of the id of a figure or a panel."""
    return figure_id.rpartition("-")[0]


def _tables(dialogues: Location) -> list[Location]:
    names = (name for name in dialogues.children() if name.startswith("dialogues-"))
    return [dialogues / name for name in sorted(names)]
