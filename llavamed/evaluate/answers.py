"""Greedy batch generation over Ray Data: a prepared dataset of questions -> answers.

Three controls answer the same prompts, made by the template the model was trained with: the trained
model, the model as it was before the curriculum, and the trained one with every image blanked. A
model that has learned to look beats both.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import ray
import torch
from transformers import LlavaForConditionalGeneration

from llavamed.config.evaluation import Evaluation
from llavamed.config.run import RunConfig
from llavamed.data.prepare.ray_data import configure_ray_data, iter_rows
from llavamed.data.prepared.dataset import PreparedDataset
from llavamed.evaluate.vqa import Answer
from llavamed.model.export import fetch_export
from llavamed.model.llava import build_model, load_model
from llavamed.processor.build import load_processor
from llavamed.processor.encode import encode_prompt, get_template, stop_strings
from llavamed.processor.images import Pixels, normalize, to_png
from llavamed.processor.turns import IMAGE_PLACEHOLDER, Turn
from llavamed.storage.location import locate

Control = Literal["trained", "blank_image", "untrained"]
_COLUMNS = ["id", "pixels", "turns", "domain", "answer_type", "question_type"]


def generate(
    config: RunConfig,
    settings: Evaluation,
    dataset: PreparedDataset,
    *,
    export: str,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, list[Answer]]:
    """Answer every question of a dataset under each control, in the dataset's order.

    Args:
        config: The run's; its model without training is the untrained control.
        settings: How to answer.
        dataset: Questions, prepared.
        export: URI of the trained model.
        on_progress: Told the answers given and the answers in all.
    """
    controls = get_args(Control)
    items = [
        {"control": control, "shard": shard, "row_group": row_group}
        for control in controls
        for shard, row_group in dataset.row_groups()
    ]
    configure_ray_data()
    scaling = config.scaling
    pipeline = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _AnswererActor,
        fn_constructor_args=(config, settings, dataset, export),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(scaling.most_workers, len(items))),
        num_cpus=1,
        num_gpus=1 if scaling.use_gpu else 0,
    )
    answers: dict[str, list[Answer]] = {control: [] for control in controls}
    for row in iter_rows(pipeline):
        answers[row.pop("control")].append(Answer(**row))
        on_progress(sum(map(len, answers.values())), len(controls) * dataset.num_samples)
    return answers


class Answerer:
    """Answers questions with one model at a time."""

    def __init__(
        self, config: RunConfig, settings: Evaluation, dataset: PreparedDataset, export: str
    ) -> None:
        self._config, self._settings = config, settings
        self._dataset = dataset
        self._scratch = tempfile.TemporaryDirectory()
        self._folder = fetch_export(locate(export), Path(self._scratch.name))
        self._processor = load_processor(self._folder)
        self._template = get_template(config.model.template)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._loaded: tuple[bool, LlavaForConditionalGeneration] | None = None

    def answer(self, control: Control, shard: int, row_group: int) -> Iterator[Answer]:
        """Answer the questions of one row group."""
        questions = self._dataset.read_samples(shard, row_group, _COLUMNS).to_pylist()
        for start in range(0, len(questions), self._settings.batch_size):
            batch = [
                self._question(row) for row in questions[start : start + self._settings.batch_size]
            ]
            predictions = self._predict(control, batch)
            for question, prediction in zip(batch, predictions, strict=True):
                yield question.answered(prediction, with_image=control == "trained")

    def _question(self, row: dict[str, Any]) -> "_Question":
        turns = [Turn(**turn) for turn in row["turns"]]
        pixels = [self._dataset.pixels(image) for image in row["pixels"]]
        prompt = encode_prompt(
            turns[:-1],
            template=self._template,
            tokenizer=self._processor.tokenizer,
            num_image_tokens=self._dataset.num_image_tokens,
        )
        return _Question(row, turns, pixels, prompt)

    def _predict(self, control: Control, batch: list["_Question"]) -> list[str]:
        model = self._model(trained=control != "untrained")
        tokenizer = self._processor.tokenizer
        length = max(len(question.prompt) for question in batch)
        padding = [length - len(question.prompt) for question in batch]
        ids = [[tokenizer.pad_token_id] * n + q.prompt for n, q in zip(padding, batch, strict=True)]
        mask = [[0] * n + [1] * (length - n) for n in padding]
        images = [image for question in batch for image in question.pixels]
        pixel_values = None  # no question of the batch has an image
        if images:
            normalized = torch.from_numpy(normalize(images, self._dataset.images))
            pixel_values = normalized.to(self._device, model.dtype)
            if control == "blank_image":
                pixel_values.zero_()
        stops = stop_strings(self._template)
        with torch.inference_mode():
            generated = model.generate(
                input_ids=torch.tensor(ids, device=self._device),
                attention_mask=torch.tensor(mask, device=self._device),
                pixel_values=pixel_values,
                max_new_tokens=self._settings.max_new_tokens,
                do_sample=False,
                stop_strings=list(stops) or None,
                tokenizer=tokenizer,
            )
        texts = tokenizer.batch_decode(generated[:, length:], skip_special_tokens=True)
        return [_cut(text, stops) for text in texts]

    def _model(self, *, trained: bool) -> LlavaForConditionalGeneration:
        if self._loaded is None or self._loaded[0] != trained:
            self._loaded = None  # drop the other one first: both may not fit
            precision = self._config.engine.precision
            if trained:
                model = load_model(self._folder, precision, self._config.model.attn_implementation)
            else:
                model = build_model(
                    self._config.model,
                    self._processor,
                    seed=self._config.seed,
                    precision=precision,
                )
            self._loaded = (trained, model.to(self._device).eval())
        return self._loaded[1]


@dataclass(frozen=True)
class _Question:
    row: dict[str, Any]
    turns: list[Turn]
    pixels: list[Pixels]
    prompt: list[int]

    def answered(self, prediction: str, *, with_image: bool) -> Answer:
        return Answer(
            id=self.row["id"],
            image=to_png(self.pixels[0]) if with_image and self.pixels else b"",
            question=self.turns[-2].text.replace(IMAGE_PLACEHOLDER, "").strip(),
            reference=self.turns[-1].text,
            prediction=prediction,
            answer_type=self.row["answer_type"],
            question_type=self.row["question_type"],
            domain=self.row["domain"],
        )


class _AnswererActor:
    """`Answerer` as Ray Data calls it: one row group in, its answers out."""

    def __init__(self, *args: Any) -> None:
        self._answerer = Answerer(*args)

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        control, shard, row_group = (batch[k][0] for k in ("control", "shard", "row_group"))
        answers = self._answerer.answer(control, int(shard), int(row_group))
        return pa.Table.from_pylist(
            [{"control": control} | {n: getattr(a, n) for n in a.__slots__} for a in answers]
        )


def _cut(text: str, stops: tuple[str, ...]) -> str:
    for stop in stops:
        text = text.split(stop, 1)[0]
    return text.strip()
