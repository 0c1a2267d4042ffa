"""Pairs and cards: what a corpus is published as, and what it says of itself."""

import csv
import io
import sys
from collections import Counter
from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llavamed.config.corpus import Pairs
from llavamed.config.sources import Parquet
from llavamed.corpus.card import ATTRIBUTION, CARD, CROISSANT, write_cards
from llavamed.corpus.dialogues.table import DialoguesManifest
from llavamed.corpus.figures import write_figures
from llavamed.corpus.pairs import load_prompts, make_pair, write_pairs
from llavamed.data.record import check_record
from llavamed.data.sources import open_source
from llavamed.errors import ConfigError, DataError
from llavamed.storage.location import locate
from llavamed.storage.manifest import write
from tests.support.corpus_figures import figure, selected

SEEDS = st.integers(0, 2**32 - 1)


def words(count):
    return " ".join(f"word{number}" for number in range(count))


def test_there_are_as_many_prompts_as_in_the_paper_and_no_two_are_alike():
    prompts = load_prompts()
    assert {kind: len(texts) for kind, texts in prompts.items()} == {"concise": 11, "detailed": 16}
    assert len({text.lower() for texts in prompts.values() for text in texts}) == 27


@given(st.integers(0, 450), SEEDS)
def test_the_length_of_a_caption_chooses_the_kind_of_prompt(count, seed):
    pair = make_pair(figure(caption=words(count)), Pairs(seed=seed))
    if not 4 <= count <= 400:
        assert pair is None
        return
    asked, answered = (turn["value"] for turn in pair["conversations"])
    kind = "concise" if count < 30 else "detailed"
    assert asked.replace("<image>", "").strip() in load_prompts()[kind]
    assert asked.startswith("<image>\n") or asked.endswith("\n<image>")
    assert answered == words(count)
    assert make_pair(figure(caption=words(count)), Pairs(seed=seed)) == pair


def test_prompts_and_places_of_the_image_are_all_drawn():
    pairs = [make_pair(each, Pairs()) for each in selected(1000)]
    asked = [pair["conversations"][0]["value"] for pair in pairs]
    counts = Counter(text.replace("<image>", "").strip() for text in asked)
    assert len(counts) == 11
    assert min(counts.values()) > 1000 / 11 / 2
    assert 400 < sum(text.startswith("<image>") for text in asked) < 600


def test_pairs_are_what_the_parquet_source_reads(tmp_path):
    corpus = locate(str(tmp_path))
    figures = [*selected(5), figure(5, caption="MRI.", modality="mri")]
    write_figures(corpus / "select" / "00000", figures, "")
    write_figures(corpus / "select" / "00001", [selected(7)[6].refused("face", "a face")], "")
    assert write_pairs(corpus / "select", corpus / "samples", Pairs()) == {
        "pairs": 5,
        "unfit_length": 1,
    }
    path = f"{tmp_path}/samples/align-*.parquet"
    source = open_source(Parquet(source="parquet", path=path, image_folder=str(tmp_path)))
    records = [source.parse(row) for row in source.rows()]
    for record, each in zip(records, figures, strict=False):
        check_record(record)
        assert (record.id, record.domain, record.pmid) == (each.id, each.modality, each.pmid)
        assert record.unread_keys == ()
    (corpus / "select" / "00001").remove()
    write_pairs(corpus / "select", corpus / "samples", Pairs())
    assert (corpus / "samples").children() == ["align-00000.parquet"]
    (corpus / "select" / "00000").remove()
    with pytest.raises(DataError, match=r"/select: holds no figures; run `llavamed corpus select`"):
        write_pairs(corpus / "select", corpus / "samples", Pairs())


def test_bounds_of_captions_are_in_order():
    with pytest.raises(ValueError, match=r"min_words=9: is more than max_words=8; lower it"):
        Pairs(min_words=9, max_words=8)


@pytest.fixture
def corpus(tmp_path):
    place = locate(str(tmp_path))
    rows = selected(7)
    rows[1] = rows[1].refused("face", "a face")
    write_figures(place / "select" / "00000", rows, "")
    write_pairs(place / "select", place / "samples", Pairs())
    return place


