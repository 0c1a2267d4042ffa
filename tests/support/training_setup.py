"""A prepared dataset, jobs and runs of a tiny stage: everything on one thread and without Ray."""

from collections.abc import Callable
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlavaProcessor

from llavamed.config.load import dump_config, load_config
from llavamed.config.run import RunConfig
from llavamed.data.feed.loader import Batch, StageLoader, supervised_columns
from llavamed.data.prepare.job import complete_dataset, initial_manifest, list_chunks
from llavamed.data.prepare.processor import ensure_processor
from llavamed.data.prepare.shards import ShardWriter
from llavamed.data.prepared.dataset import PROCESSOR, PreparedDataset, open_prepared
from llavamed.data.prepared.mixture import Mixture
from llavamed.model.export import write_export
from llavamed.processor.build import load_processor
from llavamed.run.curriculum import plan_curriculum
from llavamed.storage.location import MANIFEST, locate
from llavamed.storage.manifest import ExportManifest, read
from llavamed.train.context import local_context
from llavamed.train.history import read_history
from llavamed.train.job import StageJob, order_of
from llavamed.train.metrics import StepRecord
from llavamed.train.worker import train_stage

torch.set_num_threads(1)

SMALL = (
    "data.datasets.captions.read.num_images=40",
    "data.datasets.dialogues.read.num_images=40",
    "data.row_group_size=8",
    "checkpoint.every_steps=2",
    "tracking.log_every_steps=1",
    "stages.align.max_steps=6",
    "stages.align.max_tokens=512",
    "stages.align.schedule.warmup_ratio=0",
)
"""Six steps of four packs, each of a few samples."""


LEARNING = (
    "stages.align.trainable=[projector, language_model]",
    "stages.align.optimizer={lr: 5e-3, weight_decay: 0.01}",
)


def small_config(config: RunConfig, *overrides: str) -> RunConfig:
    """The tiny config for a few steps, with dotted overrides; its data is the session's."""
    file = Path(config.storage) / "tiny.yaml"
    file.write_text(dump_config(config))
    directory = config.data.directory or f"{Path(config.storage).parent}/small-datasets"
    return load_config(file, [*SMALL, f"data.directory={directory}", *overrides])


def prepared(config: RunConfig, name: str = "captions") -> PreparedDataset:
    """The named dataset, prepared at the first call."""
    processor = ensure_processor(config)
    place = locate(config.datasets_directory) / name
    if not (place / MANIFEST).exists():
        writer = ShardWriter(config, str(processor))
        reports = [writer.write(chunk) for chunk in list_chunks(config, [name])]
        manifest = initial_manifest(config, name, processor_of(config))
        complete_dataset(place, manifest, reports, config.data.datasets[name])
    return open_prepared(place)


def processor_of(config: RunConfig) -> LlavaProcessor:
    return load_processor(Path(str(ensure_processor(config))))


def make_job(config: RunConfig, stage: int = 0) -> StageJob:
    """What a worker of a stage would be told."""
    plan = plan_curriculum(config)[stage]
    datasets = [prepared(config, name) for name in plan.stage.mixture]
    return StageJob(
        config=config,
        stage=plan.stage,
        datasets=tuple(str(dataset.location) for dataset in datasets),
        dataset_fingerprints=tuple(dataset.manifest.fingerprint for dataset in datasets),
        processor=str(locate(config.datasets_directory) / PROCESSOR),
        initial_weights=plan.initial_weights,
        initial_fingerprint=plan.initial_weights,
        checkpoints=str(plan.checkpoints),
        export=str(plan.export),
    )


def run_stage(
    job: StageJob, report: Callable[[list[StepRecord]], None] = lambda _: None
) -> "Outcome":
    """Train in this process."""
    with local_context(report) as context:
        train_stage(job, context)
    return outcome(job)


class Outcome(ExportManifest):
    """An export's manifest, with the records beside it."""

    history: list[StepRecord]


def outcome(job: StageJob) -> Outcome:
    """What a stage that is finished has left."""
    place = locate(job.export)
    return Outcome(**dict(read(ExportManifest, place)), history=read_history(place))


class Interrupted(Exception):
    """Stands for whatever ends a process."""


def interrupted_job(config: RunConfig, *, at_step: int) -> StageJob:
    """A job whose run ended at a step, which was taken but not saved."""
    job = make_job(config)

    def report(records: list[StepRecord]) -> None:
        if records[-1]["step"] >= at_step:
            raise Interrupted

    with pytest.raises(Interrupted):
        run_stage(job, report)
    assert not locate(job.export).exists()
    return job


def exported_weights(job: StageJob) -> dict[str, torch.Tensor]:
    return load_file(Path(job.export) / "model.safetensors")


def weights_as_exported(model: Any, config: RunConfig) -> dict[str, torch.Tensor]:
    """A model's weights by the names they have in an export."""
    folder = Path(config.storage) / "as-exported"
    write_export(locate(str(folder)), model, model.state_dict(), processor_of(config))
    return load_file(folder / "model.safetensors")


def assert_same_weights(
    some: dict[str, torch.Tensor], others: dict[str, torch.Tensor], atol: float = 0.0
) -> None:
    """Bit-equal by default."""
    assert some.keys() == others.keys()
    for name, weight in some.items():
        torch.testing.assert_close(weight, others[name], rtol=0.0, atol=atol, msg=name)


def mixture(config: RunConfig, stage: int = 0) -> Mixture:
    """What a stage trains on."""
    shares = config.stages[stage].mixture
    return Mixture(tuple(prepared(config, name) for name in shares), tuple(shares.values()))


def step_batches(config: RunConfig, stage: int = 0) -> list[list[Batch]]:
    """The batches of every step of a stage, for one worker."""
    settings = config.stages[stage]
    data = mixture(config, stage)
    order = order_of(settings, data, config.seed)
    loader = StageLoader(data, order, rank=0, world_size=1, packing=settings.packing)
    return list(loader.steps())


def joined(batches: list[Batch]) -> Batch:
    """One pack of the samples of many."""
    rows = ("input_ids", "targets", "position_ids")
    whole = {name: torch.cat([getattr(batch, name) for batch in batches], dim=1) for name in rows}
    return replace(
        batches[0],
        **whole,
        supervised=torch.from_numpy(supervised_columns(whole["targets"].numpy())),
        sample_lengths=(sum((batch.sample_lengths[0] for batch in batches), ()),),
        pixel_values=torch.cat([batch.pixel_values for batch in batches]),
        image_sizes=torch.cat([batch.image_sizes for batch in batches]),
    )


def without_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `compile` trace and differentiate graphs as ever, and run them without a C compiler."""
    compiled = partialmethod(torch.nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
