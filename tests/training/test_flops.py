"""Operations against torch's own count of a real step, memory against arithmetic by hand."""

import copy
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from llavamed.config.engine import Engine
from llavamed.config.model import ModelPart
from llavamed.config.stage import Recomputed, Stage
from llavamed.data.feed.loader import Batch
from llavamed.model.adapters import add_adapters
from llavamed.model.attention import Samples, attend_per_sample
from llavamed.model.cost.flops import Workload, stage_flops
from llavamed.model.cost.memory import NF4_BYTES, Memory, stage_memory
from llavamed.model.freeze import freeze
from llavamed.model.loss import supervised_loss
from llavamed.processor.turns import IGNORE_INDEX
from tests.support.small_datasets import IMAGE_TOKEN
from tests.training.test_attention import make_llava

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
        **shape(128, 384, 6), num_attention_heads=4, num_key_value_heads=2, vocab_size=512
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration(config)


def make_stage(
    *trainable: ModelPart, gradient_checkpointing: Recomputed = False, **settings: Any
) -> Stage:
    return Stage.model_validate(
        {
            "name": "align",
            "data": "captions",
            "trainable": trainable,
            "max_tokens": 512,
            "global_batch_size": 1,
            "optimizer": {"lr": 1e-3},
            "gradient_checkpointing": gradient_checkpointing,
        }
        | settings
    )


def one_sample() -> Batch:
    input_ids = torch.randint(10, 500, (1, LENGTH))
    input_ids[0, 1 : 1 + IMAGE_TOKENS] = IMAGE_TOKEN
    targets = torch.full((1, LENGTH), IGNORE_INDEX)
    targets[0, -NUM_SUPERVISED:] = 7
    return Batch(
        input_ids=input_ids,
        targets=targets,
        supervised=torch.arange(LENGTH - NUM_SUPERVISED, LENGTH),
        position_ids=torch.arange(LENGTH)[None],
        sample_lengths=((LENGTH,),),
        pixel_values=torch.randn(1, 3, 32, 32),
        image_sizes=torch.tensor([[32, 32]]),
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
        longest=512,
        supervised=100 / 512,
        tiles_per_token=0.0,
    )
    width = 2 if precision == "bf16" else 4
    moments, copy = 8 * trained, 4 * trained if precision == "bf16" else 0
    parts = memory.counted
    assert parts.weights == number * width / (4 if zero_stage == 3 else 1)
    assert parts.gradients == trained * width / (4 if zero_stage >= 2 else 1)
    assert parts.optimizer == (moments + copy) / (4 if zero_stage >= 1 else 1)
    assert parts.logits == 100 * 512 * (width + 4 + 4)  # as computed, in fp32, and the gradient
    total = parts.weights + parts.gradients + parts.optimizer + parts.activations + parts.logits
    assert memory.total == total + memory.workspace


def test_what_saves_memory(model: LlavaForConditionalGeneration) -> None:
    counts = freeze(model, ["language_model"])

    def measure(stage: Stage, offload: str = "none") -> tuple[float, float]:
        memory = stage_memory(
            model,
            counts,
            stage=stage,
            engine=Engine.model_validate({"offload_optimizer": offload}),
            num_workers=1,
            longest=512,
            supervised=100 / 512,
            tiles_per_token=0.0,
        )
        return memory.counted.activations, memory.counted.optimizer

    plain, optimizer = measure(make_stage("language_model"))
    recomputed, _ = measure(make_stage("language_model", gradient_checkpointing=True))
    assert recomputed < plain / 3  # of six layers only one, and the input of each
    half, _ = measure(make_stage("language_model", gradient_checkpointing=2))
    assert half == pytest.approx((plain + recomputed) / 2 + plain / 12)  # one layer is both
    assert optimizer > 0.0
    assert measure(make_stage("language_model"), "cpu") == (plain, 0.0)


