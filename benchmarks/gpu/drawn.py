"""The sizes, the model and the batches of `step.py`: random weights and drawn lengths.

Nothing is read from a disk or a network. The lengths are those of LLaVA-Med's stages, so that
packing and padding have the work that they have in training.
"""

import resource
from typing import Any

import numpy as np
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from llavamed.config.stage import Stage
from llavamed.data.feed.loader import Batch, supervised_columns
from llavamed.data.feed.packing import fill_packs
from llavamed.model.cost.flops import Workload, accelerator_name
from llavamed.model.freeze import freeze
from llavamed.processor.turns import IGNORE_INDEX

PADDING, IMAGE_TOKEN = 0, 3
TEXT = {"align": (150, 0.7), "instruct": (400, 0.45)}
"""Mean tokens of a sample's text and the deviation of their logarithm, as in LLaVA-Med's stages."""
TRAINABLE = {"align": ["projector"], "instruct": ["projector", "language_model"]}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
SMALLER = {"hidden_size": 2560, "intermediate_size": 6912, "num_attention_heads": 20}
"""A language model of 2.7B weights."""
WHOLE = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
"""A language model of 7B weights."""
ROOM_TO_TRAIN_7B = 130e9
"""Bytes of a GPU that trains all of 7B weights; their optimizer takes 108 GB."""


class Scale:
    """The sizes of a run."""

    def __init__(self, stage: str, *, is_tiny: bool) -> None:
        self.stage = stage
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.card = torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU"
        self.accelerator = accelerator_name(self.card) or self.card
        self.shape = TINY if is_tiny else WHOLE if stage == "align" or self._is_large() else SMALLER
        self.layers = 2 if is_tiny else 32
        self.vocabulary = 512 if is_tiny else 32064
        self.image, self.patch = (28, 14) if is_tiny else (224, 14)
        self.tower_layers = 2 if is_tiny else 24
        self.tower_width = 32 if is_tiny else 1024
        self.pack = 256 if is_tiny else 4096
        self.padded_rows = 4 if is_tiny else 8
        # The language model's optimizer reads and writes 28 bytes a weight, so a step of it has
        # several passes, though fewer than the 14 of LLaVA-Med's step on one GPU.
        self.passes = 4 if stage == "instruct" else 1
        few, many = ((2, 5), (3, 10)) if not is_tiny else ((1, 2), (1, 2))
        self.warm_up, self.steps = few if stage == "instruct" else many
        self.text = (20, 0.7) if is_tiny else TEXT[stage]
        self.image_tokens = (self.image // self.patch) ** 2
        # On one GPU ZeRO partitions nothing, and its flat gradients take 4 bytes a weight more.
        self.zero_stage = 2 if stage == "align" else 0

    def _is_large(self) -> bool:
        on_gpu = self.device.type == "cuda"
        return on_gpu and torch.cuda.get_device_properties(0).total_memory >= ROOM_TO_TRAIN_7B

    def model(self, device: torch.device | None = None) -> LlavaForConditionalGeneration:
        """Return a LLaVA made on a device, the run's if None, the same in every process."""
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
        with device or self.device:
            model = LlavaForConditionalGeneration._from_config(config, dtype=self.dtype)
        freeze(model, TRAINABLE[self.stage])
        return model.train()

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def most_bytes(self) -> int:
        """Return the most bytes of the GPU's tensors, or of this process if there is no GPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def samples(self, number: int) -> list[int]:
        """Return lengths of samples with one image each, the same in every process."""
        mean, deviation = self.text
        random = np.random.default_rng(0)
        text = random.lognormal(np.log(mean) - deviation**2 / 2, deviation, number)
        most = self.pack - self.image_tokens
        return [self.image_tokens + int(np.clip(length, 8, most)) for length in text]

    def packs(self) -> list[list[int]]:
        """Return the lengths of the samples of each pack of an order, as training fills them."""
        lengths = np.array(self.samples(1000))
        packs = fill_packs(np.arange(len(lengths)), lengths, self.pack)
        return [lengths[places].tolist() for places in packs]

    def rows(self) -> list[list[int]]:
        """Return the lengths of the samples of padded passes."""
        lengths = self.samples(1000)
        return [lengths[at : at + self.padded_rows] for at in range(0, 1000, self.padded_rows)]

    def batch(self, rows: list[list[int]], row_tokens: int = 0) -> Batch:
        """Return random tokens of samples of these lengths on the CPU, each row one or a pack.

        Args:
            rows: The lengths of the samples of each row.
            row_tokens: Tokens that rows have at least.
        """
        random = np.random.default_rng(sum(map(sum, rows)))
        longest = max(row_tokens, *map(sum, rows))
        input_ids = np.full((len(rows), longest), PADDING)
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
        pixels = random.standard_normal((images, 3, self.image, self.image), dtype=np.float32)
        whole = [(*row[:-1], longest - sum(row[:-1])) for row in rows]
        return Batch(
            input_ids=torch.from_numpy(input_ids),
            targets=torch.from_numpy(targets),
            supervised=torch.from_numpy(supervised_columns(targets)),
            position_ids=torch.from_numpy(position_ids),
            sample_lengths=tuple(whole),
            pixel_values=torch.from_numpy(pixels).to(self.dtype),
            image_sizes=torch.full((images, 2), self.image),
            sample_ids=(),
            num_tokens=sum(map(sum, rows)),
        )

    def same(self, rows: list[list[int]]) -> Batch:
        """Return a batch whose samples are the same however they are laid out in rows."""
        batch = self.batch(rows)
        for row, lengths in enumerate(rows):
            start = 0
            for length in lengths:
                text, stop = start + self.image_tokens, start + length
                tokens = torch.arange(stop - text) % (self.vocabulary - 4)
                batch.input_ids[row, text:stop] = 4 + tokens
                batch.targets[row, text : stop - 1] = batch.input_ids[row, text + 1 : stop]
                start = stop
        batch.pixel_values.fill_(0.5)
        return batch

    def work(self, lengths: list[int]) -> Workload:
        """Return what these samples are to the model."""
        supervised = sum(length - self.image_tokens - 1 for length in lengths)
        squares = sum(length**2 for length in lengths)
        return Workload(len(lengths), sum(lengths), supervised, squares)

    @property
    def num_passes(self) -> int:
        """Forward passes of a case."""
        return (self.warm_up + self.steps) * self.passes

    def timed(self, passes: list[list[int]]) -> list[list[int]]:
        """Return those of a case's passes that are timed."""
        return passes[self.warm_up * self.passes : self.num_passes]

    def stage_config(self, **settings: Any) -> Stage:
        """Return the stage of a case."""
        base = {"name": self.stage, "data": "drawn", "trainable": TRAINABLE[self.stage]}
        size = {"global_batch_size": self.passes, "optimizer": {"lr": 1e-4}}
        return Stage.model_validate(base | size | settings)
