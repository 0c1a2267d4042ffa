"""The harvest as a Ray Data job: many parts, more articles later, and what an update changes."""

import math
from pathlib import Path
from typing import Any

import pytest

from llavamed.config.harvest import Harvest
from llavamed.corpus.figures import FigureRow, iter_kept
from llavamed.corpus.pmc.job import HarvestJob
from llavamed.corpus.pmc.plan import HarvestManifest
from llavamed.errors import DataError
from llavamed.storage.location import locate
from tests.support.pmc_bucket import PmcBucket, picture

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]
NUM_ARTICLES = 24
SIZE = 5


@pytest.fixture
def bucket(tmp_path: Path) -> PmcBucket:
    bucket = PmcBucket(tmp_path / "bucket")
    for number in range(1, NUM_ARTICLES + 1):
        bucket.add(number, license_code="TDM" if number % 6 == 0 else "CC BY")
    bucket.write_inventory()
    return bucket


def run(bucket: PmcBucket, *, update: bool = False, **changes: Any) -> HarvestManifest:
    fast = {"articles_per_part": SIZE, "requests_per_second": 5500, "articles_in_flight": 4}
    settings = Harvest.model_validate({"source": str(bucket.root)} | fast | changes)
    told: list[tuple[int, int]] = []
    job = HarvestJob(settings, locate(str(bucket.root.parent / "corpus")))
    manifest = job.run(update=update, on_progress=lambda *progress: told.append(progress))
    assert all(done <= total for done, total in told)
    return manifest


def kept(bucket: PmcBucket) -> dict[str, list[FigureRow]]:
    found: dict[str, list[FigureRow]] = {}
    for figure in iter_kept(locate(str(bucket.root.parent / "corpus" / "harvest"))):
        found.setdefault(figure.pmcid, []).append(figure)
    return found


def stored(bucket: PmcBucket) -> set[str]:
    corpus = bucket.root.parent / "corpus"
    return {str(p.relative_to(corpus)) for p in (corpus / "images").rglob("*") if p.is_file()}


def pictures(bucket: PmcBucket) -> set[str]:
    return {p.path for each in kept(bucket).values() for figure in each for p in figure.pictures}


def test_a_small_corpus_grows_and_an_update_follows_the_bucket(bucket: PmcBucket) -> None:
    few = run(bucket, max_articles=7)
    assert 7 <= few.num_kept < 7 + SIZE
    assert few.num_articles % SIZE == 0 or few.num_articles == NUM_ARTICLES
    beginning = kept(bucket)

    whole = run(bucket)
    assert whole.num_articles == NUM_ARTICLES
    assert whole.reasons == {"licence": NUM_ARTICLES // 6}
    assert beginning.items() <= kept(bucket).items()
    assert len(list((bucket.root.parent / "corpus" / "harvest").glob("0*"))) == math.ceil(
        NUM_ARTICLES / SIZE
    )
    requests = whole.counts["requests"]
    assert run(bucket) == whole, "a finished harvest asks for nothing"
    assert requests == NUM_ARTICLES + 20 * 3

    with pytest.raises(DataError, match=r'corpus.harvest.licences=\["CC0"\], was .*; restore them'):
        run(bucket, licences=["CC0"])

    before = kept(bucket)
    bucket.add(1, is_retracted=True)
    bucket.add(2, license_code="CC BY-NC")
    bucket.add(3, 2, num_figures=1)  # a correction is a new version
    bucket.remove("metadata/PMC4.1.json")
    bucket.add(6)  # its licence was no licence to copy
    bucket.add(5, media={"fig1.jpg": picture(500), "fig2.jpg": picture(999)})  # the same version
    bucket.add(NUM_ARTICLES + 1)
    bucket.write_inventory("2026-12-24T01-00Z")
    updated = run(bucket, update=True)
    now = kept(bucket)
    assert now.keys() - before.keys() == {"PMC6", f"PMC{NUM_ARTICLES + 1}"}
    assert before.keys() - now.keys() == {"PMC1", "PMC2", "PMC4"}
    assert [figure.version for figure in now["PMC3"]] == [2]
    assert now["PMC5"][0].pictures == before["PMC5"][0].pictures
    assert now["PMC5"][1].pictures != before["PMC5"][1].pictures
    unchanged = before.keys() & now.keys() - {"PMC3", "PMC5"}
    assert all(now[each] == before[each] for each in unchanged)
    assert stored(bucket) == pictures(bucket)
    assert (updated.inventory, updated.num_removed) == ("2026-12-24T01-00Z", 6)
    assert updated.num_articles == NUM_ARTICLES  # one is gone, one is new
    assert run(bucket, update=True) == updated, "nothing is new"


def test_what_was_unavailable_comes_later_and_what_was_replaced_stays_away(
    bucket: PmcBucket,
) -> None:
    one_part = {"articles_per_part": NUM_ARTICLES, "max_unavailable_fraction": 0.5}
    file = bucket.root / "PMC7.1" / "PMC7.1.xml"
    data = file.read_bytes()
    file.unlink()
    file.mkdir()  # reading a folder is an error of the file system
    assert run(bucket, **one_part).reasons["unavailable"] == 1
    for number in (1, 2):
        bucket.add(number, is_retracted=True)
    bucket.write_inventory("2026-12-24T01-00Z")
    assert run(bucket, update=True, **one_part).reasons["unavailable"] == 1
    file.rmdir()
    file.write_bytes(data)
    last = run(bucket, **one_part)
    assert last.reasons == {"licence": NUM_ARTICLES // 6, "retracted": 2}
    assert last.num_articles == NUM_ARTICLES
    assert "PMC7" in kept(bucket)
    assert not {"PMC1", "PMC2"} & kept(bucket).keys()
    assert stored(bucket) == pictures(bucket)


def test_a_harvest_that_is_not_finished_is_not_updated(bucket: PmcBucket) -> None:
    run(bucket, max_articles=7)
    with pytest.raises(DataError, match=r"is not finished, so it cannot be updated; finish"):
        run(bucket, update=True)
