"""The rules of selection: on captions labelled by hand, on drawn compounds, and from end to end."""

import hashlib
import io
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llavamed.config.corpus import Select
from llavamed.corpus.figures import list_parts, read_figures, write_figures
from llavamed.corpus.select import text_in_picture
from llavamed.corpus.select.captions import decide, load_lexicon, panel_cue, split_caption
from llavamed.corpus.select.gates import read_words
from llavamed.corpus.select.job import SELECT, finish
from llavamed.corpus.select.screen import HARVEST, SCREEN, Screen
from llavamed.errors import ConfigError
from llavamed.storage.location import locate
from tests.support.corpus_figures import CAPTIONS, figure
from tests.support.drawn_pictures import encoded, radiograph

LEXICON = load_lexicon(None)
WANTED = Select().modalities

PANELS = {  # by file, a letter a figure: s single, c compound, u not told by the caption
    "1471-2180-11-174.nxml": "sccc",
    "PMC3310194.xml": "ssscc" + 10 * "s",
    "PMC3491588.xml": "cccuuuccc",
    "PMC4046972.xml": 8 * "s",
    "PMC5819207.xml": "ucccccc",
    "PMC6318225.xml": "scsccc",
    "PMC7417471.nxml": 6 * "c",
    "PMC8160429.xml": "cccs",
    "PMC8172793.xml": "ssss",
    "PMC8192969.xml": "ccc",
    "S2236-89062021000100240.xml": "ssccssssss",
    "ehp-116-1694.nxml": "ccc",
    "elife-00666.xml": 10 * "s",
    "hindawi-247835.xml": 6 * "s",
    "pntd.0002065.nxml": "s",
    "pone.0000217.nxml": "sss",
    "pone.0046493.nxml": "cccs",
}
"""Labels that a person gave the figures of the golden articles by reading their captions."""
MODALITIES = {
    ("PMC8172793.xml", 0): "mri",
    ("PMC8172793.xml", 2): "mri",
    ("PMC8172793.xml", 3): "mri",
    ("PMC8192969.xml", 1): "ct_scan",
    ("PMC8192969.xml", 2): "histology",
}
"""Likewise; all others show none of the five modalities, or several."""

HELD_OUT_FILE = Path(__file__).parents[1] / "support/held_out_captions.txt"
HELD_OUT = [line.split("|", 2) for line in HELD_OUT_FILE.read_text().split("\n") if line]
"""Panels, modality (or `other`, `none`) and caption, labelled before the rules first read them."""

READ = {  # invented captions and what a person reads in them
    "Posteroanterior chest radiograph with a cavity in the left upper lobe.": "chest_xray",
    "Chest X-ray on admission: bilateral infiltrates.": "chest_xray",
    "CXR with an enlarged cardiac silhouette.": "chest_xray",
    "Lateral radiograph of the chest showing an air-fluid level.": "chest_xray",
    "Radiograph of the knee with an effusion.": None,
    "Panoramic radiograph of the jaw.": None,
    "Contrast-enhanced computed tomography of the abdomen with a renal mass.": "ct_scan",
    "Axial CT scan, lung window, with ground-glass opacities.": "ct_scan",
    "HRCT of a lung with honeycombing.": "ct_scan",
    "PET/CT with intense uptake in a lymph node.": None,
    "Non-contrast head CT: hyperdense crescent along the convexity.": "ct_scan",
    "Sagittal T1-weighted image of the spine with a collapsed vertebra.": "mri",
    "Cardiac MRI with late enhancement of the septum.": "mri",
    "FLAIR image with hyperintense lesions.": "mri",
    "Diffusion-weighted imaging shows restricted diffusion in the insula.": "mri",
    "MRCP with a dilated bile duct.": "mri",
    "CT and MRI of the pelvis in the same patient.": None,
    "Photomicrograph of the tumour with keratin pearls.": "histology",
    "Hematoxylin-eosin stain of the liver with bridging fibrosis, x200.": "histology",
    "Histopathology: granulomas with giant cells.": "histology",
    "Immunohistochemistry for CD20 with strong membranous staining.": "histology",
    "Microscopic examination of the biopsy shows spindle cells.": "histology",
    "Confocal immunofluorescence of cultured neurons.": None,
    "Scanning electron micrograph of bacteria.": None,
    "Gross appearance of the spleen with multiple nodules.": "gross",
    "Macroscopic view of the resected colon.": "gross",
    "Gross specimen with a fleshy tumour.": "gross",
    "The cut surface of the uterus shows a whorled mass.": "gross",
    "Macroscopically, the kidney is enlarged by cysts.": "gross",
    "Histological examination of the resected specimen with clear cells.": "histology",
    "Ultrasound of the thyroid with a hypoechoic nodule.": None,
    "Endoscopic view of an ulcer in the antrum.": None,
    "Kaplan-Meier curves of overall survival.": None,
    "Flow chart of the study.": None,
    "Schematic of the CT scanner.": None,
    "Fundus photograph with cotton-wool spots.": None,
    "ECG with ST elevation.": None,
    "Mean intensity on MRI by group; error bars are standard deviations.": None,
    "The patient on the day of surgery.": None,
    "Coronary angiogram with an occluded artery.": None,
}


