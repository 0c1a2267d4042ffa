"""Adapters learn beside a frozen language model and end as plain weights that do the same."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from llavamed.config.run import RunConfig
from llavamed.errors import ConfigError
from llavamed.model.adapters import adapted_layers, add_adapters, merge_adapters
from llavamed.model.freeze import freeze, part_of
from llavamed.model.llava import build_model
from llavamed.model.loss import supervised_loss
from llavamed.model.quantize import dequantized
from llavamed.processor.turns import IGNORE_INDEX
from llavamed.run.plan import plan_run
from tests.support.training_setup import (
    assert_same_weights,
    exported_weights,
    joined,
    make_job,
    processor_of,
    run_stage,
    small_config,
    step_batches,
    weights_as_exported,
)

R = 4
CPU = torch.device("cpu")
TEXT = "num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 2, vocab_size: 320"
LORA = (
    "stages.align.trainable=[projector, language_model]",
    "stages.align.optimizer={lr: 1e-2, weight_decay: 0.01}",
    f"stages.align.lora={{r: {R}, alpha: 12}}",
)
NF4 = "stages.align.lora.quantize=nf4"
LAYER_INPUTS_AND_OUTPUTS = 4 * (64 + 64) + 3 * (64 + 128)
NUM_ADAPTERS = 2 * R * LAYER_INPUTS_AND_OUTPUTS
PROJECTOR = 16 * 64 + 64 + 64 * 64 + 64
SETTINGS = [
    pytest.param((), id="zero-2"),
    pytest.param(("engine.zero_stage=3", "stages.align.max_steps=3"), id="zero-3"),
    pytest.param(("engine.precision=bf16",), id="bf16"),
    pytest.param(("stages.align.lora.dropout=0.3",), id="dropout"),
    pytest.param((NF4,), id="nf4"),
    pytest.param((NF4, "engine.precision=bf16", "engine.zero_stage=0"), id="nf4-bf16"),
]


def wide_config(config: RunConfig, *overrides: str) -> RunConfig:
    """With adapters, on rows as wide as a block of four-bit weights."""
    text = f"{{model_type: llama, hidden_size: 64, intermediate_size: 128, {TEXT}}}"
    return small_config(
        config,
        *LORA,
        f"model.language_model.config={text}",
        f"data.directory={config.storage}/wide-datasets",
        *overrides,
    )


def fresh(config: RunConfig, precision: str = "fp32") -> LlavaForConditionalGeneration:
    return build_model(config.model, processor_of(config), seed=0, precision=precision)


def adapted(config: RunConfig, *, seed: int = 0) -> LlavaForConditionalGeneration:
    """With adapters that do something: both their halves are random."""
    if config.stages[0].lora.quantize == "nf4":
        pytest.importorskip("bitsandbytes", reason="four bits are an extra")
    model = fresh(config)
    add_adapters(model, config.stages[0].lora, seed=seed, device=CPU)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture(scope="module")
def config(tiny_config: RunConfig) -> RunConfig:
    return wide_config(tiny_config)


def test_what_learns_is_the_adapters_and_the_projector(config: RunConfig) -> None:
    model = adapted(config)
    counts = {count.part: count for count in freeze(model, config.stages[0].trainable)}
    assert counts["language_model"].num_trained == NUM_ADAPTERS
    assert counts["projector"].num_trained == PROJECTOR
    assert counts["vision_tower"].num_trained == 0
    supervised_loss(model, step_batches(config)[0][0]).backward()
    for name, parameter in model.named_parameters():
        learns = part_of(name) == "projector" or ".lora_" in name
        assert (parameter.requires_grad, parameter.grad is not None) == (learns, learns), name


def test_a_plan_counts_what_learns(tiny_config: RunConfig) -> None:
    declared = "data.datasets.captions.declared={num_samples: 99, mean_text_tokens: 9, "
    stages = plan_run(
        wide_config(
            tiny_config,
            f"data.directory={tiny_config.storage}/none",
            *(
                f"{declared.replace('captions', name)}mean_supervised_tokens: 5}}"
                for name in tiny_config.data.datasets
            ),
        ),
        accelerator="A100",
    )
    trained = [{part.part: part.num_trained for part in stage.parts} for stage in stages]
    assert trained[0] == {"language_model": NUM_ADAPTERS, "projector": PROJECTOR, "vision_tower": 0}
    assert trained[1]["language_model"] == sum(
        parameter.numel()
        for name, parameter in fresh(wide_config(tiny_config)).named_parameters()
        if part_of(name) == "language_model"
    )


def test_new_adapters_change_nothing_and_depend_on_the_seed_alone(config: RunConfig) -> None:
    batch = step_batches(config)[0][0]
    plain, first, again, other = (fresh(config) for _ in range(4))
    for model, seed in ((first, 1), (again, 1), (other, 2)):
        torch.rand(seed)  # wherever the caller's stream of numbers stands
        add_adapters(model, config.stages[0].lora, seed=seed, device=CPU)
    assert torch.equal(supervised_loss(plain, batch), supervised_loss(first, batch))
    assert_same_weights(first.state_dict(), again.state_dict())
    name = next(name for name in first.state_dict() if ".lora_A." in name)
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("[]", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("[q_proj, mlp.up_proj]", {"q_proj", "up_proj"}),
    ],
    ids=["all", "some"],
)
def test_adapters_are_where_they_are_asked_for(
    config: RunConfig, targets: str, expected: set[str]
) -> None:
    chosen = wide_config(config, f"stages.align.lora.target_modules={targets}")
    names = adapted_layers(adapted(chosen))
    assert {name.rpartition(".")[2] for name in names} == expected
    assert len(names) == 2 * len(expected)
    assert {part_of(name) for name in names} == {"language_model"}


def test_a_target_that_is_no_linear_layer_is_refused(config: RunConfig) -> None:
    chosen = wide_config(config, "stages.align.lora.target_modules=[q_proj, lm_head]")
    message = r"lora.target_modules=lm_head: the language model has no .* down_proj, gate_proj, k"
    with pytest.raises(ConfigError, match=message):
        add_adapters(fresh(config), chosen.stages[0].lora, seed=0, device=CPU)


@pytest.mark.parametrize("override", ["seed=0", NF4], ids=["lora", "qlora"])
def test_packs_give_the_loss_and_gradients_of_single_samples(
    config: RunConfig, override: str
) -> None:
    chosen = wide_config(config, override)
    model = adapted(chosen)
    freeze(model, chosen.stages[0].trainable)
    batches = step_batches(chosen)[0]
    found = []
    for made in (batches, [joined(batches)]):
        model.zero_grad()
        losses = [supervised_loss(model, batch) for batch in made]
        torch.stack(losses).sum().backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        found.append((sum(loss.item() for loss in losses), torch.cat(gradients)))
    assert sum(int((batch.targets != IGNORE_INDEX).sum()) for batch in batches) > 100
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-6)
    assert (found[1][1] - found[0][1]).norm() < 1e-6 * found[0][1].norm()


def test_merged_weights_are_those_of_peft(config: RunConfig) -> None:
    model, plain = adapted(config), fresh(config)
    merged = merge_adapters(model, dict(model.state_dict()))
    for name, layer in adapted_layers(model).items():
        low, high = (getattr(layer, f"lora_{half}")["default"].weight for half in "AB")
        expected = plain.state_dict()[f"{name}.weight"] + 12 / R * (high @ low)
        torch.testing.assert_close(merged[f"{name}.weight"], expected, rtol=0.0, atol=1e-6)
    theirs = copy.deepcopy(model)
    for name, layer in adapted_layers(theirs).items():
        layer.merge()
        torch.testing.assert_close(merged[f"{name}.weight"], layer.base_layer.weight.data)
    kept = {name for name in merged if name.removesuffix(".weight") not in adapted_layers(model)}
    assert merged.keys() == plain.state_dict().keys()
    assert all(torch.equal(merged[name], plain.state_dict()[name]) for name in kept)


@pytest.mark.parametrize("override", ["seed=0", NF4], ids=["lora", "qlora"])
def test_a_merged_model_computes_what_the_adapted_one_does(
    config: RunConfig, override: str
) -> None:
    chosen = wide_config(config, override)
    model, plain = adapted(chosen), fresh(chosen)
    batch = step_batches(chosen)[0][0]
    before = supervised_loss(plain, batch).item()
    expected = supervised_loss(model, batch).item()
    plain.load_state_dict(merge_adapters(model, dict(model.state_dict())))
    assert abs(before - expected) > 1e-3 * expected
    assert supervised_loss(plain, batch).item() == pytest.approx(expected, rel=1e-5)


def test_four_bits_are_near_what_they_stand_for_and_count_as_as_many(config: RunConfig) -> None:
    model = adapted(wide_config(config, NF4))
    plain = fresh(config)
    for name, layer in adapted_layers(model).items():
        weight = plain.state_dict()[f"{name}.weight"]
        error = (dequantized(layer.base_layer) - weight).abs().max() / weight.abs().max()
        assert 0.0 < error < 0.17  # half the widest gap between NF4's values, and the scale's own
        assert layer.base_layer.weight.numel() * 2 == weight.numel()
    counts = freeze(model, ["projector", "language_model"])
    numbers = {count.part: count.num_frozen for count in counts}
    assert numbers == {count.part: count.num_frozen for count in freeze(plain, [])} | {
        "projector": 0
    }


def test_rows_that_are_no_whole_blocks_are_not_quantised(tiny_config: RunConfig) -> None:
    pytest.importorskip("bitsandbytes", reason="four bits are an extra")
    config = small_config(tiny_config, *LORA, NF4)
    message = r"lora.quantize=nf4: the layer layers.0.self_attn.q_proj has 16 inputs, not .* of 64"
    with pytest.raises(ConfigError, match=message):
        add_adapters(fresh(config), config.stages[0].lora, seed=0, device=CPU)


@pytest.mark.parametrize("overrides", SETTINGS)
def test_a_stage_learns_resumes_bit_for_bit_and_exports_plain_weights(
    tiny_config: RunConfig, overrides: tuple[str, ...]
) -> None:
    if NF4 in overrides:
        pytest.importorskip("bitsandbytes", reason="four bits are an extra")
    name = f"name=lora-{'-'.join(part.partition('=')[2] for part in overrides)}x"
    job = make_job(wide_config(tiny_config, *overrides, name))
    manifest = run_stage(job)
    losses = [record["loss"] for record in manifest.history]
    assert manifest.parts["language_model"].num_trained == NUM_ADAPTERS
    assert losses[-1] < losses[0] - 0.1
    is_rough = NF4 in overrides or "engine.precision=bf16" in overrides
    assert manifest.logits_difference < (0.02 if is_rough else 1e-5)

    again = replace(job, export=f"{job.export}-again")
    told = run_stage(again).history
    assert told[:2] == manifest.history[:2]  # from a checkpoint, with the times of the first run
    weights = exported_weights(job)
    assert_same_weights(exported_weights(again), weights)
    for file in Path(job.checkpoints).rglob("*model_states.pt"):
        saved = torch.load(file, weights_only=False)["module"]
        assert all(".lora_" in key or part_of(key) == "projector" for key in saved)

    precision = job.config.engine.precision
    _, report = LlavaForConditionalGeneration.from_pretrained(
        job.export, output_loading_info=True, dtype=torch.float32
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    before = weights_as_exported(fresh(job.config, precision), job.config)
    changed = {key for key, weight in weights.items() if not torch.equal(weight, before[key])}
    linear = {key for key in weights if "language_model" in key and "_proj." in key}
    assert changed == linear | {key for key in weights if part_of(key) == "projector"}
