"""Greedy batch generation over Ray Data: a prepared dataset of questions -> answers.

Three controls answer the same prompts, made by the template the model was trained with: the trained
model, the model as it was before the curriculum, and the trained one with every image blanked. A
model that has learned to look beats both.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import ray
import torch

from llavamed.config.evaluation import Evaluation
from llavamed.config.run import RunConfig
from llavamed.data.prepared.dataset import PreparedDataset
from llavamed.evaluate.vqa import Answer
from llavamed.model.export import fetch_export
from llavamed.model.generation import Generator, Prompt
from llavamed.model.llava import build_model, load_model
from llavamed.parallel.pipeline import (
    actor_restarts,
    carry_errors,
    configure_ray_data,
    iter_rows,
)
from llavamed.processor.build import load_processor
from llavamed.processor.encode import get_template
from llavamed.processor.images import to_png
from llavamed.processor.turns import IMAGE_PLACEHOLDER, Turn
from llavamed.storage.location import locate

Control = Literal["trained", "blank_image", "untrained"]
_MEMORY_HINT = "set scaling.num_workers or the evaluation's batch_size lower"
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
        {"control": control, "shard": shard, "row_group": row_group, "start": start}
        for control in controls
        for shard, row_group, start in batches_of(dataset, settings.batch_size)
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
        **actor_restarts(config.max_failures),
    )
    answers: dict[str, list[Answer]] = {control: [] for control in controls}
    for row in iter_rows(pipeline, memory_hint=_MEMORY_HINT):
        answers[row.pop("control")].append(Answer(**row))
        on_progress(sum(map(len, answers.values())), len(controls) * dataset.num_samples)
    return answers


def batches_of(dataset: PreparedDataset, batch_size: int) -> Iterator[tuple[int, int, int]]:
    """Yield shard, row group and first row of each batch of questions.

    A batch is what is reported as progress, and it never spans two row groups.
    """
    shards, row_groups = (dataset.column(name).tolist() for name in ("shard", "row_group"))
    sizes = Counter(zip(shards, row_groups, strict=True))
    for (shard, row_group), num_rows in sizes.items():
        for start in range(0, num_rows, batch_size):
            yield shard, row_group, start


class Answerer:
    """Answers the questions of a dataset with one model at a time."""

    def __init__(
        self, config: RunConfig, settings: Evaluation, dataset: PreparedDataset, export: str
    ) -> None:
        self._config, self._settings = config, settings
        self._dataset = dataset
        self._scratch = tempfile.TemporaryDirectory()
        self._folder = fetch_export(locate(export), Path(self._scratch.name))
        self._processor = load_processor(self._folder)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._loaded: tuple[bool, Generator] | None = None

    def answer(self, control: Control, shard: int, row_group: int, start: int) -> list[Answer]:
        """Answer the batch of questions of a row group that begins at a row."""
        rows = self._dataset.read_samples(shard, row_group, _COLUMNS)
        batch = rows.slice(start, self._settings.batch_size).to_pylist()
        prompts = [self._prompt(row) for row in batch]
        predictions = self._generator(trained=control != "untrained").answer(
            prompts,
            max_new_tokens=self._settings.max_new_tokens,
            blank_images=control == "blank_image",
        )
        return [
            _answer(row, prompt, prediction, with_image=control == "trained")
            for row, prompt, prediction in zip(batch, prompts, predictions, strict=True)
        ]

    def _prompt(self, row: dict[str, Any]) -> Prompt:
        turns = [Turn(turn["role"], turn["text"]) for turn in row["turns"]]
        return Prompt(turns[:-1], [self._dataset.pixels(image) for image in row["pixels"]])

    def _generator(self, *, trained: bool) -> Generator:
        if self._loaded is None or self._loaded[0] != trained:
            self._loaded = None  # drop the other one first: both may not fit
            model, precision = self._config.model, self._config.engine.precision
            made = (
                load_model(self._folder, precision, model.attn_implementation)
                if trained
                else build_model(
                    model, self._processor, seed=self._config.seed, precision=precision
                )
            )
            template = get_template(model.template)
            self._loaded = (trained, Generator(made.to(self._device), self._processor, template))
        return self._loaded[1]


def _answer(row: dict[str, Any], prompt: Prompt, prediction: str, *, with_image: bool) -> Answer:
    return Answer(
        id=row["id"],
        image=to_png(prompt.images[0]) if with_image and prompt.images else b"",
        question=prompt.turns[-1].text.replace(IMAGE_PLACEHOLDER, "").strip(),
        reference=row["turns"][-1]["text"],
        prediction=prediction,
        answer_type=row["answer_type"],
        question_type=row["question_type"],
        domain=row["domain"],
    )


class _AnswererActor:
    """`Answerer` as Ray Data calls it: one batch of questions in, its answers out."""

    def __init__(self, *args: Any) -> None:
        self._args = args

    @cached_property
    def _answerer(self) -> Answerer:
        """Made at the first batch: Ray tries forever to make an actor that fails at once."""
        return Answerer(*self._args)

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        shard, row_group, start = (int(batch[key][0]) for key in ("shard", "row_group", "start"))
        control = batch["control"][0]
        with carry_errors():
            answers = self._answerer.answer(control, shard, row_group, start)
            return pa.Table.from_pylist(
                [{"control": control} | {n: getattr(a, n) for n in a.__slots__} for a in answers]
            )
