"""The articles and the language model of `make demo-corpus` are what the corpus reads."""

import json

from llavamed.config.corpus import Select
from llavamed.corpus.dialogues.filters import load_filters
from llavamed.corpus.dialogues.prompt import WrittenDialogue, notes
from llavamed.corpus.dialogues.repeats import Repeats
from llavamed.corpus.pmc.figures import read_article
from llavamed.corpus.pmc.jats import parse_articles
from llavamed.corpus.select.captions import decide, load_lexicon, panel_cue
from scripts.demo_mirror import write_mirror
from scripts.demo_reciter import recite


def read(folder):
    for file in sorted(folder.glob("PMC*/*.xml")):
        metadata = json.loads((folder / "metadata" / f"{file.parent.name}.json").read_text())
        [article] = parse_articles(file.read_bytes(), file.name)
        yield metadata, read_article(article), file.parent


def test_most_invented_figures_may_be_used_and_some_not_each_for_a_reason(tmp_path):
    write_mirror(tmp_path, 24)
    lexicon, settings = load_lexicon(None), Select()
    good, bad = 0, set()
    for metadata, article, folder in read(tmp_path):
        assert article.pmcid == metadata["pmcid"]
        assert article.licence == metadata["license_code"]
        assert len(article.figures) == 3
        for figure in article.figures:
            assert (folder / f"{figure.graphics[0][0]}.png").exists()
            assert len(figure.mentions) == 1
            verdict = decide(lexicon.scores(figure.caption), settings.modalities, 0.6)
            reasons = {
                "retracted": metadata["is_retracted"],
                "licence": article.licence != "CC BY",
                "third_party": figure.third_party != "no",
                "compound": panel_cue(figure.caption) is not None,
                "modality": verdict.name is None,
            }
            found = {reason for reason, holds in reasons.items() if holds}
            assert len(found) <= 1
            bad |= found
            good += not found
    assert good == 3 * 19
    assert bad == {"retracted", "licence", "third_party", "compound", "modality"}


def test_the_recited_dialogues_are_of_the_form_that_is_asked_for_and_pass(tmp_path):
    write_mirror(tmp_path, 1)
    [(_, article, _)] = read(tmp_path)
    asked = notes(article.figures[0].caption, article.figures[0].mentions)
    turns = WrittenDialogue.model_validate_json(recite(asked, 0)).turns
    verdict = load_filters(None).judge(turns, asked, name="", scores=None, earlier=Repeats())
    assert (len(verdict.kept), verdict.findings) == (3, ())
    turns = WrittenDialogue.model_validate_json(recite(asked, 4)).turns
    verdict = load_filters(None).judge(turns, asked, name="", scores=None, earlier=Repeats())
    assert [each.rule for each in verdict.findings] == ["betrays_caption"]
    assert not recite(asked, 9).startswith("{")
