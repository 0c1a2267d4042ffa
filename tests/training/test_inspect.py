"""What `llavamed data inspect` shows is what lies in the shards, on a terminal and on a page."""

import base64
import io
import re
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from rich.console import Console

from llavamed.config.load import dump_config
from llavamed.data.inspect.page import render_samples
from llavamed.data.inspect.samples import (
    LINE_BREAK,
    SPACE,
    InspectedSample,
    Refusal,
    Span,
    find_samples,
    pick_samples,
    read_refusals,
    read_samples,
)
from llavamed.data.inspect.terminal import show_refusals, show_sample
from llavamed.data.prepared.dataset import QUARANTINE, open_prepared
from llavamed.data.prepared.sample_tables import read_sample_tables
from llavamed.data.record import QUARANTINE_SCHEMA, quarantine_row
from llavamed.errors import DataError, SampleError
from llavamed.processor.turns import IGNORE_INDEX, Turn
from llavamed.storage.location import locate
from llavamed.storage.manifest import write
from tests.support.html_page import Page
from tests.support.training_setup import prepared, processor_of, small_config

MAX_LENGTH = 215
EVIL = "</dd><script>alert(1)</script>\x1b[2J\u202e"
REFUSED = [
    {"source": "d", "row": row, "id": f"bad-{row}", "reason": reason, "detail": EVIL}
    for row, reason in enumerate(["rare", *["common"] * 5])
]


@pytest.fixture(scope="module")
def config(tiny_config, tmp_path_factory):
    place = tmp_path_factory.mktemp("inspected")
    return small_config(tiny_config, f"data.directory={place}", f"data.max_length={MAX_LENGTH}")


@pytest.fixture(scope="module")
def dataset(config):
    made = prepared(config, "dialogues")
    quarantine = pa.Table.from_pylist(REFUSED, QUARANTINE_SCHEMA)
    (made.location / QUARANTINE).write_table(quarantine)
    return made


@pytest.fixture(scope="module")
def tokenizer(config):
    return processor_of(config).tokenizer


@pytest.fixture(scope="module")
def samples(dataset, tokenizer):
    return list(read_samples(dataset, range(dataset.num_samples), tokenizer))


def sample(**changes):
    spans = [Span("masked", ["Ask", "?"]), Span("image", ["<image>"] * 4), Span("trained", ["Yes"])]
    pixels = [np.full((16, 16, 3), (250, 0, 0), np.uint8)]
    turns = [Turn("user", "Ask?"), Turn("assistant", "Yes")]
    made = InspectedSample("s-1", (3, 2, 1), pixels, turns, spans, 7, 1, 5, {"licence": "CC0"})
    return replace(made, **changes)


def on_terminal(shown, *, color=None, width=100):
    console = Console(
        file=io.StringIO(), width=width, color_system=color, force_terminal=color is not None
    )
    show_refusals(shown, console) if isinstance(shown, list) else show_sample(shown, console)
    return console.file.getvalue()


def test_every_sample_is_shown_as_its_shard_holds_it(dataset, samples, tokenizer):
    assert len(samples) == dataset.num_samples == len({sample.place for sample in samples})
    for number, shown in enumerate(samples):
        row = dataset.read_row_group(*shown.place[:2], ["id", "input_ids", "labels"])
        (stored,) = row.slice(shown.place[2], 1).to_pylist()
        assert shown.id == stored["id"]
        assert shown.num_tokens == dataset.column("num_tokens")[number]
        assert shown.num_trained == sum(label != IGNORE_INDEX for label in stored["labels"])
        by_kind = [(span.kind, len(span.tokens)) for span in shown.spans]
        assert sum(length for _, length in by_kind) == shown.num_tokens
        assert sum(length for kind, length in by_kind if kind == "trained") == shown.num_trained
        runs = [length for kind, length in by_kind if kind == "image"]
        assert runs == [dataset.tiling.num_tile_tokens] * len(shown.pixels)
    assert samples[0].pixels[0].shape == (dataset.images.size, dataset.images.size, 3)


def test_spelled_tokens_join_to_the_text(samples):
    whole = next(shown for shown in samples if not shown.num_cut)
    text = "".join(token for span in whole.spans if span.kind != "image" for token in span.tokens)
    for turn in whole.turns:
        words = turn.text.replace("<image>", "").strip()
        assert words.replace(" ", SPACE).replace("\n", LINE_BREAK) in text


