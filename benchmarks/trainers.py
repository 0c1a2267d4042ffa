"""Useful tokens a second of whole trainers: ours, packed and padded, Hugging Face's and TRL's.

All train one LLaVA of 20 million weights with a vocabulary of 30,016 entries, from the same
weights, on the same prepared samples, with AdamW in float32 and about as many samples a step. Each
trains one whole epoch in a process of its own, because a sampler that puts the longest batch first
looks best in its first steps, and they take turns. Before, each computes the loss of the same
samples, and these must agree within 1e-4.

A useful token is one of a sample, whether supervised or not; padding is none. All of it takes about
13 minutes on two quiet cores by estimate.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from report import Spread, bar_plot, finish, gate

from llavamed.config.load import load_config
from llavamed.config.run import RunConfig
from llavamed.data.feed.loader import Batch, StageLoader
from llavamed.data.prepare.job import complete_dataset, initial_manifest, list_chunks
from llavamed.data.prepare.processor import ensure_processor
from llavamed.data.prepare.shards import ShardWriter
from llavamed.data.prepared.dataset import open_prepared
from llavamed.data.prepared.mixture import Mixture
from llavamed.model.attention import attend_per_sample
from llavamed.model.llava import build_model
from llavamed.model.loss import supervised_loss
from llavamed.processor.build import load_processor
from llavamed.processor.images import normalize_pixels
from llavamed.processor.turns import IGNORE_INDEX
from llavamed.run.curriculum import plan_curriculum
from llavamed.storage.location import locate
from llavamed.train.context import StepRecord, local_context
from llavamed.train.job import StageJob, order_of
from llavamed.train.worker import train_stage

SAMPLES_A_STEP = 10
VOCABULARY = 30_016
PACK = 4096  # tokens, about as many samples as a padded step has
LR = 1e-4
PATCHES = 16  # a side
TEXT = (150, 0.7)
"""Mean tokens of a caption and the deviation of their logarithm, as counted for LLaVA-Med's."""


def make_inputs(folder: Path, num_samples: int) -> None:
    """Write images, captions and the config of a run, and prepare them."""
    _write_captions(folder, num_samples)
    (folder / "run.yaml").write_text(json.dumps(_config(folder)))
    run = load_config(folder / "run.yaml")
    processor = ensure_processor(run)
    writer = ShardWriter(run, str(processor))
    reports = [writer.write(chunk) for chunk in list_chunks(run, ["captions"])]
    place = locate(run.datasets_directory) / "captions"
    manifest = initial_manifest(run, "captions", load_processor(Path(str(processor))))
    complete_dataset(place, manifest, reports, run.data.datasets["captions"])


def _write_captions(folder: Path, num_samples: int) -> None:
    """Write pictures of noise, and captions of made-up words as long as LLaVA-Med's."""
    random = np.random.default_rng(0)
    words = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "bdglmnrstx"]
    (folder / "images").mkdir()
    rows = []
    for number in range(num_samples):
        pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((224, 224)).save(folder / f"images/{number}.png")
        length = int(np.clip(random.lognormal(np.log(TEXT[0]) - TEXT[1] ** 2 / 2, TEXT[1]), 8, 900))
        turns = [
            {"from": "human", "value": "<image>\nDescribe the image."},
            {"from": "gpt", "value": " ".join(random.choice(words, length))},
        ]
        rows.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (folder / "captions.json").write_text(json.dumps(rows))


def _config(folder: Path) -> dict[str, Any]:
    """Return the config of a run with a stage of packs and one of padded rows."""
    captions = {
        "source": "llava_json",
        "path": str(folder / "captions.json"),
        "image_folder": str(folder / "images"),
    }
    stage = {
        "data": "captions",
        "trainable": ["projector", "language_model"],
        "optimizer": {"lr": LR},
        "schedule": {"name": "constant", "warmup_ratio": 0},
    }
    padded = {"micro_batch_size": SAMPLES_A_STEP, "global_batch_size": SAMPLES_A_STEP}
    return {
        "name": "trainers",
        "storage": str(folder / "runs"),
        "model": {
            "vision_tower": {
                "config": {
                    "model_type": "clip_vision_model",
                    "hidden_size": 128,
                    "intermediate_size": 512,
                    "num_hidden_layers": 4,
                    "num_attention_heads": 4,
                    "image_size": PATCHES * 14,
                    "patch_size": 14,
                }
            },
            "language_model": {
                "config": {
                    "model_type": "llama",
                    "vocab_size": VOCABULARY,
                    "hidden_size": 256,
                    "intermediate_size": 704,
                    "num_hidden_layers": 6,
                    "num_attention_heads": 4,
                    "tie_word_embeddings": False,
                }
            },
        },
        "data": {
            "max_length": 2048,
            "row_group_size": 16,
            "datasets": {"captions": {"read": captions}},
        },
        "stages": [
            {"name": "packed", "max_tokens": PACK, "global_batch_size": 1} | stage,
            {"name": "padded", "packing": False} | padded | stage,
        ],
        "checkpoint": {"every_steps": 1_000_000},
        "tracking": {"log_every_steps": 1},
        "engine": {"precision": "fp32", "zero_stage": 0},
    }