def test_memory_of_the_tower_grows_with_the_tiles_and_with_the_layers_that_train(
    model: LlavaForConditionalGeneration,
) -> None:
    def activations(tiles: float, *parts: ModelPart, **settings: Any) -> float:
        return stage_memory(
            model,
            freeze(model, parts),
            stage=make_stage(*parts, **settings),
            engine=Engine(),
            num_workers=1,
            longest=512,
            supervised=100 / 512,
            tiles_per_token=tiles / 512,
        ).counted.activations

    def of_tiles(tiles: float, *parts: ModelPart, **settings: Any) -> float:
        return activations(tiles, *parts, **settings) - activations(0, *parts, **settings)

    frozen, trained = of_tiles(1, "projector"), of_tiles(1, "vision_tower")
    assert of_tiles(5, "projector") == pytest.approx(5 * frozen)
    assert trained == pytest.approx(model.config.vision_config.num_hidden_layers * frozen)
    recomputed = of_tiles(1, "vision_tower", gradient_checkpointing=True)
    assert frozen < recomputed < trained


BOTH: tuple[ModelPart, ModelPart] = ("projector", "language_model")
LINEARS = 6 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 384)
ADAPTERS = 6 * 8 * (2 * (128 + 128) + 2 * (128 + 64) + 3 * (128 + 384))
PROJECTOR = 96 * 128 + 128 + 128 * 128 + 128


def with_adapters(model: LlavaForConditionalGeneration, stage: Stage) -> Any:
    adapted = copy.deepcopy(model)
    assert stage.lora is not None
    add_adapters(adapted, stage.lora, seed=0, device=torch.device("cpu"))
    return adapted


def test_operations_of_a_step_with_adapters_are_those_torch_counts(
    model: LlavaForConditionalGeneration,
) -> None:
    """Frozen matrices cost 4 operations a weight and token, and adapters 6."""
    stage = make_stage(*BOTH, lora={"r": 8})
    adapted = with_adapters(model, stage)
    freeze(adapted, stage.trainable)
    adapted.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        supervised_loss(adapted, one_sample()).backward()
    text = model.config.text_config
    hidden = 3 * 2 * text.num_hidden_layers * text.hidden_size * LENGTH**2
    work = Workload(1.0, LENGTH, NUM_SUPERVISED, LENGTH**2)
    counted = stage_flops(adapted, stage, work)
    assert counted == pytest.approx(counter.get_total_flops() - hidden, rel=0.003)
    whole = stage_flops(model, make_stage(*BOTH), work)
    head = text.vocab_size * text.hidden_size
    less = 2 * LINEARS * LENGTH + 2 * head * NUM_SUPERVISED - 6 * ADAPTERS * LENGTH
    assert whole - counted == pytest.approx(less)


def memory_of(model: Any, stage: Stage) -> Memory:
    return stage_memory(
        model,
        freeze(model, stage.trainable),
        stage=stage,
        engine=Engine(),
        num_workers=1,
        longest=512,
        supervised=100 / 512,
        tiles_per_token=0.0,
    )


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_memory_of_adapters_on_whole_and_on_four_bit_weights(
    model: LlavaForConditionalGeneration, quantize: str, name: str
) -> None:
    lora = {"r": 8, "quantize": quantize}
    stage = make_stage(*BOTH, lora=lora, optimizer={"lr": 1e-3, "name": name})
    # A plan counts on a model that is not quantised, as here.
    adapted = with_adapters(model, make_stage(*BOTH, lora={"r": 8}))
    number = sum(parameter.numel() for parameter in adapted.parameters())
    memory = memory_of(adapted, stage).counted
    quantized = LINEARS if quantize == "nf4" else 0
    assert memory.weights == 2 * (number - quantized) + quantized * NF4_BYTES
    assert memory.gradients == 2 * (ADAPTERS + PROJECTOR)
    moments = 2 if name == "adamw_8bit" else 8
    assert memory.optimizer == (moments + 4) * (ADAPTERS + PROJECTOR)


