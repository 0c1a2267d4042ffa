"""Useful tokens a second, model-FLOPs utilization and memory of a training step on one GPU.

A LLaVA of random weights and drawn lengths, so that nothing is read from a disk or a network, and
without Ray. First the loss of the same samples, packed and padded, must agree; then the largest
matrix product shows what the card can do; then each case trains in a process of its own. Its
numbers are printed and written as soon as they are there: ours by ZeRO stage, by recomputation and
by kernel, whose first loss must be that of plain ones, Hugging Face's Trainer and TRL's
SFTTrainer. The result holds what `llavamed plan --measured` reads. `--tiny` runs on a CPU what a
CPU can, and says what it leaves out.

    python benchmarks/gpu/step.py [--stage align|instruct] [--only CASE ...] [--tiny]
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import report
import torch
from drawn import Scale
from peers import Timed, hugging_face, trl, with_mask
from timing import host_waits, profile, seconds_of

from llavamed.config.engine import Engine, Kernels
from llavamed.config.stage import Recomputed, Stage
from llavamed.model.attention import attend_per_sample
from llavamed.model.cost.flops import peak_flops, stage_flops
from llavamed.model.cost.memory import stage_memory
from llavamed.model.cost.speeds import Setting
from llavamed.model.freeze import freeze
from llavamed.model.kernels import use_kernels
from llavamed.model.loss import supervised_loss
from llavamed.model.placement import trust_image_tokens
from llavamed.model.recompute import recompute
from llavamed.storage.manifest import MeasuredMemory, Measurement, PlannedBytes
from llavamed.train.context import local_context
from llavamed.train.engine import TrainingEngine
from llavamed.train.worker import compute_gradient

CEILING_OF = 8192
"""Rows and columns of the matrices whose product is the ceiling."""


def ours(
    scale: Scale,
    *,
    packing: bool = True,
    zero_stage: int | None = None,
    recomputed: Recomputed = False,
    kernels: Kernels = Kernels(),  # noqa: B008
    reads: bool = False,
    profiles: bool = False,
) -> dict[str, Any]:
    """Measure our step: copies, passes, engine and update as the worker's loop calls them."""
    model = scale.model()
    recompute(model, recomputed)
    use_kernels(model, kernels, scale.device)
    trust_image_tokens(model, model.config.image_token_id)
    settings: dict[str, Any] = {"gradient_checkpointing": recomputed}
    if packing:
        settings |= {"max_tokens": scale.pack}
    else:
        rows = scale.padded_rows
        size = {"micro_batch_size": rows, "global_batch_size": rows * scale.passes}
        settings |= {"packing": False} | size
    stage = scale.stage_config(**settings)
    engine_config = Engine(
        zero_stage=scale.zero_stage if zero_stage is None else zero_stage,
        precision="bf16" if scale.dtype == torch.bfloat16 else "fp32",
        kernels=kernels,
    )
    chosen = scale.packs() if packing else scale.rows()
    lengths = chosen[: scale.num_passes]
    shapes = [[one] if packing else [[length] for length in one] for one in lengths]
    row_tokens = scale.pack if packing and kernels.compile else 0
    batches = [scale.batch(one, row_tokens) for one in shapes]
    if scale.device.type == "cuda":
        batches = [batch.pinned() for batch in batches]
    losses: list[torch.Tensor] = []
    flops = sum(float(stage_flops(model, stage, scale.work(one))) for one in scale.timed(lengths))
    planned = plan_memory(scale, model, stage, engine_config, lengths)
    with local_context(lambda _: None):
        engine = TrainingEngine(model, stage=stage, config=engine_config, world_size=1)

        def step(number: int) -> None:
            several = batches[number * scale.passes : (number + 1) * scale.passes]
            num_tokens = sum(batch.num_tokens for batch in several)
            losses.append(compute_gradient(engine, several, num_tokens, scale.device))
            engine.update(1.0, losses[-1])
            if reads:
                engine.norms().tolist()

        seconds = seconds_of(step, scale)
        peak_bytes = scale.most_bytes()
        waits = host_waits(step, scale) if profiles else None
        operations = profile(step, scale) if profiles else None
        engine.close()
    found = {"first_loss": losses[0].item()} | numbers(
        scale, scale.timed(lengths), seconds, flops, peak_bytes
    )
    measured = Measurement(
        result=scale.stage,
        **vars(Setting.of(stage, kernels, scale.accelerator)),
        mfu=found["mfu"],
        memory=MeasuredMemory(planned=planned, peak_bytes=peak_bytes),
    )
    if profiles:
        found |= {"host_waits": waits, "operations": operations}
    return found | {"measured": measured.model_dump(mode="json")}


def plan_memory(
    scale: Scale, model: Any, stage: Stage, engine: Engine, lengths: list[list[int]]
) -> PlannedBytes:
    """Return what `llavamed plan` would count for samples of these lengths."""
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


