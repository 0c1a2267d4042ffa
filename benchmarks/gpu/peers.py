"""Trainers of others for `step.py`, with the same model, samples and batches as ours.

Both train in bfloat16 throughout with fused AdamW, which keeps no float32 copy of the weights as
ours does, and their batches are made by four processes and pinned.
"""

import tempfile
import time
from dataclasses import dataclass
from typing import Any

import torch
from drawn import PADDING, Scale

from llavamed.data.feed.loader import Batch
from llavamed.processor.turns import IGNORE_INDEX


@dataclass(frozen=True)
class Timed:
    """What a trainer has done in its timed steps."""

    lengths: list[int]
    """Tokens of each sample."""
    seconds: float
    first_loss: float
    """The mean over the supervised tokens of the first step of all."""


def hugging_face(scale: Scale, *, rows: int, recompute: bool = False, liger: bool = False) -> Timed:
    """Train with Hugging Face's Trainer, with samples grouped by length, its best order."""
    from transformers import Trainer, TrainingArguments

    data = [{"input_ids": [0] * length} for length in _samples(scale, rows)]
    with tempfile.TemporaryDirectory() as folder:
        shared = _settings(scale, folder, rows, recompute=recompute)
        settings = TrainingArguments(**shared, use_liger_kernel=liger)
        return _timed(scale, Trainer, args=settings, train_dataset=data)


def trl(scale: Scale, *, rows: int) -> Timed:
    """Train with TRL's SFTTrainer, which refuses to pack samples with images."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    data = Dataset.from_list([{"input_ids": [0] * length} for length in _samples(scale, rows)])
    words = Tokenizer(models.WordLevel({"</s>": 0, "<unk>": 1}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            **_settings(scale, folder, rows, recompute=False),
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
        )
        return _timed(
            scale, SFTTrainer, args=settings, train_dataset=data, processing_class=tokenizer
        )


def with_mask(batch: Batch) -> dict[str, torch.Tensor]:
    """Return a batch of padded rows as the arguments of transformers' own loss."""
    lengths = torch.tensor([int((row != PADDING).sum()) for row in batch.input_ids])
    labels = torch.full_like(batch.targets, IGNORE_INDEX)
    labels[:, 1:] = batch.targets[:, :-1]
    return {
        "input_ids": batch.input_ids,
        "labels": labels,
        "attention_mask": (torch.arange(labels.shape[1])[None] < lengths[:, None]).long(),
        "pixel_values": batch.pixel_values,
    }


def _samples(scale: Scale, rows: int) -> list[int]:
    return scale.samples(scale.num_passes * rows)


def _settings(scale: Scale, folder: str, rows: int, *, recompute: bool) -> dict[str, Any]:
    on_gpu = scale.device.type == "cuda"
    return {
        "output_dir": folder,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": scale.passes,
        "max_steps": scale.warm_up + scale.steps,
        "learning_rate": 1e-4,
        "train_sampling_strategy": "group_by_length",
        "remove_unused_columns": False,
        "save_strategy": "no",
        "report_to": [],
        "optim": "adamw_torch_fused",
        "use_cpu": not on_gpu,
        "bf16": False,  # the weights are bfloat16 already
        "gradient_checkpointing": recompute,
        "dataloader_num_workers": 4 if on_gpu else 0,
        "disable_tqdm": True,
        "logging_steps": 1000,
        "logging_first_step": True,
    }


def _timed(scale: Scale, trainer_class: Any, **settings: Any) -> Timed:
    from transformers import TrainerCallback

    model = scale.model()
    masks: list[torch.Tensor] = []
    marks: list[float] = []

    def collate(samples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        return with_mask(scale.batch([[len(sample["input_ids"])] for sample in samples]))

    def note(_model: Any, _args: Any, inputs: dict[str, Any]) -> None:
        masks.append(inputs["attention_mask"])

    class Clock(TrainerCallback):
        def on_step_end(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step in (scale.warm_up, scale.warm_up + scale.steps):
                scale.wait()
                marks.append(time.perf_counter())

    model.register_forward_pre_hook(note, with_kwargs=True)
    trainer = trainer_class(model=model, data_collator=collate, callbacks=[Clock()], **settings)
    trainer.train()
    lengths = scale.timed([mask.sum(1).tolist() for mask in masks])
    timed = [length for one in lengths for length in one]
    first = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    return Timed(timed, marks[1] - marks[0], first)
