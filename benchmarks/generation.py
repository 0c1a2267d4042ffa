"""Answering test questions, beside a plain loop of `model.generate` at the same batch size.

The model is the demo's, with random weights, and the questions are the demo's phantoms. The loop
reads the same prepared dataset, makes the same prompts and pixels, and answers batch by batch in
the dataset's order; ours also hashes the pictures, writes the answers in parts and collects them.
Both answer all questions in turn, several times, and their CPU time on one thread is compared.
Random weights hardly ever end an answer, so a second comparison ends answers at lengths of their
own, as those of a trained model do.

Memory is the largest resident size of a process that answers many questions, beside one that
answers a fifth of them.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from report import Spread, bar_plot, finish, gate
from transformers import LlavaForConditionalGeneration, StoppingCriteria, StoppingCriteriaList

from llavamed.config.load import load_config
from llavamed.config.run import RunConfig
from llavamed.data.prepare.job import complete_dataset, initial_manifest, list_chunks
from llavamed.data.prepare.processor import ensure_processor
from llavamed.data.prepare.shards import ShardWriter
from llavamed.data.prepared.dataset import PreparedDataset, open_prepared
from llavamed.evaluate.generate import Task, add_up, answer_here, collect
from llavamed.evaluate.own_model import GeneratorAnswerer
from llavamed.evaluate.questions import PreparedQuestions, Question
from llavamed.model.generation import Generator, Prompt, set_generation_tokens
from llavamed.model.llava import build_model
from llavamed.processor.build import load_processor
from llavamed.processor.templates import get_template
from llavamed.storage.location import locate

DEMO = Path(__file__).parents[1] / "ray_jobs" / "configs" / "demo.yaml"
DATASET = "test-questions"
BATCH_SIZE = 32
MAX_NEW_TOKENS = 32


class Setting:
    """The demo's model and its questions."""

    def __init__(self, folder: str, num_images: int) -> None:
        self.config = _config(folder, num_images)
        self.processor = load_processor(Path(str(ensure_processor(self.config))))
        self.dataset = _prepared(self.config, self.processor)
        model = build_model(self.config.model, self.processor, seed=0, precision="fp32")
        set_generation_tokens(model, self.processor)
        self.model: LlavaForConditionalGeneration = model.eval()
        self.generator = Generator(
            self.model, self.processor, get_template(self.config.model.template)
        )

    def questions(self) -> list[Question]:
        """Return all questions of the dataset."""
        prepared = PreparedQuestions(self.dataset)
        return [each for chunk in range(prepared.num_chunks) for each in prepared.read(chunk)]


def _config(folder: str, num_images: int) -> RunConfig:
    return load_config(
        DEMO,
        [
            f"storage={folder}",
            f"data.datasets.{DATASET}.read.num_images={num_images}",
            "data.datasets.captions.read.num_images=200",
            "data.datasets.dialogues.read.num_images=200",
        ],
    )


def _prepared(config: RunConfig, processor: Any) -> PreparedDataset:
    place = locate(config.datasets_directory) / DATASET
    writer = ShardWriter(config, str(ensure_processor(config)))
    reports = [writer.write(chunk) for chunk in list_chunks(config, [DATASET])]
    manifest = initial_manifest(config, DATASET, processor)
    complete_dataset(place, manifest, reports, config.data.datasets[DATASET])
    return open_prepared(place)