def beside(scale: Scale, timed: Timed) -> dict[str, Any]:
    """Return the numbers of a trainer of others."""
    peak_bytes = scale.most_bytes()
    model = scale.model(torch.device("meta"))
    flops = float(stage_flops(model, scale.stage_config(), scale.work(timed.lengths)))
    found = numbers(scale, [timed.lengths], timed.seconds, flops, peak_bytes)
    return {"first_mean_loss": timed.first_loss} | found


def numbers(
    scale: Scale, lengths: list[list[int]], seconds: float, flops: float, peak_bytes: int
) -> dict[str, Any]:
    """Return what a case reports of its timed steps."""
    peak = peak_flops(scale.card)
    return {
        "tokens_per_second": sum(map(sum, lengths)) / seconds,
        "samples_per_second": sum(map(len, lengths)) / seconds,
        "step_seconds": seconds / scale.steps,
        "flops_per_second": flops / seconds,
        "mfu": None if peak is None else flops / seconds / peak,
        "peak_bytes": peak_bytes,
    }


def agree(scale: Scale) -> dict[str, Any]:
    """Compare losses of the same samples: ours packed and padded, and that of transformers.

    Each is the mean over the supervised tokens.
    """
    model = scale.model()
    lengths = scale.packs()[0]
    padded = scale.same([[length] for length in lengths])
    count = sum(length - scale.image_tokens - 1 for length in lengths)
    with torch.no_grad():
        inputs = {name: value.to(scale.device) for name, value in with_mask(padded).items()}
        losses = {"transformers": float(model(**inputs).loss)}
        attend_per_sample(model)
        for name, batch in (("packed", scale.same([lengths])), ("padded", padded)):
            losses[name] = float(supervised_loss(model, batch.to(scale.device))) / count
    return losses | {"apart": max(losses.values()) / min(losses.values()) - 1}


def repeated(scale: Scale) -> dict[str, Any]:
    """Compute loss and gradient of the same pack twice, and compare their bits."""
    model = scale.model()
    use_kernels(model, Kernels(varlen=scale.device.type == "cuda"), scale.device)
    trust_image_tokens(model, model.config.image_token_id)
    batch = scale.same(scale.packs()[:1]).to(scale.device)
    trained = [each for each in model.parameters() if each.requires_grad]
    found = []
    for _ in range(2):
        loss = supervised_loss(model, batch)
        found.append([loss, *torch.autograd.grad(loss, trained)])
    once, again = found
    apart = [
        float((a - b).float().norm() / b.float().norm()) for a, b in zip(once, again, strict=True)
    ]
    return {"same_loss": apart[0] == 0, "apart": max(apart)}


def ceiling(scale: Scale) -> dict[str, Any]:
    """Return the operations a second of one large product of matrices."""
    size = CEILING_OF if scale.device.type == "cuda" else 256
    left = torch.randn(size, size, device=scale.device, dtype=scale.dtype)
    seconds = seconds_of(lambda _: torch.matmul(left, left), scale)
    return {"flops_per_second": 2 * size**3 * scale.steps / seconds}


Case = Callable[[Scale], dict[str, Any]]


def with_kernels(*names: str) -> Case:
    """Return our step with some kernels."""
    return partial(ours, kernels=Kernels.model_validate(dict.fromkeys(names, True)))


def fast(**settings: Any) -> Case:
    """Return our step with some settings and, on a GPU, the fastest kernels."""

    def case(scale: Scale) -> dict[str, Any]:
        on_gpu = scale.device.type == "cuda"
        return ours(scale, kernels=Kernels(compile=on_gpu, varlen=on_gpu), **settings)

    return case


def others(trainer: Callable[..., Timed], *, rows: int = 1, **settings: bool) -> Case:
    """Return the step of a trainer, with as many rows as ours padded, or a multiple of them."""

    def case(scale: Scale) -> dict[str, Any]:
        return beside(scale, trainer(scale, rows=rows * scale.padded_rows, **settings))

    return case


