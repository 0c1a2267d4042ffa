"""Train one stage on one worker, under Ray Train or in a single process without Ray."""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llavamed.data.feed.loader import Batch, StageLoader
from llavamed.data.prepared.mixture import Mixture
from llavamed.errors import CheckpointError, StorageError
from llavamed.model.adapters import add_adapters, merge_adapters
from llavamed.model.export import Trained, check_export, fetch_export, write_export
from llavamed.model.freeze import PartCount, freeze
from llavamed.model.kernels import use_kernels
from llavamed.model.llava import build_model, load_model
from llavamed.model.loss import sampled_logits, supervised_loss
from llavamed.model.placement import trust_image_tokens
from llavamed.model.recompute import recompute
from llavamed.processor.build import load_processor
from llavamed.storage.fetch import fetch_once
from llavamed.storage.location import Location, locate
from llavamed.storage.manifest import ExportManifest, Measurement, PartFacts, find, write
from llavamed.train.checkpoint.random_state import seed_random_state
from llavamed.train.checkpoint.requests import CheckpointRequests
from llavamed.train.checkpoint.restore import restore_checkpoint
from llavamed.train.checkpoint.save import Saver
from llavamed.train.collectives import together
from llavamed.train.context import Context, PreemptionWatch
from llavamed.train.engine import TrainingEngine
from llavamed.train.guard import (
    check_finite,
    check_loss,
    check_moved,
    check_separation,
    explained_memory,
    ids_of,
    weight_sums,
)
from llavamed.train.history import write_history
from llavamed.train.job import StageJob, open_mixture, order_of
from llavamed.train.measure import Meter, Sizing, cluster_peak_flops, measurement, speed
from llavamed.train.metrics import StepRecord
from llavamed.train.schedule import rate_factor, warmup_steps
from llavamed.train.unread import TakenStep, UnreadSteps, with_all_ranks


def train_stage(job: StageJob, context: Context) -> bool:
    """Train a stage from its last checkpoint or its start to its export; all ranks must call it.

    Returns:
        Whether the export is complete. If not, a machine is about to be taken away: a checkpoint
            holds all steps so far, and the stage must be started again elsewhere.

    Raises:
        TrainingError: A loss or gradient is not finite, or a loss exceeds the stage's bound, and
            the step is not saved; a GPU is out of memory; or no weight has changed.
        DataError: A dataset has changed since the run started.
        CheckpointError: The export cannot be written, or differs from the trained model, and is not
            completed.
    """
    started = time.monotonic()
    torch.manual_seed(job.config.seed)
    data = open_mixture(job)
    processor = load_processor(Path(fetch_once(job.processor)))
    settings = job.config.engine_of(job.stage)
    model = _model_to_train(job, processor, data.image_token_id, context.device)
    counts = freeze(model, job.stage.trainable)
    sums = weight_sums(model, settings.precision)
    order = order_of(job.stage, data, job.config.seed)
    peak = cluster_peak_flops(settings, context)
    meter = Meter(
        model, stage=job.stage, data=data, order=order, device=context.device, peak_flops=peak
    )
    sizing = Sizing.of(model, counts, data, context.world_size)
    loader = StageLoader(
        data,
        order,
        rank=context.rank,
        world_size=context.world_size,
        packing=job.stage.packing,
        row_tokens=job.config.row_tokens(job.stage),
        pins=context.device.type == "cuda",
    )
    with explained_memory(job.config, job.stage, sizing):
        model.train().to(context.device)
        engine = TrainingEngine(
            model, stage=job.stage, config=settings, world_size=context.world_size
        )
        if job.stage.packing:
            pack = next(loader.steps())[0].to(context.device)
            check_separation(job.stage, engine.model, pack, data.image_token_id)
        history, seconds_before = _resume(job, engine, context)
        first = len(history)
        started -= seconds_before
        unread = UnreadSteps(job, context, engine, meter, history)
        requests = CheckpointRequests(locate(job.config.directory), is_first=context.rank == 0)
        with requests, Saver(job, engine, num_saved_steps=first, started=started) as saver:
            has_all_steps = _train_steps(job, context, engine, loader, unread, saver, requests)
    if not has_all_steps:
        engine.close()
        return False
    measured = measurement(job, sizing, history[first:], context.device)
    trained = _trained(job, context, engine, model, loader, sums)
    dist.barrier()  # the last one: other ranks do not wait while rank 0 exports
    engine.close()
    if context.rank == 0:
        place = locate(job.export)
        with _exporting(place, num_steps=len(history)):
            job.check_lease()
            write_export(place, model, trained.weights, processor)
            del model, engine, sizing  # free memory before the same weights are loaded again
            gc.collect()
            torch.cuda.empty_cache()
            difference = check_export(place, trained, context.device)
            manifest = _manifest(job, data, counts, history, started, difference, measured)
            job.check_lease()
            write_history(place, history)
            write(place, manifest)
    return True