def test_what_was_cut_is_counted(dataset, samples):
    cut = [shown.num_cut for shown in samples]
    assert sum(number > 0 for number in cut) == dataset.manifest.num_truncated > 0
    assert all(shown.num_tokens == MAX_LENGTH for shown in samples if shown.num_cut)


def test_samples_are_drawn_by_a_seed(dataset):
    drawn = pick_samples(dataset, 5, seed=1)
    assert drawn == pick_samples(dataset, 5, seed=1) != pick_samples(dataset, 5, seed=2)
    assert pick_samples(dataset, 10**6, seed=0) == list(range(dataset.num_samples))


def test_samples_are_found_by_id_in_the_order_asked_for(dataset, samples):
    wanted = [samples[17].id, samples[3].id]
    assert find_samples(dataset, wanted) == [17, 3]


def test_an_id_that_is_not_there_is_explained(dataset):
    with pytest.raises(DataError, match="sample=no: none of the 40 of dataset dialogues has this"):
        find_samples(dataset, ["no"])
    with pytest.raises(DataError, match=r"sample=bad-2: was quarantined, common: .*; fix row 2"):
        find_samples(dataset, ["bad-2"])


def test_only_the_row_groups_it_needs_are_read(dataset, samples, tokenizer, monkeypatch):
    read = []
    whole = type(dataset).read_row_group

    def spy(self, shard, row_group, columns):
        read.append((row_group, columns == ["id"]))
        return whole(self, shard, row_group, columns)

    monkeypatch.setattr(type(dataset), "read_row_group", spy)
    rows = find_samples(dataset, [samples[9].id, samples[10].id])
    list(read_samples(dataset, rows, tokenizer))
    assert read == [(0, True), (1, True), (1, False)], "ids up to the second group, then it, once"


def test_refusals_are_counted_with_the_first_of_each(dataset):
    found = read_refusals(dataset, 3)
    assert [(refusal.reason, refusal.count) for refusal in found] == [("common", 5), ("rare", 1)]
    assert [row["row"] for row in found[0].first] == [1, 2, 3]


def test_removed_samples_shift_no_others(dataset, samples, tokenizer, tmp_path):
    place = locate(str(shutil.copytree(dataset.location.path, tmp_path / "copy")))
    tables = read_sample_tables(dataset).move_out(
        dataset.name, [1], "contaminated", ["seen in a test"]
    )
    tables.write(place, revision=1)
    write(place, dataset.manifest.replace(**tables.counts(), revision=1))
    remaining = open_prepared(place)
    rows = find_samples(remaining, [samples[3].id, samples[0].id])
    assert rows == [2, 0]
    assert next(read_samples(remaining, rows, tokenizer)).id == samples[3].id
    with pytest.raises(DataError, match="contaminated"):
        find_samples(remaining, [samples[1].id])
    assert "contaminated" in [refusal.reason for refusal in read_refusals(remaining, 1)]


def test_without_colour_brackets_tell_what_is_trained():
    text = on_terminal(sample())
    assert "Ask ? <image> x 4 \u27e6 Yes \u27e7 (5 more cut)" in text
    assert "7, 1 trained, 4 from 1 image; 5 cut" in text
    assert "shard 3, row group 2, row 1" in text
    assert re.search(r"licence +CC0", text)
    assert "\x1b" not in text


@pytest.mark.parametrize("number", [1, 2, 7])
def test_images_are_drawn_in_their_colours_within_the_width(number):
    text = on_terminal(sample(pixels=sample().pixels * number), color="truecolor", width=60)
    assert text.count("38;2;250;0;0;48;2;250;0;0") >= 8 * number
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert plain.count("\u2580") == 16 * 8 * number
    assert max(map(len, plain.splitlines())) <= 60


def test_text_cannot_steer_the_terminal():
    evil = sample(
        id=EVIL,
        turns=[Turn("user", EVIL)],
        spans=[Span("trained", [EVIL])],
        facts={"source": f"[bold]{EVIL}"},
    )
    for text in (on_terminal(evil), on_terminal([Refusal(EVIL, 1, [REFUSED[0]])])):
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert "\\x1b[2J\\u202e" in text.replace("\n", "")
    assert "[bold]" in on_terminal(evil)


def test_an_empty_quarantine_says_so():
    assert on_terminal([]) == "nothing was quarantined\n"