CASES: dict[str, Case] = {
    "loss": agree,
    "matrix product": ceiling,
    "repeated": repeated,
    "ours": ours,
    "ours, varlen": with_kernels("varlen"),
    "ours, Liger": with_kernels("liger"),
    "ours, varlen and Liger": with_kernels("varlen", "liger"),
    "ours, compiled and varlen": fast(profiles=True),
    "ours, all kernels": with_kernels("compile", "varlen", "liger"),
    "Trainer": others(hugging_face),
    "Trainer, Liger": others(hugging_face, liger=True),
    "Trainer, recomputing": others(hugging_face, recompute=True, rows=2),
    "SFTTrainer": others(trl),
    "ours, compiled": with_kernels("compile"),
    "ours, recomputing": fast(recomputed=True),
    "ours, recomputing half": fast(recomputed=2),
    "ours, reading every step": fast(reads=True),
    "ours, without ZeRO": fast(zero_stage=0),
    "ours, ZeRO-1": fast(zero_stage=1),
    "ours, ZeRO-2": fast(zero_stage=2),
    "ours, padded": fast(packing=False),
}
"""What is measured, in this order. Cases named by another setting have the fastest kernels too."""
GPU_KERNELS = (
    *("ours, varlen", "ours, Liger", "ours, varlen and Liger", "ours, compiled and varlen"),
    "ours, all kernels",
)
KERNELS = (*GPU_KERNELS, "ours, compiled")
"""Cases of ours by kernel."""
FOR_GPUS = (*GPU_KERNELS, "Trainer, Liger")
"""What a CPU leaves out."""
UNPRINTED = ("measured", "operations")


def main() -> int:
    """Run the benchmark, and return 1 if a gate is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=["align", "instruct"], default="align")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument(
        "--tiny", action="store_true", help="a model of a few weights, on any device"
    )
    parser.add_argument("--case", choices=list(CASES), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.case:
        sys.stdin.readline()  # everything is imported; wait for the case before
        print(json.dumps(CASES[asked.case](Scale(asked.stage, is_tiny=asked.tiny))))
        return 0
    name = f"gpu-step-{asked.stage}{'-tiny' if asked.tiny else ''}"
    cases: dict[str, Any] = {}
    begun = begin(asked.only[0], asked.stage, is_tiny=asked.tiny)
    for case, following in zip_longest(asked.only, asked.only[1:]):
        process = begun
        begun = begin(following, asked.stage, is_tiny=asked.tiny) if following else None
        cases[case] = finish(process)
        printed = {key: value for key, value in cases[case].items() if key not in UNPRINTED}
        print(f"{case:28} {json.dumps(printed)}", flush=True)
        measured = [
            row["measured"] | {"result": f"{name}: {case}"}
            for case, row in cases.items()
            if "measured" in row
        ]
        result = {"cases": cases, "measured": measured, "gates": gates(cases)}
        report.write(name, result)
    return report.finish(name, result)


def begin(case: str, stage: str, *, is_tiny: bool) -> subprocess.Popen[str] | None:
    """Start a process that imports everything and then waits; None for a case that is left out."""
    if case in FOR_GPUS and not torch.cuda.is_available():
        return None
    command = [sys.executable, __file__, "--stage", stage, "--case", case]
    command += ["--tiny"] if is_tiny else []
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def finish(process: subprocess.Popen[str] | None) -> dict[str, Any]:
    """Run the case of a waiting process; its last error if it fails."""
    if process is None:
        return {"left_out": "its kernels are for GPUs"}
    started = time.monotonic()
    output, errors = process.communicate("go\n")
    if process.returncode:
        return {"error": errors.strip()[-1500:]}
    return json.loads(output.splitlines()[-1]) | {"case_seconds": time.monotonic() - started}


def gates(cases: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the gates of the cases that ran.

    Losses agree, also with each kernel; the host never waits within a step; and the fastest of ours
    is compared with the fastest of each trainer.
    """
    found = []
    if "apart" in cases.get("loss", {}):
        found.append(
            report.gate("loss, largest / smallest - 1", cases["loss"]["apart"], at_most=5e-3)
        )
    plain = cases.get("ours", {}).get("first_loss")
    for case in KERNELS:
        if plain and "first_loss" in cases.get(case, {}):
            apart = abs(cases[case]["first_loss"] / plain - 1)
            found.append(report.gate(f"first loss, {case[6:]} / plain - 1", apart, at_most=5e-3))
    best = fastest(cases, "ours")
    for trainer, bound in (("Trainer", 1.5), ("SFTTrainer", 1.3)):
        if best and (peer := fastest(cases, trainer)):
            ratio = best["tokens_per_second"] / peer["tokens_per_second"]
            found.append(report.gate(f"tokens/s / {trainer}'s best", ratio, at_least=bound))
    if best and best["mfu"] is not None:
        found.append(report.gate("model-FLOPs utilization", best["mfu"], at_least=0.5))
    for waits in [row["host_waits"] for row in cases.values() if row.get("host_waits") is not None]:
        found.append(report.gate("waits of the host within a step", sum(waits.values()), at_most=0))
    return found


def fastest(cases: dict[str, Any], name: str) -> dict[str, Any] | None:
    """Return the fastest case of a trainer, None if none ran."""
    ran = [
        row
        for case, row in cases.items()
        if case.partition(",")[0] == name and "tokens_per_second" in row
    ]
    return max(ran, key=lambda row: row["tokens_per_second"], default=None)


if __name__ == "__main__":
    sys.exit(main())