@contextmanager
def _exporting(place: Location, num_steps: int) -> Iterator[None]:
    """Raise CheckpointError, which says where the steps are, if the storage fails within."""
    try:
        yield
    except StorageError as error:
        raise CheckpointError(
            f"{place}: the export cannot be written or read back: {error}; all {num_steps} steps "
            "are in the last checkpoint; start the same command again to go on from there"
        ) from error


def _trained(
    job: StageJob,
    context: Context,
    engine: TrainingEngine,
    model: Any,
    loader: StageLoader,
    sums: dict[str, int],
) -> Trained:
    """Return the trained model for comparison with its export; every rank must call it.

    Each rank runs its first batch, because ZeRO-3 needs all ranks. Only that of rank 0 is compared,
    which is never empty and has an image, even if it is only a blank one.

    Args:
        model: The model inside the engine.
        sums: The result of `weight_sums` before the first step.

    Raises:
        TrainingError: No weight has changed.
    """
    batch = next(loader.steps())[0]
    engine.model.eval()
    with torch.compiler.set_stance("force_eager"):  # as the export is checked
        logits = sampled_logits(engine.model, batch.to(context.device))
    weights = engine.weights()
    engine_config = job.config.engine_of(job.stage)
    precision = engine_config.precision
    together(lambda: check_moved(job.stage, precision, sums, weights), context.rank == 0)
    return Trained(
        weights=merge_adapters(model, weights) if weights else {},
        batch=batch,
        logits=logits,
        is_merged=job.stage.lora is not None,
        precision=precision,
        attn_implementation=job.config.model.attn_implementation,
        kernels=engine_config.kernels.model_copy(update={"compile": False}),
        template=job.config.model.template,
        template_hash=loader.data.template_hash,
    )


def _train_steps(
    job: StageJob,
    context: Context,
    engine: TrainingEngine,
    loader: StageLoader,
    unread: UnreadSteps,
    saver: Saver,
    requests: CheckpointRequests,
) -> bool:
    """Take the steps that the history does not hold yet, and append a record of each.

    Returns:
        Whether all steps were taken. A preemption ends them early with a checkpoint, which is
            complete once the context of the saver is left.
    """
    stage, order, history = job.stage, loader.order, unread.history
    num_reported = len(history)
    num_supervised = order.sums(loader.data.column("num_supervised")).tolist()
    watch = PreemptionWatch(context, lambda: requests.is_open)
    # Otherwise the loss must be known before the optimizer changes the weights.
    may_wait = engine.can_refuse and stage.max_loss_ratio is None
    started_step = time.monotonic()
    for step, batches in enumerate(loader.steps(start=len(history)), start=len(history)):
        data_wait = time.monotonic() - started_step
        has_moved = step > min(1, warmup_steps(stage.schedule, order.num_steps))
        losses = with_all_ranks(
            compute_gradient(engine, batches, num_supervised[step], context.device)
        )
        if not may_wait:
            own_sum, total = losses.tolist()
            check_finite(context, stage, step, ids_of(batches), own_sum, total, has_moved=has_moved)
            mean_loss = total / max(1, num_supervised[step])
            check_loss(job.config, stage, history, mean_loss, order.num_steps)
        factor = rate_factor(stage.schedule, step=step, num_steps=order.num_steps)
        engine.update(factor, losses[1])
        unread.add(
            TakenStep(
                step=step,
                num_supervised=num_supervised[step],
                sample_ids=ids_of(batches),
                rate_factor=factor,
                has_moved=has_moved,
                started=started_step,
                seconds=time.monotonic() - started_step,
                data_wait=data_wait,
                losses=losses,
            )
        )
        is_last = step + 1 == order.num_steps
        is_reported = is_last or step + 1 - num_reported >= job.config.tracking.log_every_steps
        if is_reported or not may_wait:
            unread.read(saver.age_seconds)
        if is_reported:
            if context.rank == 0:
                context.report(history[num_reported:])
            num_reported = len(history)
        is_preempted = watch.asks() and context.is_preempted()
        is_due = watch.wants_checkpoint or (step + 1) % job.config.checkpoint.every_steps == 0
        # Save after the last step too: if the export fails, no step is lost.
        if is_last or is_preempted or is_due:
            unread.read(saver.age_seconds)
            saver.save(history)
            requests.answer()
            if is_preempted and not is_last:
                return False
        started_step = time.monotonic()
    return True


