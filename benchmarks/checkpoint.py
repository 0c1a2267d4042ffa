"""Measure how long training stops for a checkpoint, beside saving before it continues.

One worker trains a stack of linear layers by ZeRO-2 in bf16, 14 bytes of state a parameter, and
saves it to a local folder and to an S3 server on this machine; the two ways of saving take turns.
The synchronous way is not charged for the copy to host memory, which it would not need. Shown
beside them, without a gate: the first save, whose copy takes new memory and so is slower, and how
much longer a step takes while a save is under way.
"""

import argparse
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from report import Spread, bar_plot, finish, gate
from s3_server import s3_server

from llavamed.config.load import load_config
from llavamed.storage.location import locate
from llavamed.train.checkpoint.listing import complete_checkpoints
from llavamed.train.checkpoint.save import Saver
from llavamed.train.context import StepRecord, local_context
from llavamed.train.engine import TrainingEngine
from llavamed.train.job import StageJob

DEMO = Path(__file__).parents[1] / "ray_jobs" / "configs" / "demo.yaml"
WIDTH = 1024
ROWS = 64
BYTES_OF_STATE = 14
"""A parameter: bf16 weight, and in fp32 weight and two moments."""
RECORD: StepRecord = {
    "step": 1,
    "loss": 0.123456789,
    "grad_norm": 1.23456789,
    "step_seconds": 1.23456,
}
NUM_RECORDS = 10_000


class Training:
    """A model in training, and a place to save it to."""

    def __init__(self, folder: str, num_layers: int) -> None:
        config = load_config(
            DEMO,
            [
                f"storage={folder}",
                "scaling.num_workers=1",
                "engine.precision=bf16",
                "checkpoint.num_to_keep=1",
                "stages.align.trainable=[language_model]",
                "stages.align.global_batch_size=1",
            ],
        )
        self.job = StageJob(
            config=config,
            stage=config.stages[0],
            datasets=(),
            dataset_fingerprints=(),
            processor="",
            initial_weights=None,
            initial_fingerprint=None,
            checkpoints=f"{folder}/checkpoints",
            export=f"{folder}/export",
        )
        model = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(num_layers)))
        self.rows = torch.randn(ROWS, WIDTH, dtype=torch.bfloat16)
        self.engine = TrainingEngine(
            model.bfloat16(), stage=self.job.stage, config=config.engine, world_size=1
        )
        self.num_bytes = sum(p.numel() for p in model.parameters()) * BYTES_OF_STATE
        self.history = [RECORD] * NUM_RECORDS

    def step(self) -> float:
        """Take a step, and return its seconds."""
        begin = time.monotonic()
        self.engine.backward(self.engine.model(self.rows).float().square().sum(), ROWS)
        self.engine.update(0.0, torch.zeros(()))  # all of a step, without divergence
        self.history.append(RECORD)
        return time.monotonic() - begin

    def saver(self, place: str) -> Saver:
        """Return the saver of this training."""
        job = replace(self.job, checkpoints=place)
        return Saver(job, self.engine, num_saved_steps=0, started=time.monotonic())


def save_and_wait(training: Training, saver: Saver) -> dict[str, float]:
    """Save while training waits until the end. `copy` is the part for which it always waits."""
    begin = time.monotonic()
    saver.save(training.history)
    copied = time.monotonic()
    saver.wait()
    return {"copy": copied - begin, "synchronous": time.monotonic() - copied}


def save_and_train(training: Training, saver: Saver) -> dict[str, float]:
    """Save while training goes on, until the checkpoint is complete."""
    quiet = median(training.step() for _ in range(3))
    begin = time.monotonic()
    saver.save(training.history)
    stall, steps = time.monotonic() - begin, []
    waiting = threading.Thread(target=saver.wait)
    waiting.start()
    while waiting.is_alive():
        steps.append(training.step())
    waiting.join()
    lag = time.monotonic() - begin
    return {"asynchronous": stall, "lag": lag, "slower": median(steps) / quiet}


def compare(training: Training, place: str, num_rounds: int) -> dict[str, Any]:
    """Measure both ways in turn, without the first save of either."""
    rounds = []
    with training.saver(place) as saver:
        training.step()
        first = save_and_wait(training, saver)
        for _ in range(num_rounds):
            rounds.append(save_and_wait(training, saver) | save_and_train(training, saver))
            training.step()
    assert len(complete_checkpoints(locate(place))) == 1
    taken = {name: [one[name] for one in rounds] for name in rounds[0]}
    medians = {name: median(values) for name, values in taken.items()}
    return {
        "first": first,
        "all": taken,
        "medians": medians,
        "gate": medians["asynchronous"] / medians["synchronous"],
    }


def main() -> int:
    """Run the benchmark, and return 1 if a gate is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="17 M parameters and 5 rounds")
    quick = parser.parse_args().quick
    num_layers, num_rounds = (16, 5) if quick else (48, 7)
    torch.set_num_threads(1)
    with (
        tempfile.TemporaryDirectory() as folder,
        s3_server() as bucket,
        local_context(lambda _: None),
    ):
        training = Training(folder, num_layers)
        results = {
            "local": compare(training, f"{folder}/saved", num_rounds),
            "S3": compare(training, f"{bucket}/saved", num_rounds),
        }
    for name, result in results.items():
        print(name, {key: round(value, 3) for key, value in result["medians"].items()})
        print(name, "first", {key: round(value, 3) for key, value in result["first"].items()})
    output = "checkpoint-quick" if quick else "checkpoint"

    def bars(way: str) -> dict[str, Spread]:
        return {
            name: (result["medians"][way], min(result["all"][way]), max(result["all"][way]))
            for name, result in results.items()
        }

    series = {way: bars(way) for way in ("synchronous", "asynchronous")}
    size = f"{training.num_bytes / 1e6:.0f} MB"
    bar_plot(output, f"Training stands still for a checkpoint of {size}", series, unit="seconds")
    gates = [
        gate(f"stall of a save, asynchronous / synchronous, {name}", result["gate"], at_most=0.1)
        for name, result in results.items()
    ]
    result = {"quick": quick, "bytes": training.num_bytes, "results": results, "gates": gates}
    return finish(output, result)


if __name__ == "__main__":
    sys.exit(main())
