"""Useful tokens a second, model-FLOPs utilization and memory of a training step on one GPU.

A LLaVA of random weights and drawn lengths, so that nothing is read from a disk or a network, and
without Ray. First the loss of the same samples, packed and padded, must agree; then the largest
matrix product shows what the card can do; then each case trains in a process of its own, and prints
its numbers as soon as it has them. `--part trainers` compares with Hugging Face's Trainer;
`--part kernels` switches on each kernel by itself and all of them, whose first loss must be that of
plain ones. The result holds what `llavamed plan --measured` reads. With a 7B model on one H100 a
part takes about nine minutes by estimate: none has been run on a GPU yet. `--tiny` runs on a CPU
what a CPU can, and says what it leaves out.

    python benchmarks/gpu/step.py [--stage align|instruct] [--part trainers|kernels] [--tiny]
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import report
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from llavamed.config.engine import Engine, Kernels
from llavamed.config.stage import Recomputed, Stage
from llavamed.data.feed.loader import Batch, supervised_columns
from llavamed.model.attention import attend_per_sample
from llavamed.model.cost.flops import Workload, accelerator_name, peak_flops, stage_flops
from llavamed.model.cost.memory import stage_memory
from llavamed.model.cost.speeds import Setting
from llavamed.model.freeze import freeze
from llavamed.model.kernels import use_kernels
from llavamed.model.llava import trust_image_tokens
from llavamed.model.loss import supervised_loss
from llavamed.model.recompute import recompute
from llavamed.processor.turns import IGNORE_INDEX
from llavamed.storage.manifest import MeasuredMemory, Measurement, PlannedBytes
from llavamed.train.context import local_context
from llavamed.train.engine import TrainingEngine

IMAGE_TOKEN = 3
CEILING_OF = 8192
"""Rows and columns of the matrices whose product is the ceiling."""
TEXT = {"align": (150, 0.7), "instruct": (400, 0.45)}
"""Mean tokens of a sample's text and the deviation of their logarithm, as in LLaVA-Med's stages."""
TRAINABLE = {"align": ["projector"], "instruct": ["projector", "language_model"]}
SHAPES: dict[str, dict[str, Any]] = {
    # A full optimizer of 7B weights takes 108 GB, so one H100 trains 2.7B of them.
    "align": {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32},
    "instruct": {"hidden_size": 2560, "intermediate_size": 6912, "num_attention_heads": 20},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4},
}


class Scale:
    """The sizes of a run."""

    def __init__(self, stage: str, *, is_tiny: bool) -> None:
        self.stage = stage
        self.shape = SHAPES["tiny" if is_tiny else stage]
        self.layers = 2 if is_tiny else 32
        self.vocabulary = 512 if is_tiny else 32064
        self.image, self.patch = (28, 14) if is_tiny else (224, 14)
        self.tower_layers = 2 if is_tiny else 24
        self.tower_width = 32 if is_tiny else 1024
        self.pack = 256 if is_tiny else 4096
        self.padded_rows = 4 if is_tiny else 8
        self.warm_up, self.steps = (1, 2) if is_tiny else (3, 10)
        self.text = (20, 0.7) if is_tiny else TEXT[stage]
        self.image_tokens = (self.image // self.patch) ** 2
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.card = torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU"
        self.accelerator = accelerator_name(self.card) or self.card

    def model(self) -> LlavaForConditionalGeneration:
        """A LLaVA made on the device."""
        heads = {"num_attention_heads": 2 if self.tower_width < 64 else 16}
        vision = CLIPVisionConfig(
            hidden_size=self.tower_width,
            intermediate_size=4 * self.tower_width,
            num_hidden_layers=self.tower_layers,
            image_size=self.image,
            patch_size=self.patch,
            **heads,
        )
        text = LlamaConfig(vocab_size=self.vocabulary, num_hidden_layers=self.layers, **self.shape)
        config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN)
        config.dtype = self.dtype
        torch.manual_seed(0)
        with self.device:
            model = LlavaForConditionalGeneration._from_config(config, dtype=self.dtype)
        freeze(model, TRAINABLE[self.stage])
        return model.train()

    def samples(self, number: int) -> list[int]:
        """Lengths of samples with one image each, the same in every process."""
        mean, deviation = self.text
        random = np.random.default_rng(0)
        text = random.lognormal(np.log(mean) - deviation**2 / 2, deviation, number)
        most = self.pack - self.image_tokens
        return [self.image_tokens + int(np.clip(length, 8, most)) for length in text]

    def packs(self) -> Iterator[list[int]]:
        """Lengths of the samples of packs, each filled in the order of drawing."""
        room, pack = self.pack, list[int]()
        for length in self.samples(100_000):
            if length > room:
                yield pack
                room, pack = self.pack, []
            pack.append(length)
            room -= length

    def rows(self) -> Iterator[list[int]]:
        """Lengths of the samples of padded passes."""
        lengths = self.samples(100_000)
        for start in range(0, len(lengths), self.padded_rows):
            yield lengths[start : start + self.padded_rows]

    def batch(self, rows: list[list[int]], row_tokens: int = 0) -> Batch:
        """Random tokens of samples of these lengths, for each row of at least so many tokens."""
        random = np.random.default_rng(sum(map(sum, rows)))
        longest = max(row_tokens, *map(sum, rows))
        input_ids = np.full((len(rows), longest), 0)
        targets = np.full((len(rows), longest), IGNORE_INDEX)
        position_ids = np.tile(np.arange(longest), (len(rows), 1))
        for row, lengths in enumerate(rows):
            start = 0
            for length in lengths:
                stop, text = start + length, start + self.image_tokens
                input_ids[row, start:text] = IMAGE_TOKEN
                input_ids[row, text:stop] = random.integers(4, self.vocabulary, stop - text)
                targets[row, text : stop - 1] = input_ids[row, text + 1 : stop]
                position_ids[row, start:stop] = np.arange(length)
                start = stop
        images = sum(map(len, rows))
        pixels = torch.from_numpy(random.standard_normal((images, 3, self.image, self.image)))
        whole = [(*row[:-1], longest - sum(row[:-1])) for row in rows]
        return Batch(
            input_ids=torch.from_numpy(input_ids),
            targets=torch.from_numpy(targets),
            supervised=torch.from_numpy(supervised_columns(targets)),
            position_ids=torch.from_numpy(position_ids),
            sample_lengths=tuple(whole),
            pixel_values=pixels.to(self.dtype),
            image_sizes=torch.full((images, 2), self.image),
            sample_ids=(),
            num_tokens=sum(map(sum, rows)),
        ).to(self.device)

    def work(self, lengths: list[int]) -> Workload:
        """What these samples are to the model."""
        supervised = sum(length - self.image_tokens - 1 for length in lengths)
        squares = sum(length**2 for length in lengths)
        return Workload(len(lengths), sum(lengths), supervised, squares)

    def stage_config(self, **settings: Any) -> Stage:
        """The stage of a case."""
        base = {"name": self.stage, "data": "drawn", "trainable": TRAINABLE[self.stage]}
        size = {"global_batch_size": 1, "optimizer": {"lr": 1e-4}}
        return Stage.model_validate(base | size | settings)


def seconds_of(step: Callable[[int], None], scale: Scale) -> float:
    """Seconds of the timed steps, after warm-up, until the device has done them."""
    for number in range(scale.warm_up):
        step(number)
    _wait(scale)
    begin = time.perf_counter()
    for number in range(scale.warm_up, scale.warm_up + scale.steps):
        step(number)
    _wait(scale)
    return time.perf_counter() - begin


def _wait(scale: Scale) -> None:
    if scale.device.type == "cuda":
        torch.cuda.synchronize()


def ours(
    scale: Scale,
    *,
    packing: bool = True,
    zero_stage: int = 2,
    recomputed: Recomputed = False,
    kernels: Kernels = Kernels(),  # noqa: B008
    reads: bool = False,
) -> dict[str, Any]:
    """Our step: passes, engine and update as the worker's loop calls them."""
    model = scale.model()
    recompute(model, recomputed)
    use_kernels(model, kernels, scale.device)
    trust_image_tokens(model, model.config.image_token_id)
    settings: dict[str, Any] = {"gradient_checkpointing": recomputed}
    if packing:
        settings |= {"max_tokens": scale.pack}
    else:
        rows = scale.padded_rows
        settings |= {"packing": False, "micro_batch_size": rows, "global_batch_size": rows}
    stage = scale.stage_config(**settings)
    precision = "bf16" if scale.dtype == torch.bfloat16 else "fp32"
    engine_config = Engine(zero_stage=zero_stage, precision=precision, kernels=kernels)
    chosen = scale.packs() if packing else scale.rows()
    lengths = [next(chosen) for _ in range(scale.warm_up + scale.steps)]
    shapes = [[one] if packing else [[length] for length in one] for one in lengths]
    row_tokens = scale.pack if packing and kernels.compile else 0
    batches = [scale.batch(one, row_tokens) for one in shapes]
    losses: list[torch.Tensor] = []
    flops = sum(
        float(stage_flops(model, stage, scale.work(one))) for one in lengths[scale.warm_up :]
    )
    planned = plan_memory(scale, model, stage, engine_config, lengths)
    with local_context(lambda _: None):
        engine = TrainingEngine(model, stage=stage, config=engine_config, world_size=1)

        def step(number: int) -> None:
            batch = batches[number]
            loss = supervised_loss(engine.model, batch)
            losses.append(loss.detach())
            engine.backward(loss, batch.num_tokens)
            engine.update(1.0, loss.detach())
            if reads:
                engine.norms().tolist()

        seconds = seconds_of(step, scale)
        engine.close()
    found = {"first_loss": losses[0].item()} | numbers(scale, lengths, seconds, flops)
    measured = Measurement(
        result=scale.stage,
        **vars(Setting.of(stage, kernels, scale.accelerator)),
        mfu=found["mfu"],
        memory=MeasuredMemory(planned=planned, peak_bytes=found["peak_bytes"]),
    )
    return found | {"measured": measured.model_dump(mode="json")}