def compute_gradient(
    engine: TrainingEngine, batches: list[Batch], num_supervised: int, device: torch.device
) -> torch.Tensor:
    """Run the forward and backward passes of a step; `engine.update` ends the last one.

    Args:
        batches: This rank's batches of the step.
        num_supervised: Supervised tokens of all ranks and batches of the step.

    Returns:
        Scalar on the device: the loss, summed over this rank's supervised tokens.
    """
    loss_sum = torch.zeros((), device=device)
    for number, batch in enumerate(batches, start=1):
        loss = supervised_loss(engine.model, batch.to(device))
        engine.backward(loss, num_supervised)
        loss_sum += loss.detach()
        if number < len(batches):
            engine.step()
    return loss_sum


def _model_to_train(
    job: StageJob, processor: Any, image_token_id: int, device: torch.device
) -> Any:
    """Return the model of a stage with its kernels and adapters, before its parts are frozen.

    Args:
        image_token_id: The id of the token of images in its datasets.
    """
    model = _initial_model(job, processor)
    recompute(model, job.stage.gradient_checkpointing)
    use_kernels(model, job.config.engine_of(job.stage).kernels, device)
    trust_image_tokens(model, image_token_id)
    if job.stage.lora is not None:
        add_adapters(model, job.stage.lora, seed=job.config.seed, device=device)
    return model


def _initial_model(job: StageJob, processor: Any) -> Any:
    """Return the model that a stage starts from, before anything in it is changed for training."""
    precision = job.config.engine_of(job.stage).precision
    if job.initial_weights is None:
        return build_model(job.config.model, processor, seed=job.config.seed, precision=precision)
    place = locate(job.initial_weights)
    # An export of this or another run must be complete; other folders have no manifest.
    run = locate(job.config.directory)
    is_of_this_run = place.fs == run.fs and place.path.startswith(f"{run.path}/")
    is_ours = is_of_this_run or find(ExportManifest, place) is not None
    folder = fetch_export(place) if is_ours else job.initial_weights
    return load_model(folder, precision, job.config.model.attn_implementation)


def _resume(
    job: StageJob, engine: TrainingEngine, context: Context
) -> tuple[list[StepRecord], float]:
    """Load the newest checkpoint if there is one.

    Returns:
        The records of all steps so far, and the seconds spent on them.
    """
    restored = restore_checkpoint(locate(job.checkpoints), engine, job)
    if restored is None:
        seed_random_state(job.config.seed, step=0, rank=context.rank)
        return [], 0.0
    if not restored.has_random_state:
        seed_random_state(job.config.seed, step=restored.manifest.step, rank=context.rank)
    if context.rank == 0:
        context.report(restored.history)  # the listener may be new and lack earlier records
    return restored.history, restored.manifest.seconds


def _manifest(
    job: StageJob,
    data: Mixture,
    counts: list[PartCount],
    history: list[StepRecord],
    started: float,
    difference: float,
    measured: Measurement | None,
) -> ExportManifest:
    """Return the manifest of the export of a stage that has started at this time."""
    parts: dict[str, PartFacts] = {
        count.part: PartFacts(num_trained=count.num_trained, num_frozen=count.num_frozen)
        for count in counts
    }
    return ExportManifest(
        stage=job.stage.name,
        fingerprint=job.fingerprint,
        settings=job.settings,
        datasets=dict(zip(job.stage.mixture, job.dataset_fingerprints, strict=True)),
        template=job.config.model.template,
        template_hash=data.template_hash,
        steps=len(history),
        num_tokens=int(sum(record["num_tokens"] for record in history)),
        loss_first=history[0]["loss"],
        loss_last=history[-1]["loss"],
        **speed(history),
        seconds=time.monotonic() - started,
        parts=parts,
        logits_difference=difference,
        measured=measured,
    )