class Ours:
    """The candidate of our own generation, loaded already; its answers may be ended."""

    name, kind, template = "demo", "export", "demo"

    def __init__(self, setting: Setting, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self._setting = setting

    def load(self) -> "Ours":
        """Return itself."""
        return self

    def answer(self, questions: list[Question], max_new_tokens: int) -> Any:
        """Answer as an export does."""
        return GeneratorAnswerer(self._setting.generator, BATCH_SIZE).answer(
            questions, max_new_tokens
        )

    def close(self) -> None:
        """Keep the model for the next round."""


def answer_ours(setting: Setting, folder: str, round_: str) -> float:
    """Answer all questions into `answers.parquet`, and return the CPU-seconds."""
    begin = time.process_time()
    place = locate(folder) / round_
    candidate = Ours(setting, round_)  # each round is another model, so that nothing is cached
    task = Task(
        PreparedQuestions(setting.dataset), {"trained": candidate}, MAX_NEW_TOKENS, str(place)
    )
    add_up(answer_here(task), lambda _: None)
    collect(task, place)
    return time.process_time() - begin


class Lengths(StoppingCriteria):
    """Ends each answer of a batch at a length of its own."""

    def __init__(self, start: int, lengths: list[int]) -> None:
        self._ends = torch.tensor(lengths) + start

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Return which answers have ended."""
        return input_ids.shape[1] >= self._ends


@torch.inference_mode()
def answer_plain(setting: Setting, lengths: dict[str, int] | None) -> float:
    """Answer all questions by `model.generate`, batch by batch, and return the CPU-seconds."""
    begin = time.process_time()
    questions, tokenizer = setting.questions(), setting.processor.tokenizer
    answers = []
    for start in range(0, len(questions), BATCH_SIZE):
        batch = questions[start : start + BATCH_SIZE]
        prompts = [
            setting.generator.encode(Prompt(each.turns, [p.pixels for p in each.pictures]))
            for each in batch
        ]
        longest = max(len(prompt.input_ids) for prompt in prompts)
        gaps = [longest - len(prompt.input_ids) for prompt in prompts]
        pad = tokenizer.pad_token_id
        ids = [[pad] * gap + p.input_ids for gap, p in zip(gaps, prompts, strict=True)]
        criteria = StoppingCriteriaList()
        if lengths is not None:
            criteria.append(Lengths(longest, [lengths[each.id] for each in batch]))
        generated = setting.model.generate(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor([[0] * gap + [1] * (longest - gap) for gap in gaps]),
            pixel_values=torch.cat([prompt.pixel_values for prompt in prompts]),
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            stopping_criteria=criteria,
        )
        answers += tokenizer.batch_decode(generated[:, longest:], skip_special_tokens=True)
    assert len(answers) == setting.dataset.num_samples
    return time.process_time() - begin


def with_lengths(setting: Setting, lengths: dict[str, int] | None) -> Setting:
    """Return the setting with answers that end at these lengths, in our generation."""
    if lengths is None:
        return setting
    ended = object.__new__(Setting)
    ended.__dict__ |= setting.__dict__
    generator = object.__new__(Generator)
    generator.__dict__ |= setting.generator.__dict__
    order = iter(_order_of_begin(setting, lengths))
    begin = generator.begin
    generator.begin = lambda sampling: begin(  # type: ignore[method-assign]
        replace(sampling, max_new_tokens=next(order))
    )
    ended.generator = generator
    return ended


def _order_of_begin(setting: Setting, lengths: dict[str, int]) -> list[int]:
    """Return the lengths in the order in which our generation begins the answers."""
    prepared = PreparedQuestions(setting.dataset)
    order = []
    for chunk in range(prepared.num_chunks):
        asked = prepared.read(chunk, with_pictures=False)
        size = [sum(len(turn.text) for turn in each.turns) for each in asked]
        for place in sorted(range(len(asked)), key=size.__getitem__, reverse=True):
            order.append(lengths[asked[place].id])
    return order


def peak_memory(folder: str, num_images: int) -> dict[str, float]:
    """Answer in a process of its own, and return its questions and its peak in MB."""
    command = [sys.executable, __file__, "--child", folder, str(num_images)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def child(folder: str, num_images: int) -> None:
    """Answer the questions of this many images, and print the peak of the memory."""
    setting = Setting(folder, num_images)
    answer_ours(setting, folder, "child")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"questions": setting.dataset.num_samples, "peak_mb": peak}))


def compare(setting: Setting, folder: str, lengths: dict[str, int] | None, rounds: int) -> Any:
    """Answer in both ways in turn, and return the seconds of each round."""
    taken: dict[str, list[float]] = {"ours": [], "plain": []}
    for number in range(rounds + 1):  # the first round is not counted
        plain = answer_plain(setting, lengths)
        name = f"{'ended' if lengths else 'full'}-{number}"
        ours = answer_ours(with_lengths(setting, lengths), folder, name)
        if number:
            taken["plain"].append(plain)
            taken["ours"].append(ours)
    return taken


def main() -> int:
    """Run the benchmark, and return 1 if a gate is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer questions and rounds")
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "IMAGES"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.child:
        child(given.child[0], int(given.child[1]))
        return 0
    num_images, rounds = (60, 3) if given.quick else (150, 5)
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(f"{folder}/speed", num_images)
        draw = random.Random(0)
        ends = {each.id: draw.randint(1, MAX_NEW_TOKENS) for each in setting.questions()}
        results = {
            "answers of full length": compare(setting, folder, None, rounds),
            "answers of many lengths": compare(setting, folder, ends, rounds),
        }
        memory = [peak_memory(f"{folder}/memory-{times}", times * num_images) for times in (1, 5)]
    ratios = {
        name: median(taken["plain"]) / median(taken["ours"]) for name, taken in results.items()
    }

    def bars(way: str) -> dict[str, Spread]:
        return {
            name: (median(taken[way]), min(taken[way]), max(taken[way]))
            for name, taken in results.items()
        }

    number = setting.dataset.num_samples
    output = "generation-quick" if given.quick else "generation"
    series = {"model.generate": bars("plain"), "ours": bars("ours")}
    bar_plot(output, f"{number} questions at batch size {BATCH_SIZE}", series, unit="CPU-seconds")
    gates = [
        *(
            gate(f"speed, ours / model.generate, {name}", ratio, at_least=1.0)
            for name, ratio in ratios.items()
        ),
        gate(
            f"memory, {memory[1]['questions']:.0f} / {memory[0]['questions']:.0f} questions",
            memory[1]["peak_mb"] / memory[0]["peak_mb"],
            at_most=1.05,
        ),
    ]
    result = {"quick": given.quick, "questions": number, "seconds": results, "memory": memory}
    return finish(output, result | {"gates": gates})


if __name__ == "__main__":
    sys.exit(main())