def plan_memory(
    scale: Scale, model: Any, stage: Stage, engine: Engine, lengths: list[list[int]]
) -> PlannedBytes:
    """What `llavamed plan` would count for samples of these lengths."""
    samples = [length for one in lengths for length in one]
    text = sum(length - scale.image_tokens - 1 for length in samples)
    return stage_memory(
        model,
        freeze(model, stage.trainable),
        stage=stage,
        engine=engine,
        num_workers=1,
        longest=max(samples),
        supervised=text / sum(samples),
        tiles_per_token=1 / min(samples),
    ).counted


def trainer(scale: Scale, *, recompute: bool, rows: int) -> dict[str, Any]:
    """Hugging Face's Trainer with lengths grouped, its best: padded, in bf16 with AdamW fused."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    model = scale.model()
    number = (scale.warm_up + scale.steps) * rows
    data = [{"input_ids": [0] * length} for length in scale.samples(number)]  # the sampler counts

    def collate(samples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        each = [len(sample["input_ids"]) for sample in samples]
        batch, lengths = scale.batch([[length] for length in each]), torch.tensor(each)
        mask = torch.arange(max(each))[None] < lengths[:, None]
        labels = torch.full_like(batch.targets, IGNORE_INDEX)
        labels[:, 1:] = batch.targets[:, :-1]
        return {
            "input_ids": batch.input_ids.cpu(),
            "labels": labels.cpu(),
            "attention_mask": mask.long(),
            "pixel_values": batch.pixel_values.cpu(),
        }

    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            _wait(scale)
            marks.append(time.perf_counter())

    settings = TrainingArguments(
        output_dir="/tmp/llavamed-gpu-step",
        per_device_train_batch_size=rows,
        max_steps=scale.warm_up + scale.steps,
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        save_strategy="no",
        report_to=[],
        optim="adamw_torch_fused",
        use_cpu=scale.device.type == "cpu",
        bf16=False,  # the weights are bfloat16 already, as ours are
        gradient_checkpointing=recompute,
        disable_tqdm=True,
        logging_steps=1000,
    )
    Trainer(
        model=model,
        args=settings,
        train_dataset=data,
        data_collator=collate,
        callbacks=[Clock()],
    ).train()
    every = [[len(sample["input_ids"]) for sample in data]]
    seconds = (marks[-1] - marks[scale.warm_up - 1]) * len(marks) / scale.steps
    stage = scale.stage_config()
    flops = float(stage_flops(model, stage, scale.work(every[0])))
    # The order is the sampler's, so all steps count, at the mean time of those after warm-up.
    return numbers(scale, every, seconds, flops, skipped=0)


def numbers(
    scale: Scale, lengths: list[list[int]], seconds: float, flops: float, skipped: int | None = None
) -> dict[str, Any]:
    """What a case reports."""
    timed = lengths[scale.warm_up if skipped is None else skipped :]
    peak = peak_flops(scale.card)
    return {
        "tokens_per_second": sum(map(sum, timed)) / seconds,
        "samples_per_second": sum(map(len, timed)) / seconds,
        "flops_per_second": flops / seconds,
        "mfu": None if peak is None else flops / seconds / peak,
        "peak_bytes": peak_bytes(scale),
    }


def peak_bytes(scale: Scale) -> int:
    """The most bytes of the GPU's tensors, or of this process if there is no GPU."""
    if scale.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def agree(scale: Scale) -> dict[str, Any]:
    """The loss of the same samples packed and padded, for each supervised token."""
    model = scale.model()
    attend_per_sample(model)
    lengths = next(scale.packs())
    losses = []
    with torch.no_grad():
        for rows in ([lengths], [[length] for length in lengths]):
            number = sum(length - scale.image_tokens - 1 for length in lengths)
            losses.append(float(supervised_loss(model, _same(scale, rows))) / number)
    return {"packed": losses[0], "padded": losses[1], "apart": abs(losses[0] / losses[1] - 1)}