def test_no_text_of_the_page_can_run(dataset):
    evil = sample(
        id=EVIL,
        turns=[Turn("user", EVIL)],
        spans=[Span("trained", [EVIL]), Span("image", [EVIL])],
        facts={EVIL: EVIL},
    )
    page = Page(html := render_samples(dataset, [evil], [Refusal(EVIL, 1, [REFUSED[0]])]))
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script>" not in html
    assert page.text.count("<script>alert(1)</script>") >= 7, "shown as text instead"
    policy = next(attrs["content"] for _, attrs in page.tags if "http-equiv" in attrs)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_the_page_holds_pixels_without_loss(dataset, samples):
    page = Page(render_samples(dataset, samples[:1], []))
    (image,) = [attrs for tag, attrs in page.tags if tag == "img"]
    assert image["alt"] == f"Image 1 of sample {samples[0].id}"
    with Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))) as opened:
        assert np.array_equal(np.asarray(opened), samples[0].pixels[0])


def test_a_sample_without_image_and_an_empty_page_say_so(dataset):
    assert "no image" in render_samples(dataset, [sample(pixels=[])], [])
    assert "Nothing was quarantined." in render_samples(dataset, [], [])


@pytest.fixture
def inspect(config, dataset, samples, tmp_path, llavamed):
    """Run `data inspect`; gives its exit code and output. #N is the id of sample N."""
    file = tmp_path / "run.yaml"
    file.write_text(dump_config(config))

    def call(*words, dataset="dialogues"):
        words = [samples[int(word[1:])].id if word[0] == "#" else word for word in words]
        code, out, err = llavamed("data", "inspect", dataset, *words, "--config", str(file))
        return code, out + err

    return call


def test_the_command_shows_samples_by_id_and_by_chance(inspect, samples):
    code, text = inspect("#5", "#2", "seed=3")
    assert code == 0
    assert text.index(f"sample {samples[5].id} ") < text.index(f"sample {samples[2].id} ")
    code, text = inspect("--seed", "7")
    assert (code, len(re.findall(r"^sample ", text, re.MULTILINE))) == (0, 1)


def test_the_command_shows_the_quarantine(inspect):
    code, text = inspect("--quarantined")
    assert code == 0
    assert re.search(r"common +\W +5 \W +1 \W bad-1", text)
    assert text.count("bad-") == 4, "three of one reason and one of another"
    assert inspect("--quarantined", "--number", "5")[1].count("bad-") == 6
    code, text = inspect("--quarantined", "#5")
    assert (code, "--quarantined: shows what was refused by its reason" in text) == (2, True)


def test_after_a_failed_preparation_the_command_shows_why(inspect, dataset, tmp_path):
    place = locate(f"{tmp_path}/dialogues")
    rows = [quarantine_row("dialogues", 7, "bad", SampleError("rare", "no lung in it"))]
    (place / "quarantine.parquet").write_table(pa.Table.from_pylist(rows, QUARANTINE_SCHEMA))
    code, text = inspect("--quarantined", f"data.directory={tmp_path}")
    assert (code, "no lung in it" in text) == (0, True)
    page = tmp_path / "page.html"
    inspect("--quarantined", "--html", str(page), f"data.directory={tmp_path}")
    assert "no lung in it" in page.read_text(encoding="utf-8")
    code, text = inspect(f"data.directory={tmp_path}")
    assert (code, "no prepared dataset there (manifest.json is missing)" in text) == (1, True)
    code, text = inspect("--quarantined", f"data.directory={tmp_path}/none")
    assert (code, "nothing was prepared there; run `llavamed prepare`" in text) == (1, True)


def test_the_command_writes_a_page(inspect, tmp_path):
    file = tmp_path / "pages" / "samples.html"
    code, text = inspect("--html", str(file), "#4")
    assert (code, text.splitlines()[0]) == (0, f"{file}: the page")
    assert file.read_text(encoding="utf-8").count("<article") == 1


def test_the_command_names_what_is_not_there(inspect, tmp_path):
    code, text = inspect("a=b")
    assert (code, "error: sample=a=b: none of the 40 of" in text) == (1, True)
    code, text = inspect(f"data.directory={tmp_path}")
    assert (code, "no prepared dataset there (manifest.json is missing)" in text) == (1, True)
    code, text = inspect(dataset="dialogue")
    assert (code, "dataset=dialogue: is not in data.datasets; use one of: captions" in text) == (
        2,
        True,
    )
