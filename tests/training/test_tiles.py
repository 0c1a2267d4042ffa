"""A LLaVA-NeXT of ours counts, cuts, packs, trains, answers and exports as transformers' own."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from torch.nn import functional
from transformers import (
    AutoProcessor,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
)

from llavamed.config.load import override_config
from llavamed.config.model import Model
from llavamed.config.run import RunConfig
from llavamed.data.feed.loader import StageLoader
from llavamed.data.inspect.page import render_samples
from llavamed.data.inspect.samples import read_samples
from llavamed.data.prepared.dataset import PreparedDataset
from llavamed.data.prepared.sample_tables import join
from llavamed.errors import RequestError, SampleError
from llavamed.evaluate.conditions import CONDITIONS
from llavamed.evaluate.own_model import GeneratorAnswerer
from llavamed.evaluate.questions import PreparedQuestions
from llavamed.llm.request import Image as SentImage
from llavamed.llm.request import Message
from llavamed.model.generation import Generator, Prompt
from llavamed.model.llava import build_model, load_model
from llavamed.model.loss import supervised_loss
from llavamed.processor.build import image_settings, tiling
from llavamed.processor.image_files import Pixels, decode, read_size
from llavamed.processor.images import fit, model_inputs
from llavamed.processor.templates import get_template
from llavamed.processor.tiles import Tiling
from llavamed.processor.turns import IGNORE_INDEX, Turn
from llavamed.run.curriculum import plan_curriculum
from llavamed.run.model_checks import check_weights
from llavamed.run.plan import plan_run
from llavamed.serve.prompt import encode_messages
from llavamed.storage.fingerprint import fingerprint
from llavamed.storage.manifest.dataset import ProcessorModel
from llavamed.train.job import order_of
from tests.support.manifests import dataset_manifest
from tests.support.mixed_samples import PINPOINTS, TILES, Mixed, make_samples
from tests.support.small_models import save_llava_next
from tests.support.training_setup import (
    LEARNING,
    make_job,
    mixture,
    prepared,
    processor_of,
    run_stage,
    small_config,
)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Mixed:
    return make_samples(tmp_path_factory.mktemp("mixed"))


@pytest.fixture(scope="module")
def config(tiny_config: RunConfig, mixed: Mixed) -> RunConfig:
    return small_config(tiny_config, "name=tiles", *mixed.overrides("tiles"), *TILES, *LEARNING)


@pytest.fixture(scope="module")
def processor(config: RunConfig) -> Any:
    return processor_of(config)


@pytest.fixture(scope="module")
def model(config: RunConfig, processor: Any) -> Any:
    return build_model(config.model, processor, seed=3, precision="fp32")


def picture(height: int, width: int) -> Pixels:
    random = np.random.default_rng(height * 1000 + width)
    return random.integers(0, 256, (height, width, 3), dtype=np.uint8)


edges = st.integers(1, 3)
sizes = st.tuples(st.integers(1, 4000), st.integers(1, 4000)).filter(
    lambda size: max(size) <= 100 * min(size)  # longer ones are refused as lines
)


@given(
    size=sizes,
    grid=st.lists(st.tuples(edges, edges), min_size=1, max_size=5, unique=True),
    tile=st.sampled_from([(16, 8), (336, 14), (384, 14)]),
)
@settings(max_examples=300)
def test_tokens_are_counted_as_by_transformers(
    size: tuple[int, int], grid: list[tuple[int, int]], tile: tuple[int, int], processor: Any
) -> None:
    edge, patch = tile
    pinpoints = tuple((high * edge, wide * edge) for high, wide in grid)
    ours = Tiling(edge, (edge // patch) ** 2, pinpoints)
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": edge}, image_grid_pinpoints=[*map(list, pinpoints)]
    )
    theirs = LlavaNextProcessor(
        images, processor.tokenizer, patch_size=patch, vision_feature_select_strategy="full"
    )
    assume(max(size) <= 8 * min(size) or edge > 16)
    counted = ours.num_tokens(size)
    assert counted == theirs._get_number_of_features(*size, edge, edge)
    assert counted <= ours.most_tokens
    assert ours.num_tiles(size) <= ours.most_tiles


def test_a_line_has_no_tiles() -> None:
    with pytest.raises(SampleError, match="corrupt_image: 4000x1 pixels is a line"):
        Tiling(16, 4, PINPOINTS).num_tokens((1, 4000))


@pytest.mark.parametrize("size", [(30, 40), (16, 16), (90, 20), (20, 90), (5, 9), (700, 401)])
def test_tiles_are_those_of_transformers(size: tuple[int, int], processor: Any) -> None:
    pixels = picture(*size)
    found, sizes = model_inputs([pixels], image_settings(processor))
    expected = processor.image_processor(Image.fromarray(pixels), return_tensors="np")
    np.testing.assert_array_equal(found, expected["pixel_values"][0])
    np.testing.assert_array_equal(sizes, expected["image_sizes"])
    assert len(found) == tiling(processor).num_tiles(size)


def peer_inputs(processor: Any, row: dict[str, Any], pictures: list[Image.Image]) -> Any:
    roles = {"human": "user", "gpt": "assistant"}
    messages = [
        {"role": roles[turn["from"]], "content": turn["value"]} for turn in row["conversations"]
    ]
    if "part.text" in processor.chat_template:
        for message in messages:
            *images, text = message["content"].split("<image>\n")
            message["content"] = [{"type": "image"}] * len(images) + [{"text": text}]
    text = processor.apply_chat_template(messages, tokenize=False)
    return processor(
        text=text, images=pictures or None, add_special_tokens=False, return_tensors="pt"
    )


def stored_samples(dataset: PreparedDataset) -> list[dict[str, Any]]:
    columns = ["id", "input_ids", "labels"]
    places = dataset.row_groups()
    return [row for place in places for row in dataset.read_samples(*place, columns).to_pylist()]


@pytest.fixture(scope="module", params=["tiles", "one tile"])
def either(
    request: pytest.FixtureRequest, config: RunConfig, tiny_config: RunConfig, mixed: Mixed
) -> RunConfig:
    """A model that cuts images into tiles, and one that does not."""
    if request.param == "tiles":
        return config
    return small_config(tiny_config, "name=plain", *mixed.overrides("plain"), *LEARNING)


@pytest.mark.parametrize("packing", [True, False])
def test_the_loss_of_packs_is_that_of_transformers_on_single_samples(
    packing: bool, either: RunConfig, mixed: Mixed
) -> None:
    processor = processor_of(either)
    model = build_model(either.model, processor, seed=3, precision="fp32")
    alone = () if packing else ("stages.align.packing=false", "stages.align.max_tokens=null")
    config = override_config(either, ["stages.align.max_steps=null", *alone])
    stage, data = config.stages[0], mixture(config)
    assert data.num_samples == len(mixed.rows), "none is quarantined"
    loader = StageLoader(
        data, order_of(stage, data, 0), rank=0, world_size=1, packing=stage.packing
    )
    batches = [batch for step in loader.steps() for batch in step]
    assert any(len(batch.sample_ids) > 1 for batch in batches) is packing
    loss = torch.stack([supervised_loss(model, batch) for batch in batches]).sum()
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model.zero_grad()
    expected = torch.zeros(())
    for sample, row in zip(stored_samples(data.datasets[0]), mixed.rows, strict=True):
        inputs = peer_inputs(processor, row, mixed.pictures(row))
        assert inputs["input_ids"][0].tolist() == sample["input_ids"]
        expected = expected + functional.cross_entropy(
            model(**inputs).logits[0, :-1],
            torch.tensor(sample["labels"][1:]),
            ignore_index=IGNORE_INDEX,
            reduction="sum",
        )
    expected.backward()
    epochs = stage.num_train_epochs
    assert loss.item() == pytest.approx(epochs * expected.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(
                gradients[name], epochs * parameter.grad, rtol=1e-3, atol=1e-5, msg=name
            )


def test_an_answer_is_that_of_transformers(either: RunConfig, mixed: Mixed) -> None:
    processor = processor_of(either)
    model = build_model(either.model, processor, seed=3, precision="fp32")
    generator = Generator(model, processor, get_template("vicuna_v1"))
    rows = mixed.rows[:6]
    prompts = [
        Prompt(
            [Turn("user", row["conversations"][0]["value"])],
            [fit(np.asarray(each), generator.images) for each in mixed.pictures(row)],
        )
        for row in rows
    ]
    found = generator.answer(prompts, max_new_tokens=6)
    for row, answer in zip(rows, found, strict=True):
        message = {"role": "user", "content": row["conversations"][0]["value"]}
        text = processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        pictures = mixed.pictures(row) or None
        inputs = processor(
            text=text, images=pictures, add_special_tokens=False, return_tensors="pt"
        )
        made = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        words = made[0, inputs["input_ids"].shape[1] :]
        assert answer == processor.tokenizer.decode(words, skip_special_tokens=True).strip()


def test_prepared_questions_are_answered_under_every_condition(
    either: RunConfig, mixed: Mixed
) -> None:
    processor = processor_of(either)
    model = build_model(either.model, processor, seed=3, precision="fp32")
    generator = Generator(model, processor, get_template("vicuna_v1"))
    asked = PreparedQuestions(prepared(either, "mixed")).read(0)
    assert {len(question.pictures) for question in asked} == {0, 1, 2, 3}
    answerer = GeneratorAnswerer(generator, batch_size=4)
    for name, condition in CONDITIONS.items():
        shown = condition.show(asked, [])
        pixels = [[each.pixels for each in question.pictures] for question in shown]
        prompts = [Prompt(q.turns, own) for q, own in zip(shown, pixels, strict=True)]
        expected = generator.answer(prompts, max_new_tokens=3)
        assert [reply.text for reply in answerer.answer(shown, 3)] == expected, name


def test_a_stage_trains_and_its_export_is_a_llava_next(config: RunConfig, mixed: Mixed) -> None:
    job = make_job(config)
    outcome = run_stage(job)  # which loads the export and compares tensors, logits and tokens
    assert outcome.steps == 6
    assert max(record["grad_norm.projector"] for record in outcome.history) > 0
    theirs = LlavaNextForConditionalGeneration.from_pretrained(job.export)
    assert theirs.config.image_grid_pinpoints == [*map(list, PINPOINTS)]
    first = build_model(config.model, processor_of(config), seed=config.seed, precision="fp32")
    assert not torch.equal(theirs.model.image_newline, first.model.image_newline), "it learns"
    processor = AutoProcessor.from_pretrained(job.export, backend="pil")
    row = mixed.rows[2]
    with torch.no_grad():
        logits = theirs(**peer_inputs(processor, row, mixed.pictures(row))).logits
    assert logits.isfinite().all()


def test_a_whole_llava_next_trains_with_one_tile_and_is_what_transformers_reads(
    config: RunConfig, mixed: Mixed, tmp_path: Path
) -> None:
    source = save_llava_next(tmp_path / "theirs")
    one = "[[16, 16]]"
    model = f"model={{weights: {source}, template: tokenizer, image_grid_pinpoints: {one}}}"
    config = override_config(config, [model, "name=one-tile", f"data.directory={tmp_path}/data"])
    check_weights(config, plan_curriculum(config))
    job = make_job(config)
    dataset = prepared(config, "mixed")
    assert dataset.tiling.num_tiles((30, 40)) == 2, "the whole image, and the tile"

    original = LlavaNextForConditionalGeneration.from_pretrained(
        source, image_grid_pinpoints=[[16, 16]]
    )
    first = build_model(config.model, processor_of(config), seed=0, precision="fp32")
    outcome = run_stage(job)
    exported = LlavaNextForConditionalGeneration.from_pretrained(job.export)
    assert exported.config.image_grid_pinpoints == [[16, 16]]
    assert outcome.logits_difference == 0.0
    ours = load_model(job.export, "fp32", "sdpa")
    processor = AutoProcessor.from_pretrained(job.export, backend="pil")
    for row, sample in zip(mixed.rows, stored_samples(dataset), strict=True):
        inputs = peer_inputs(processor, row, mixed.pictures(row))
        assert inputs["input_ids"][0].tolist() == sample["input_ids"]
        with torch.no_grad():
            assert torch.equal(first(**inputs).logits, original(**inputs).logits)
            assert torch.equal(ours(**inputs).logits, exported(**inputs).logits)


def test_the_index_counts_tokens_and_tiles(config: RunConfig, mixed: Mixed) -> None:
    dataset = prepared(config, "mixed")
    tiles = dataset.tiling
    for number, row in enumerate(mixed.rows):
        shapes = [(each.height, each.width) for each in mixed.pictures(row)]
        assert dataset.column("num_images")[number] == len(shapes)
        assert dataset.column("num_tiles")[number] == sum(map(tiles.num_tiles, shapes))


def test_samples_are_shown_with_the_tokens_of_each_image(
    config: RunConfig, mixed: Mixed, processor: Any
) -> None:
    dataset = prepared(config, "mixed")
    shown = list(read_samples(dataset, range(len(mixed.rows)), processor.tokenizer))
    assert "the model gets tiles of 16 x 16 pixels" in render_samples(dataset, shown, [])
    for sample, row in zip(shown, mixed.rows, strict=True):
        sizes = [(each.height, each.width) for each in mixed.pictures(row)]
        assert [each.shape[:2] for each in sample.pixels] == sizes
        numbers = [len(span.tokens) for span in sample.spans if span.kind == "image"]
        assert numbers == [dataset.tiling.num_tokens(size) for size in sizes]


@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_conversation_takes_the_tiles_of_all_its_images(
    number: int, mixed: Mixed, processor: Any, model: Any
) -> None:
    generator = Generator(model, processor, get_template("vicuna_v1"))
    row = next(row for row in mixed.rows if len(row["image"]) == number)
    files = [SentImage((mixed.folder / name).read_bytes(), "image/png") for name in row["image"]]
    prompt, _ = encode_messages(
        [Message("user", (*files, "What is shown?"))], generator, max_new_tokens=5, default=5
    )
    sizes = [(each.height, each.width) for each in mixed.pictures(row)]
    assert prompt.input_ids.count(processor.image_token_id) == prompt.num_image_tokens
    assert prompt.num_image_tokens == sum(map(generator.tiling.num_tokens, sizes))
    assert len(prompt.pixel_values) == sum(map(generator.tiling.num_tiles, sizes))
    assert prompt.image_sizes.tolist() == [list(size) for size in sizes]
    message = r"of which its 3 images take \d+, and max_tokens=10000 come after it; shorten"
    if number == 3:
        with pytest.raises(RequestError, match=message):
            encode_messages(
                [Message("user", (*files, "Why?"))], generator, max_new_tokens=10_000, default=5
            )


def test_a_plan_assumes_the_largest_images(config: RunConfig) -> None:
    most = tiling(processor_of(config)).most_tokens
    assert most == 4 + 4 * (4 + 1), "the whole image, and four rows of four with a newline"
    costs = []
    for mean_images in (0, 1, 2):
        declared = f"num_samples: 100, mean_text_tokens: 20, mean_images: {mean_images}"
        sets = [
            f"data.datasets.{name}.declared={{{declared}, mean_supervised_tokens: 10}}"
            for name in config.data.datasets
        ]
        planned = override_config(config, [*sets, "data.directory=/a-test"])
        costs.append(plan_run(planned, accelerator="A100")[0])
    lengths = [cost.num_tokens / cost.samples_per_step / cost.steps for cost in costs]
    assert lengths == pytest.approx([20, 20 + most, 20 + 2 * most])
    assert "no image, and at most" in costs[0].assumed[0]
    assert f"one image each, of {most} tokens, the most" in costs[1].assumed[0]
    assert f"2 images each on average, of {most} tokens" in costs[2].assumed[0]


def test_settings_that_were_added_later_leave_fingerprints_as_they_were() -> None:
    tower = {"config": {"model_type": "clip_vision_model"}}
    model = Model(vision_tower=tower, language_model={"config": {"model_type": "llama"}})
    assert fingerprint(model.model_dump(mode="json")) == "3723fd331b6865b1"
    manifest = dataset_manifest()
    assert fingerprint(manifest.model_dump(mode="json")) == "302e54bef1bbdce0"
    assert join([]).fingerprint(manifest) == "eb617fd77bf0b55b"
    facts = ProcessorModel(template="plain", image_aspect_ratio="square")
    assert fingerprint(facts.model_dump(mode="json")) == "4902d6978f31b475"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_read_as_the_image_is_shown(orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    Image.fromarray(picture(30, 50)).save(file, "JPEG", exif=exif)
    assert read_size(file.getvalue()) == decode(file.getvalue()).shape[:2]