def _same(scale: Scale, rows: list[list[int]]) -> Batch:
    """A batch whose samples have the same tokens and pixels however they are laid out."""
    batch = scale.batch(rows)
    for row, lengths in enumerate(rows):
        start = 0
        for length in lengths:
            text, stop = start + scale.image_tokens, start + length
            batch.input_ids[row, text:stop] = 4 + torch.arange(stop - text) % (scale.vocabulary - 4)
            batch.targets[row, text : stop - 1] = batch.input_ids[row, text + 1 : stop]
            start = stop
    batch.pixel_values.fill_(0.5)
    return batch


def ceiling(scale: Scale) -> dict[str, Any]:
    """Operations a second of one large product of matrices."""
    size = CEILING_OF if scale.device.type == "cuda" else 256
    left = torch.randn(size, size, device=scale.device, dtype=scale.dtype)
    seconds = seconds_of(lambda _: torch.matmul(left, left), scale)
    return {"flops_per_second": 2 * size**3 * scale.steps / seconds}


Case = Callable[[Scale], dict[str, Any]]
_FIRST: dict[str, Case] = {"loss": agree, "matrix product": ceiling, "ours": ours}


def with_kernels(*names: str) -> Case:
    """Our step with some kernels."""
    kernels = Kernels.model_validate(dict.fromkeys(names, True))
    return lambda scale: ours(scale, kernels=kernels)