def test_four_bits_take_the_bytes_that_are_counted(model: LlavaForConditionalGeneration) -> None:
    pytest.importorskip("bitsandbytes", reason="four bits are an extra")
    stage = make_stage(*BOTH, lora={"r": 8, "quantize": "nf4"})
    bf16 = copy.deepcopy(model).to(torch.bfloat16)
    adapted = with_adapters(bf16, stage)
    taken = 0.0
    for parameter in adapted.parameters():
        taken += parameter.numel() * parameter.element_size()
        if hasattr(parameter, "quant_state"):
            scales = parameter.quant_state
            taken += scales.absmax.numel() + 4 * scales.state2.absmax.numel()
    assert memory_of(adapted, stage).counted.weights == pytest.approx(taken, rel=1e-3)


def test_dropout_keeps_the_inputs_of_adapters(model: LlavaForConditionalGeneration) -> None:
    plain = make_stage(*BOTH, lora={"r": 8})
    dropping = make_stage(*BOTH, lora={"r": 8, "dropout": 0.1})
    adapted = with_adapters(model, plain)
    kept = memory_of(adapted, plain).counted.activations
    more = memory_of(adapted, dropping).counted.activations - kept
    inputs = 6 * (6 * 128 + 384)  # a layer's seven matrices, of which one reads the wide vector
    assert more == 512 * inputs * (2 + 1)
    between = 6 * 7 * 8 * 2
    whole = memory_of(model, make_stage(*BOTH)).counted.activations
    norms = 6 * 2 * 128 * 2  # what trained norms scale
    assert kept == whole + 512 * (between - norms)


@pytest.mark.parametrize(("num_keys", "size"), [(2, 32), (8, 32), (4, 64)])
@pytest.mark.parametrize("trains", ["projector", "language_model", "adapters"])
def test_activations_are_what_layers_keep_for_the_backward_pass(
    num_keys: int, size: int, trains: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more layer keeps as much more as is counted, but for sums of rows."""
    # ZeRO-3 replaces it for the whole process, so also for later tests.
    monkeypatch.setattr(torch.nn.functional, "linear", torch._C._nn.linear)
    lora = {"r": 1} if trains == "adapters" else None
    parts: Any = BOTH if trains == "adapters" else (trains,)
    kept, counted = [], []
    for num_layers in (2, 3):
        model: Any = make_llava(
            "llama",
            hidden_size=256,
            intermediate_size=704,
            num_attention_heads=8,
            num_key_value_heads=num_keys,
            head_dim=size,
            num_hidden_layers=num_layers,
        ).to(torch.bfloat16)
        stage = make_stage(*parts, lora=lora)
        if stage.lora is not None:
            add_adapters(model, stage.lora, seed=0, device=torch.device("cpu"))
        counts = freeze(model, stage.trainable)
        attend_per_sample(model)
        kept.append(bytes_kept(model.model.language_model, 512))
        memory = stage_memory(
            model,
            counts,
            stage=stage,
            engine=Engine(precision="bf16"),
            num_workers=1,
            longest=512,
            supervised=0.5,
            tiles_per_token=0.0,
        )
        counted.append(memory.counted.activations)
    assert counted[1] - counted[0] == pytest.approx(kept[1] - kept[0], rel=0.02)


def bytes_kept(decoder: Any, num_tokens: int) -> int:
    """The bytes that a forward pass keeps for the backward pass, besides weights."""
    weights = {each.untyped_storage().data_ptr() for each in decoder.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    inputs = torch.zeros(1, num_tokens, 256, dtype=torch.bfloat16, requires_grad=True)
    lengths = ((num_tokens // 2, num_tokens - num_tokens // 2),)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        decoder(inputs_embeds=inputs, use_cache=False, samples=Samples(lengths, None))
    return sum(storage.nbytes() for storage in kept.values())