def opened(folder: Path) -> tuple[RunConfig, Mixture, Any]:
    """Return config, samples and initial model, which has the same weights in each process."""
    run = load_config(folder / "run.yaml")
    data = Mixture((open_prepared(locate(run.datasets_directory) / "captions"),))
    processor = load_processor(Path(str(ensure_processor(run))))
    return run, data, build_model(run.model, processor, seed=0, precision="fp32")


def first_batch(data: Mixture, run: RunConfig, *, packing: bool) -> Batch:
    """Return the samples of a pack, or of a padded step, in the order of the stage."""
    stage = run.stages[0 if packing else 1]
    order = order_of(stage, data, seed=0)
    loader = StageLoader(data, order, rank=0, world_size=1, packing=packing)
    return next(loader.steps())[0]


def ours(folder: Path, stage_number: int) -> dict[str, Any]:
    """Train one epoch of a stage as a worker does, and return what its steps report."""
    run, data, model = opened(folder)
    stage = run.stages[stage_number].model_copy(update={"initial_weights": None})
    batch = first_batch(data, run, packing=stage.packing)
    attend_per_sample(model)
    num_supervised = int((batch.targets != IGNORE_INDEX).sum())
    with torch.no_grad():
        loss = float(supervised_loss(model.train(), batch)) / num_supervised
    del model
    plan = plan_curriculum(run)[stage_number]
    job = StageJob(
        config=run,
        stage=stage,
        datasets=tuple(str(dataset.location) for dataset in data.datasets),
        dataset_fingerprints=tuple(each.manifest.fingerprint for each in data.datasets),
        processor=str(ensure_processor(run)),
        initial_weights=None,
        initial_fingerprint=None,
        checkpoints=str(plan.checkpoints / str(time.time_ns())),
        export=str(plan.export / str(time.time_ns())),
    )
    marks: list[tuple[float, StepRecord]] = []

    def mark(records: list[StepRecord]) -> None:
        marks.extend((time.monotonic(), record) for record in records)

    begin = time.monotonic()
    with local_context(mark) as context:
        train_stage(job, context)
    records = [record for _, record in marks]
    return {
        "samples": list(batch.sample_ids),
        "loss": loss,
        "tokens": sum(record["num_tokens"] for record in records),
        "seconds": sum(record["step_seconds"] for record in records),
        "first_step": marks[0][0] - begin,
        "last_loss": records[-1]["loss"],
    }


