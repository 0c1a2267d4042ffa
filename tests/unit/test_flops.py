"""Operations against torch's own count of a real step, memory against arithmetic by hand."""

import pytest
import torch
from small_datasets import IMAGE_TOKEN
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from llavamed.config.schema import Engine
from llavamed.config.stages import ModelPart, Stage
from llavamed.data.loading import Batch
from llavamed.data.sample import IGNORE_INDEX
from llavamed.model.flops import Workload, stage_flops, stage_memory
from llavamed.model.freeze import freeze
from llavamed.model.llava import supervised_loss

LENGTH, NUM_SUPERVISED, IMAGE_TOKENS = 96, 40, 16


def shape(hidden_size: int, intermediate_size: int, num_hidden_layers: int) -> dict[str, int]:
    return locals()


@pytest.fixture(scope="module")
def model() -> LlavaForConditionalGeneration:
    """A LLaVA whose matrices cost much more than its attention and its edges, as a real one's."""
    vision = CLIPVisionConfig(
        **shape(96, 384, 12), num_attention_heads=4, image_size=32, patch_size=8
    )
    text = LlamaConfig(
        **shape(128, 352, 6), num_attention_heads=4, num_key_value_heads=2, vocab_size=512
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration(config)


def make_stage(*trainable: ModelPart, gradient_checkpointing: bool = False) -> Stage:
    return Stage.model_validate(
        {
            "name": "align",
            "data": "captions",
            "trainable": trainable,
            "global_batch_size": 1,
            "optimizer": {"lr": 1e-3},
            "gradient_checkpointing": gradient_checkpointing,
        }
    )


def one_sample() -> Batch:
    input_ids = torch.randint(10, 500, (1, LENGTH))
    input_ids[0, 1 : 1 + IMAGE_TOKENS] = IMAGE_TOKEN
    targets = torch.full((1, LENGTH), IGNORE_INDEX)
    targets[0, -NUM_SUPERVISED:] = 7
    return Batch(
        input_ids=input_ids,
        targets=targets,
        position_ids=torch.arange(LENGTH)[None],
        pixel_values=torch.randn(1, 3, 32, 32),
        sample_ids=("sample",),
        num_tokens=LENGTH,
    )


@pytest.mark.parametrize(
    "trainable",
    [
        ("projector",),
        ("language_model",),
        ("projector", "language_model"),
        ("vision_tower", "projector", "language_model"),
    ],
    ids="+".join,
)
def test_operations_of_a_step_are_those_torch_counts(
    model: LlavaForConditionalGeneration, trainable: tuple[ModelPart, ...]
) -> None:
    freeze(model, trainable)
    model.set_attn_implementation("eager")  # on a CPU torch counts no other kernel's operations
    with FlopCounterMode(display=False) as counter:
        supervised_loss(model, one_sample()).backward()
    text = model.config.text_config
    # Eager attention computes what the causal mask hides, too; backward costs twice forward.
    hidden = 3 * 2 * text.num_hidden_layers * text.hidden_size * LENGTH**2
    work = Workload(1.0, LENGTH, NUM_SUPERVISED, LENGTH**2)
    counted = stage_flops(model, make_stage(*trainable), work)
    # Off by the convolution of the patches and by the projector's second matrix, no more.
    assert counted == pytest.approx(counter.get_total_flops() - hidden, rel=0.003)


def test_operations_grow_with_each_part_of_the_work(model: LlavaForConditionalGeneration) -> None:
    stage = make_stage("projector")
    once = stage_flops(model, stage, Workload(1.0, 90.0, 40.0, 8100.0))
    thrice = stage_flops(model, stage, Workload(3.0, 270.0, 120.0, 3 * 8100.0))
    assert thrice == pytest.approx(3 * once)
    assert stage_flops(model, stage, Workload(0.0, 0.0, 0.0, 0.0)) == 0.0


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_memory_of_weights_gradients_and_optimizer(
    model: LlavaForConditionalGeneration, zero_stage: int, precision: str
) -> None:
    engine = Engine.model_validate({"zero_stage": zero_stage, "precision": precision})
    counts = freeze(model, ["projector"])
    trained = 96 * 128 + 128 + 128 * 128 + 128
    number = sum(parameter.numel() for parameter in model.parameters())
    memory = stage_memory(
        model,
        counts,
        stage=make_stage("projector"),
        engine=engine,
        num_workers=4,
        tokens=512,
        supervised=100,
    )
    width = 2 if precision == "bf16" else 4
    moments, copy = 8 * trained, 4 * trained if precision == "bf16" else 0
    assert memory.weights == number * width / (4 if zero_stage == 3 else 1)
    assert memory.gradients == trained * width / (4 if zero_stage >= 2 else 1)
    assert memory.optimizer == (moments + copy) / (4 if zero_stage >= 1 else 1)
    assert memory.logits == 100 * 512 * (width + 4 + 4)  # as computed, in fp32, and the gradient
    parts = (memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.logits)
    assert memory.total == sum(parts) + memory.workspace


def test_what_saves_memory(model: LlavaForConditionalGeneration) -> None:
    counts = freeze(model, ["language_model"])

    def measure(stage: Stage, offload: str = "none") -> tuple[float, float]:
        memory = stage_memory(
            model,
            counts,
            stage=stage,
            engine=Engine.model_validate({"offload_optimizer": offload}),
            num_workers=1,
            tokens=512,
            supervised=100,
        )
        return memory.activations, memory.optimizer

    plain, optimizer = measure(make_stage("language_model"))
    recomputed, _ = measure(make_stage("language_model", gradient_checkpointing=True))
    assert recomputed < plain / 3  # of six layers only one, and the input of each
    assert optimizer > 0.0
    assert measure(make_stage("language_model"), "cpu") == (plain, 0.0)
