"""Show where the seconds of our training step go, by phase and by kind of operation.

The stages of `trainers.py` are trained as a worker trains them, one packed and one padded. A stack
of clocks gives every phase the time that none of the phases inside it takes, so the table adds up
to the step: in CPU seconds, or with a GPU in seconds of the clock. A second, profiled epoch counts
the operations, and with them how often the host reads a value from the device, which on a GPU makes
it wait for all that was asked of it.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import report
import torch
import trainers
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from llavamed.data.feed.loader import Batch, StageLoader
from llavamed.train import engine as engine_module
from llavamed.train import worker

PARTS = {
    "CLIPVisionModel": "forward: tower",
    "LlavaMultiModalProjector": "forward: projector",
    "LlamaAttention": "forward: attention",
    "LlamaMLP": "forward: feed-forward",
    "LlamaRMSNorm": "forward: norms",
    "LlamaModel": "forward: rest of the language model",
    "Embedding": "forward: rest of the language model",
    "LlavaForConditionalGeneration": "forward: rest of LLaVA (images into text)",
    "DeepSpeedEngine": "DeepSpeed: forward",
}
"""The phase of each class of modules; others count to the module around them."""
HOST_READS = ("aten::_local_scalar_dense", "aten::nonzero")
"""Operations whose result the host must know, so that it waits for a GPU."""


class Clocks:
    """Exclusive seconds of nested phases."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0
        self.is_on = False

    def _switch(self) -> None:
        now = self._now()
        if self._open and self.is_on:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    @staticmethod
    def _now() -> float:
        if not torch.cuda.is_available():
            return time.process_time()  # CPU seconds, whatever else this machine computes
        torch.cuda.synchronize()
        return time.perf_counter()

    def enter(self, phase: str) -> None:
        """Begin a phase inside the present one."""
        self._switch()
        self._open.append(phase)

    def leave(self) -> None:
        """End the innermost phase."""
        self._switch()
        self._open.pop()

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """Count what runs inside to a phase."""
        self.enter(phase)
        try:
            yield
        finally:
            self.leave()

    def wrap(self, owner: Any, name: str, phase: str) -> Callable[[], None]:
        """Count the calls of a function to a phase; return what undoes this."""
        inner = getattr(owner, name)

        def counted(*arguments: Any, **settings: Any) -> Any:
            with self.within(phase):
                return inner(*arguments, **settings)

        setattr(owner, name, counted)
        return lambda: setattr(owner, name, inner)


def clocked_epoch(folder: Path, stage_number: int) -> dict[str, Any]:
    """Train a stage and return seconds by phase, of all steps but the first."""
    clocks, steps = Clocks(), Counter[str]()
    inner_steps = StageLoader.steps

    def counted_steps(loader: StageLoader, start: int = 0) -> Iterator[list[Batch]]:
        batches = inner_steps(loader, start)
        while True:
            with clocks.within("wait for batches"):
                step = next(batches, None)
            if step is None:
                return
            clocks.is_on = steps["taken"] > 0
            steps["taken"] += 1
            steps["tokens"] += sum(batch.num_tokens for batch in step) if clocks.is_on else 0
            yield step

    def before(module: torch.nn.Module, _: Any) -> None:
        if phase := phase_of(module):
            clocks.enter(phase)

    def after(module: torch.nn.Module, *_: Any) -> None:
        if phase_of(module):
            clocks.leave()

    undo = [
        clocks.wrap(Batch, "to", "copy to the device"),
        clocks.wrap(worker, "supervised_loss", "forward: loss"),
        clocks.wrap(engine_module.TrainingEngine, "backward", "DeepSpeed: backward"),
        clocks.wrap(torch.Tensor, "backward", "backward"),
        clocks.wrap(engine_module.TrainingEngine, "step", "norms, clipping, DeepSpeed: step"),
        clocks.wrap(engine_module.TrainingEngine, "update", "norms, clipping, DeepSpeed: step"),
        clocks.wrap(torch.optim.AdamW, "step", "optimizer"),
        clocks.wrap(worker, "_train_steps", "rest of the loop"),
        register_module_forward_pre_hook(before).remove,
        register_module_forward_hook(after).remove,
    ]
    StageLoader.steps = counted_steps
    try:
        trainers.ours(folder, stage_number)
    finally:
        StageLoader.steps = inner_steps
        for each in undo:
            each()
    return {"seconds": dict(clocks.seconds), "steps": steps["taken"] - 1, "tokens": steps["tokens"]}


def phase_of(module: torch.nn.Module) -> str | None:
    """Return the phase of a module."""
    if isinstance(module, torch.nn.Linear) and module.out_features == trainers.VOCABULARY:
        return "forward: logits"
    return PARTS.get(type(module).__name__)


def profiled_epoch(folder: Path, stage_number: int) -> dict[str, Any]:
    """Train a stage under PyTorch's profiler: seconds by operation, and reads of the host."""
    with torch.profiler.profile() as profiler:
        result = trainers.ours(folder, stage_number)
    averages = profiler.key_averages()
    heavy = sorted(averages, key=lambda each: -each.self_cpu_time_total)[:12]
    return {
        "operations": {each.key: [each.count, each.self_cpu_time_total / 1e6] for each in heavy},
        "host_reads": {each.key: each.count for each in averages if each.key in HOST_READS},
        "seconds": result["seconds"],
    }


def show(name: str, clocked: dict[str, Any], profiled: dict[str, Any]) -> None:
    """Print both tables of a stage."""
    total = sum(clocked["seconds"].values())
    print(
        f"\n{name}: {clocked['steps']} steps of {total / clocked['steps']:.2f} CPU s, "
        f"{clocked['tokens'] / total:,.0f} useful tokens a CPU second"
    )
    for phase, seconds in sorted(clocked["seconds"].items(), key=lambda item: -item[1]):
        milliseconds = 1e3 * seconds / clocked["steps"]
        print(f"  {phase:44} {milliseconds:9.1f} ms  {seconds / total:6.1%}")
    print("  operations of the whole epoch and its checks, by their own seconds:")
    for key, (count, seconds) in profiled["operations"].items():
        print(f"  {key:44} {seconds:9.2f} s   {count} calls")
    reads = ", ".join(f"{count} {key}" for key, count in profiled["host_reads"].items())
    print(
        f"  reads of the host in {clocked['steps'] + 1} steps, with all before and after: {reads}"
    )


def main() -> int:
    """Profile both stages in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="40 samples, not 160")
    asked = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        trainers.make_inputs(Path(scratch), 40 if asked.quick else 160)
        for number, name in enumerate(("packed", "padded")):
            clocked = clocked_epoch(Path(scratch), number)
            profiled = profiled_epoch(Path(scratch), number)
            show(name, clocked, profiled)
            found[name] = {"clocked": clocked, "profiled": profiled}
    report.write("step-profile-quick" if asked.quick else "step-profile", found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