def peer(folder: Path, sampling: str, *, trl: bool) -> dict[str, Any]:
    """Train one epoch with `Trainer` or TRL's `SFTTrainer` on the rows of the same shards."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    run, data, model = opened(folder)
    model.requires_grad_(False)
    for part in (model.model.multi_modal_projector, model.model.language_model, model.lm_head):
        part.requires_grad_(True)
    rows = list(read_rows(data))
    collate = _Collator(data)
    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            marks.append(time.monotonic())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.append(time.monotonic())

    settings = {
        "output_dir": str(folder / "peer"),
        "per_device_train_batch_size": SAMPLES_A_STEP,
        "num_train_epochs": 1,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": not torch.cuda.is_available(),
        "remove_unused_columns": False,
        "train_sampling_strategy": sampling,
        "dataloader_num_workers": 0,
        "seed": 0,
        "disable_tqdm": True,
        "bf16": False,
        "gradient_checkpointing": False,
    }
    begin = time.monotonic()
    made: dict[str, Any] = {"model": model, "train_dataset": rows, "data_collator": collate}
    if trl:
        from trl import SFTConfig, SFTTrainer

        tokenizer = load_processor(Path(str(ensure_processor(run)))).tokenizer
        from datasets import Dataset

        made["train_dataset"] = Dataset.from_list(rows)
        own = {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None}
        arguments = SFTConfig(**settings, **own)
        trainer: Any = SFTTrainer(args=arguments, processing_class=tokenizer, **made)
    else:
        trainer = Trainer(args=TrainingArguments(**settings), **made)
    trainer.add_callback(Clock())
    wanted = list(first_batch(data, run, packing=False).sample_ids)
    by_id = {row["sample"]: row for row in rows}
    with torch.no_grad():
        inputs = collate([by_id[name] for name in wanted])
        loss = float(trainer.compute_loss(model.train(), inputs))
    trainer.train()
    starts, ends = marks[::2], marks[1::2]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "samples": wanted,
        "loss": loss,
        "tokens": sum(len(row["input_ids"]) for row in rows),
        "seconds": ends[-1] - starts[0],
        "first_step": ends[0] - begin,
        "last_loss": losses[-1],
    }


def read_rows(data: Mixture) -> Iterator[dict[str, Any]]:
    """Yield the samples as peers read them: tokens, labels and the raw pixels."""
    for group in range(len(np.unique(data.groups))):
        table = data.read_group(group, ["id", "pixels", "input_ids", "labels"])
        for row in table.to_pylist():
            yield {
                "sample": row["id"],
                "input_ids": row["input_ids"],
                "labels": row["labels"],
                "pixels": row["pixels"][0],
                "length": len(row["input_ids"]),
            }


class _Collator:
    """Pads a batch to its longest sample."""

    def __init__(self, data: Mixture) -> None:
        self._data = data

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        length = max(len(row["input_ids"]) for row in rows)

        def padded(name: str, value: int) -> torch.Tensor:
            return torch.tensor([row[name] + [value] * (length - len(row[name])) for row in rows])

        images = [self._data.pixels(row["pixels"]) for row in rows]
        ones = [{"ones": [1] * len(row["input_ids"])} for row in rows]
        return {
            "input_ids": padded("input_ids", self._data.pad_token_id),
            "labels": padded("labels", IGNORE_INDEX),
            "attention_mask": torch.tensor(
                [each["ones"] + [0] * (length - len(each["ones"])) for each in ones]
            ),
            "pixel_values": torch.from_numpy(normalize_pixels(images, self._data.images)),
        }


CONTENDERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "ours, packed": lambda folder: ours(folder, 0),
    "ours, padded": lambda folder: ours(folder, 1),
    "HF Trainer, random order": lambda folder: peer(folder, "random", trl=False),
    "HF Trainer, group_by_length": lambda folder: peer(folder, "group_by_length", trl=False),
    "TRL SFTTrainer": lambda folder: peer(folder, "random", trl=True),
}


def measure(folder: Path, name: str) -> dict[str, Any]:
    """Run one contender in a process of its own, and return its result."""
    command = [sys.executable, __file__, "--contender", name, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    """Run the benchmark, and return 1 if a gate is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="40 samples once, not 80 thrice")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.contender:
        result = CONTENDERS[asked.contender](asked.folder)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        print(json.dumps(result | {"peak_bytes": peak}))
        return 0
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as scratch:
        make_inputs(Path(scratch), 40 if asked.quick else 80)
        for _ in range(1 if asked.quick else 3):
            for name, found in rounds.items():
                found.append(measure(Path(scratch), name))
                last = found[-1]
                print(f"{name:28} {last['tokens'] / last['seconds']:7.0f} tokens/s", flush=True)
    return _report(rounds, quick=asked.quick)


def _report(rounds: dict[str, list[dict[str, Any]]], *, quick: bool) -> int:
    speeds = {
        name: [each["tokens"] / each["seconds"] for each in found] for name, found in rounds.items()
    }
    middle = {name: median(values) for name, values in speeds.items()}
    peaks = {name: median(e["peak_bytes"] for e in found) for name, found in rounds.items()}
    first = {name: median(e["first_step"] for e in found) for name, found in rounds.items()}
    packed, grouped, random, trl = (list(CONTENDERS)[number] for number in (0, 3, 2, 4))
    losses = [found[0]["loss"] for name, found in rounds.items() if name != packed]
    apart = max(losses) / min(losses) - 1
    gates = [
        gate("largest / smallest loss of the same samples - 1", apart, at_most=1e-4),
        gate(f"tokens/s / {grouped}", middle[packed] / middle[grouped], at_least=1.5),
        gate(f"tokens/s / {random}", middle[packed] / middle[random], at_least=2),
        gate(f"tokens/s / {trl}", middle[packed] / middle[trl], at_least=1.3),
        gate(f"peak memory / {grouped}", peaks[packed] / peaks[grouped], at_most=0.5),
    ]
    name = "trainers-quick" if quick else "trainers"
    bars: dict[str, dict[str, Spread]] = {
        label: {"one epoch, 20 M weights": (middle[label], min(values), max(values))}
        for label, values in speeds.items()
    }
    bar_plot(name, "Useful tokens a second of whole trainers", bars, unit="tokens/s")
    result = {
        "quick": quick,
        "tokens_per_second": speeds,
        "peak_bytes": peaks,
        "seconds_to_first_step": first,
        "rounds": rounds,
        "gates": gates,
    }
    return finish(name, result)


if __name__ == "__main__":
    sys.exit(main())