@pytest.fixture(scope="module")
def golden(reference_data):
    files = json.loads((reference_data / "golden/pmc_figures.json").read_text())["files"]
    return {
        name: [each["caption"] or "" for each in file["figures"]] for name, file in files.items()
    }


def modality(caption):
    return decide(LEXICON.scores(caption), WANTED, Select().min_modality_score).name


def test_captions_that_no_rule_was_written_with_are_read_as_a_person_reads_them():
    found = [
        (
            "compound" if panel_cue(caption) else "single",
            decide(LEXICON.scores(caption), WANTED, Select().min_modality_score).name,
        )
        for _, _, caption in HELD_OUT
    ]
    pairs = list(zip(found, HELD_OUT, strict=True))
    singles = [there[0] == "single" for (panels, _), there in pairs if panels == "single"]
    named = [name == there[1] for (_, name), there in pairs if name is not None]
    assert len(HELD_OUT) == 90
    assert sum(singles) / len(singles) >= 0.95
    assert sum(singles) == sum(there[0] == "single" for there in HELD_OUT)
    assert sum(named) == len(named) == 49


def test_panels_of_the_golden_captions_are_told_as_a_person_tells_them(golden):
    counts = {"single": 0, "compound": 0}
    for name, labels in PANELS.items():
        for number, (caption, label) in enumerate(zip(golden[name], labels, strict=True)):
            if label == "u":
                continue
            found = "s" if panel_cue(caption) is None else "c"
            assert found == label, (name, number, panel_cue(caption))
            counts["single" if label == "s" else "compound"] += 1
    assert counts == {"single": 58, "compound": 41}


def test_modalities_of_the_golden_captions_are_told_as_a_person_tells_them(golden):
    for name, captions in golden.items():
        for number, caption in enumerate(captions):
            is_compound = PANELS[name][number] != "s"
            wanted = MODALITIES.get((name, number))
            if wanted or not is_compound:
                assert modality(caption) == wanted, (name, number)


@pytest.mark.parametrize(("caption", "wanted"), READ.items(), ids=range(len(READ)))
def test_a_caption_names_its_modality(caption, wanted):
    assert modality(caption) == wanted
    assert panel_cue(caption) is None


@pytest.mark.parametrize(
    ("caption", "parts"),
    [
        (
            "Liver. (A) CT with a mass. (B) MRI of it.",
            ["Liver. CT with a mass.", "Liver. MRI of it."],
        ),
        ("A. Before surgery. B. After surgery.", ["Before surgery.", "After surgery."]),
        ("CT shows a mass (A) and MRI shows it, too (B).", None),
        ("CT with a mass in the liver.", None),
        ("(A) CT. (C) MRI.", None),
        ("(A, B) CT. (C) MRI.", ["CT.", "CT.", "MRI."]),
        ("A Axial CT. B, C Coronal CT.", ["Axial CT.", "Coronal CT.", "Coronal CT."]),
    ],
)
def test_a_caption_is_split_where_letters_stand_before_their_texts(caption, parts):
    letters = [chr(ord("A") + number) for number in range(len(parts or ()))]
    assert split_caption(caption) == dict(zip(letters, parts or [], strict=True))