CASES: dict[str, dict[str, Case]] = {
    "trainers": _FIRST
    | {
        "ours, reading every step": lambda scale: ours(scale, reads=True),
        "ours, recomputing": lambda scale: ours(scale, recomputed=True),
        "ours, ZeRO-1": lambda scale: ours(scale, zero_stage=1),
        "ours, without ZeRO": lambda scale: ours(scale, zero_stage=0),
        "ours, padded": lambda scale: ours(scale, packing=False),
        "Trainer": lambda scale: trainer(scale, recompute=False, rows=scale.padded_rows),
        "Trainer, recomputing": lambda scale: trainer(
            scale, recompute=True, rows=2 * scale.padded_rows
        ),
    },
    "kernels": _FIRST
    | {
        "ours, recomputing half": lambda scale: ours(scale, recomputed=2),
        "ours, compiled": with_kernels("compile"),
        "ours, Liger": with_kernels("liger"),
        "ours, varlen": with_kernels("varlen"),
        "ours, all kernels": with_kernels("compile", "liger", "varlen"),
    },
}
"""What is measured, by part."""
FOR_GPUS = ("ours, Liger", "ours, varlen", "ours, all kernels")
"""What a CPU leaves out."""


def main() -> int:
    """Run every case of a part; 1 when a gate is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=["align", "instruct"], default="align")
    parser.add_argument("--part", choices=list(CASES), default="trainers")
    parser.add_argument(
        "--tiny", action="store_true", help="a model of a few weights, on any device"
    )
    parser.add_argument("--case", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.case:
        found = CASES[asked.part][asked.case](Scale(asked.stage, is_tiny=asked.tiny))
        print(json.dumps(found))
        return 0
    results: dict[str, Any] = {}
    chosen = ["--stage", asked.stage, "--part", asked.part, *(["--tiny"] if asked.tiny else [])]
    for case in CASES[asked.part]:
        if case in FOR_GPUS and not torch.cuda.is_available():
            results[case] = {"left_out": "its kernels are for GPUs"}
        else:
            command = [sys.executable, __file__, *chosen, "--case", case]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            failed = {"error": done.stderr.strip()[-500:]}
            results[case] = failed if done.returncode else json.loads(done.stdout.splitlines()[-1])
        numbers = {key: value for key, value in results[case].items() if key != "measured"}
        print(f"{case:28} {json.dumps(numbers)}", flush=True)
    part = "" if asked.part == "trainers" else f"-{asked.part}"
    name = f"gpu-step-{asked.stage}{part}{'-tiny' if asked.tiny else ''}"
    measured = [
        row["measured"] | {"result": f"{name}: {case}"}
        for case, row in results.items()
        if "measured" in row
    ]
    return report.finish(name, {"cases": results, "measured": measured, "gates": gates(results)})


def gates(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The losses must agree, and ours be faster than the best case of the Trainer that ran.

    A kernel must have the first loss of plain ones.
    """
    peers = [
        found["tokens_per_second"]
        for case, found in results.items()
        if case.startswith("Trainer") and "error" not in found
    ]
    apart = results["loss"].get("apart", 1.0)
    found = [report.gate("loss packed / padded - 1", apart, at_most=5e-3)]
    own = results["ours"].get("tokens_per_second", 0.0)
    plain = results["ours"].get("first_loss")
    for case, row in results.items():
        if plain and case in CASES["kernels"] and "first_loss" in row and case != "ours":
            apart = abs(row["first_loss"] / plain - 1)
            found.append(report.gate(f"first loss, {case[6:]} / plain - 1", apart, at_most=5e-3))
    if peers:
        found.append(report.gate("tokens/s / Trainer's best", own / max(peers), at_least=1.5))
    if results["ours"].get("mfu") is not None:
        found.append(report.gate("model-FLOPs utilization", results["ours"]["mfu"], at_least=0.5))
    return found


if __name__ == "__main__":
    sys.exit(main())