def test_the_card_counts_what_the_tables_hold(corpus):
    counts = write_cards(corpus, "a-corpus")
    assert (counts.kept, counts.articles, counts.refused) == (6, 6, {"face": 1})
    text = (corpus / CARD).read_bytes().decode()
    _, head, body = text.split("---\n", 2)
    facts = yaml.safe_load(head)
    assert facts["size_categories"] == ["n<1K"]
    assert [each["config_name"] for each in facts["configs"]] == ["align"]
    for line in ("| CC BY | 6 |", "| chest_xray | 2 |", "| 2024 | 6 |", "| face | 1 |"):
        assert line in body


def test_every_article_is_attributed(corpus):
    write_cards(corpus, "a-corpus")
    rows = list(csv.DictReader(io.StringIO((corpus / ATTRIBUTION).read_bytes().decode())))
    assert [row["article"] for row in rows] == ["PMC1.1", *(f"PMC{n}.1" for n in range(3, 8))]
    for row in rows:
        assert all(row[key] for key in ("title", "citation", "licence", "licence_url"))
        assert row["changes"] == "none"
    assert "machine-written" not in (corpus / CARD).read_bytes().decode()


def test_the_card_speaks_of_dialogues_where_there_are_some(corpus):
    counts = {"num_figures": 6, "num_dialogues": 1, "num_exchanges": 3}
    tables = {"outcomes": {"answered": 6}, "findings": {}, "modalities": {"mri": 1}}
    hashes = {"prompt_hash": "p", "filters_hash": "f", "selection": "s"}
    tokens = {"prompt_tokens": 9, "completion_tokens": 9, "cost": None}
    facts = {"generator": "writer", "checker": None, **counts, **tables, **hashes, **tokens}
    write(corpus / "dialogues", DialoguesManifest(**facts))
    write_cards(corpus, "a-corpus")
    text = (corpus / CARD).read_bytes().decode()
    assert "1 dialogues with 3 questions, written by the language model `writer`" in text
    assert "Dialogues are machine-written from text" in text
    assert "rewritten as dialogues" in (corpus / ATTRIBUTION).read_bytes().decode()


def test_the_attribution_says_which_figures_are_cut(corpus):
    panels = [figure(9, panel=letter, modality="mri") for letter in "AB"]
    write_figures(corpus / "select" / "00001", panels, "")
    write_cards(corpus, "a-corpus")
    rows = csv.DictReader(io.StringIO((corpus / ATTRIBUTION).read_bytes().decode()))
    changes = {row["article"]: row["changes"] for row in rows}
    assert changes.pop("PMC10.1") == "figures cut into panels"
    assert set(changes.values()) == {"none"}


@pytest.mark.parametrize(
    ("stated", "known"),
    [([""] * 6, None), (["en"] * 6, ["en"]), (["", "pt", "en", "en", "pt", "en"], ["en", "pt"])],
)
def test_the_languages_are_those_that_articles_state(tmp_path, stated, known):
    place = locate(str(tmp_path))
    rows = [replace(row, language=code) for row, code in zip(selected(6), stated, strict=True)]
    write_figures(place / "select" / "00000", rows, "")
    write_cards(place, "a-corpus")
    text = (place / CARD).read_bytes().decode()
    assert yaml.safe_load(text.split("---\n")[1]).get("language") == known
    in_language = (place / CROISSANT).read_json().get("inLanguage")
    assert in_language == (known[0] if known and len(known) == 1 else known)
    for code, count in Counter(stated).items():
        assert f"| {code or 'unknown'} | {count} |" in text


def test_the_croissant_metadata_are_valid(corpus):
    import mlcroissant

    write_cards(corpus, "a-corpus")
    dataset = mlcroissant.Dataset((corpus / CROISSANT).path)
    assert not dataset.metadata.issues.errors
    assert [each.id for each in dataset.metadata.record_sets] == ["align"]


def test_cards_need_figures_and_mlcroissant(corpus, monkeypatch, tmp_path):
    with pytest.raises(DataError, match=r"no figure is selected; run `llavamed corpus select` fi"):
        write_cards(locate(str(tmp_path / "empty")), "a-corpus")
    monkeypatch.setitem(sys.modules, "mlcroissant", None)
    with pytest.raises(ConfigError, match=r"needs the package mlcroissant, .* install llavamed"):
        write_cards(corpus, "a-corpus")
    assert not (corpus / CARD).exists()