@pytest.mark.parametrize(
    ("caption", "is_compound"),
    [
        ("A T2-weighted image of the pelvis shows a cyst.", False),
        ("CT scan. A small nodule is seen. B cells were absent.", False),
        ("A CT scan. Its arrow A points at the cyst.", False),
        ("(I) Sagittal and (II) axial MRI.", True),
        ("i) CT; ii) MRI.", True),
        ("(a)\u2013(f) Slices through the liver.", True),
        ("Uptake of Tc (I) in the bone.", False),
        ("MRI of the knee: A - sagittal, B \u2013 coronal.", True),
        ("1A: chest radiograph. 1B: CT of the chest.", True),
        ("Fig. 2a Axial view. Fig. 2b Coronal view.", True),
        ("<A> Axial CT. <B> Coronal CT.", True),
        ("a, Overview; b, detail of the boxed area.", True),
        ("Figures a\u2013c: three levels of the same CT.", True),
        ("Grade 2a stenosis; type 1b endoleak on CT.", False),
        ("CT: group a vs b - densities. Specimen 1A: cut surface.", False),
        ("Hepatitis B - liver biopsy, H&E. MRI; a, artery; v, vein.", False),
    ],
)
def test_a_capital_that_is_a_word_or_a_number_makes_no_panel(caption, is_compound):
    assert (panel_cue(caption) is not None) == is_compound


@pytest.mark.parametrize(
    "words", ["A X. ", "A,", "a,a", "A ; ", "a - ", "1a - b ", "a, x; ", "a and ", "(A) x "]
)
def test_the_time_to_look_for_panels_grows_with_the_length_of_a_caption(words):
    start = time.process_time()
    assert panel_cue(words * 8000) in (None, "a", "A")
    assert split_caption(words * 8000) == {}
    assert time.process_time() - start < 5  # minutes where it grows with the square


REFUSED = {
    "licence": {"licence": "CC BY-NC"},
    "third_party": {"third_party": "yes", "third_party_quote": "Reproduced with permission."},
    "no_picture": {"pictures": ()},
    "several_pictures": {"pictures": figure().pictures * 2},
    "no_caption": {"caption": ""},
    "face": {"caption": "Photograph of the patient with MRI markers on the skin."},
    "compound": {"caption": "MRI of the brain before (A) and after (B) treatment."},
    "no_modality": {"caption": "A lesion of the thalamus."},
    "modality_conflict": {"caption": "CT and MRI of the brain."},
    "other_modality": {"caption": "Ultrasound of the liver."},
    "too_small": {"pictures": (replace(figure().pictures[0], width=200),)},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_each_gate_refuses_by_its_own_reason_and_says_why(reason):
    assert read_words(figure(), Select(), LEXICON).is_kept
    refused = read_words(figure(**REFUSED[reason]), Select(), LEXICON)
    assert refused.refusal == reason
    assert refused.refusal_detail


def test_every_licence_is_its_own_word():
    for allowed in ("CC BY", "CC BY-NC", "CC BY-ND", "CC BY-NC-ND"):
        chosen = Select(licences=(allowed,))
        kept = {
            code
            for code in (
                "CC0",
                "CC BY",
                "CC BY-SA",
                "CC BY-NC",
                "CC BY-ND",
                "CC BY-NC-ND",
                "TDM",
                "",
            )
            if read_words(figure(licence=code), chosen, LEXICON).is_kept
        }
        assert kept == {allowed}


def test_a_figure_of_a_group_has_the_group_s_caption_and_its_own_panels():
    grouped = figure(caption="", group_caption="Brain MRI with (a) FLAIR and (b) T2.", label="(a)")
    found = read_words(grouped, Select(), LEXICON)
    assert (found.refusal, found.modality, found.panels) == ("", "mri", "single")


@pytest.fixture
def harvest(tmp_path):
    """Two parts: one figure refused before; pictures that are a copy, absent and damaged."""
    random = np.random.default_rng(1)
    names = list(CAPTIONS)
    figures = [figure(n, caption=CAPTIONS[names[n % 5]].format(n)) for n in range(10)]
    figures[3] = figures[3].refused("retracted", "PMC4")
    for number, each in enumerate(figures):
        file = tmp_path / each.pictures[0].path
        file.parent.mkdir(parents=True)
        pixels = radiograph(random, 300, 300)
        file.write_bytes(encoded(pixels))
        if number == 0:
            copy = encoded(pixels, "JPEG")
    (tmp_path / figures[6].pictures[0].path).write_bytes(copy)
    (tmp_path / figures[7].pictures[0].path).unlink()
    (tmp_path / figures[8].pictures[0].path).write_bytes(b"damaged")
    step = locate(str(tmp_path)) / HARVEST
    write_figures(step / "00000", figures[:5], "")
    write_figures(step / "00001", figures[5:], "")
    return tmp_path


def run(folder, chosen):
    screen = Screen.load(str(folder), chosen)
    for part in ("00000", "00001"):
        screen.run(part)
    return finish(locate(str(folder)), chosen, ["00000", "00001"])


def test_every_figure_is_a_row_that_is_kept_or_has_a_reason(harvest):
    selection = run(harvest, Select())
    assert (selection.num_figures, selection.num_kept) == (10, 6)
    assert selection.refused == {
        "corrupt_image": 1,
        "duplicate": 1,
        "missing_picture": 1,
        "retracted": 1,
    }
    rows = [
        row for part, _ in list_parts(locate(str(harvest)) / SELECT) for row in read_figures(part)
    ]
    assert [row.id for row in rows] == [f"PMC{n + 1}.1-0" for n in range(10)]
    assert [row.refusal_detail for row in rows if row.refusal == "duplicate"] == ["of PMC1.1-0"]
    kept = [row for row in rows if row.is_kept]
    assert {row.panels for row in kept} == {"single"}
    assert all(row.scores[f"words:{row.modality}"] == 1.0 for row in kept)


def test_a_figure_is_split_into_panels_that_are_figures_of_their_own(tmp_path):
    random = np.random.default_rng(2)
    parts = [radiograph(random, 300, 300) for _ in range(3)]
    gap = np.full((300, 6, 3), 255, np.uint8)
    pixels = np.hstack([parts[0], gap, parts[1], gap, parts[2]])
    split = "One patient. (A) Chest CT. (B) Brain MRI. (C) Ultrasound of the liver."
    rows = [
        figure(0, caption=split),
        figure(1, caption="(A) Chest CT. (B) Brain MRI."),
        figure(2, caption="Brain MRI."),
    ]
    for each in rows:
        file = tmp_path / each.pictures[0].path
        file.parent.mkdir(parents=True)
        file.write_bytes(encoded(pixels))
    write_figures(locate(str(tmp_path)) / HARVEST / "00000", rows, "")
    chosen = Select(panels="split")
    Screen.load(str(tmp_path), chosen).run("00000")
    selection = finish(locate(str(tmp_path)), chosen, ["00000"])
    assert (selection.num_figures, selection.num_kept) == (6, 2)
    assert selection.refused == {"compound": 3, "other_modality": 1}
    found = read_figures(locate(str(tmp_path)) / SELECT / "00000")
    assert [each.id for each in found[:5]] == [
        *("PMC1.1-0", "PMC1.1-0A", "PMC1.1-0B", "PMC1.1-0C", "PMC2.1-0")
    ]
    assert found[0].refusal_detail == "split into 3 panels"
    for each, part, modality in zip(found[1:3], parts, ["ct_scan", "mri"], strict=False):
        assert (each.modality, each.panels) == (modality, "single")
        assert each.caption.startswith("One patient. ")
        stored = (tmp_path / each.pictures[0].path).read_bytes()
        assert hashlib.sha256(stored).hexdigest() == each.pictures[0].sha256
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(stored))), part)


def test_a_part_that_is_done_is_not_read_again_and_other_settings_or_figures_are(harvest):
    def written():
        return {
            file.relative_to(harvest).as_posix(): file.stat().st_mtime_ns
            for step in (SCREEN, SELECT)
            for file in (harvest / step).rglob("*.parquet")
        }

    run(harvest, Select())
    first = written()
    run(harvest, Select())
    assert written() == first
    selection = run(harvest, Select(duplicate_bits=None))
    assert "duplicate" not in selection.refused
    changed = {name for name, time in written().items() if time != first[name]}
    assert changed == {"select/00001/figures.parquet"}
    part = locate(str(harvest)) / HARVEST / "00000"
    write_figures(part, [replace(row, licence="TDM") for row in read_figures(part)], "")
    selection = run(harvest, Select(duplicate_bits=None))
    assert selection.refused["licence"] == 4
    assert written()["screen/00001/figures.parquet"] == first["screen/00001/figures.parquet"]


def test_an_unknown_modality_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ConfigError, match=r"modalities: xray is not in the lexicon; use some"):
        Screen.load(str(tmp_path), Select(modalities=("xray",)))


def test_reading_text_needs_its_package_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(text_in_picture, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package rapidocr, .* install llavamed\[ocr"):
        Screen.load(str(tmp_path), Select(read_text=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"lexicon=.*: no such file"),
        ("version: 1", r"lexicon=.*: is not a lexicon .*give vers"),
    ],
)
def test_a_lexicon_of_another_form_is_refused(tmp_path, content, message):
    file = tmp_path / "words.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_lexicon(str(file))
