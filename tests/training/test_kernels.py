"""Other kernels compute the same loss and gradient, or are refused where they cannot run."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import LlavaForConditionalGeneration

from llavamed.config.engine import Kernels
from llavamed.config.load import override_config
from llavamed.config.run import RunConfig
from llavamed.config.stage import Stage
from llavamed.data.feed.loader import Batch, StageLoader
from llavamed.errors import ConfigError
from llavamed.model.attention import VARLEN, attend_per_sample, keeps_apart
from llavamed.model.kernels import check_liger, use_kernels, use_liger
from llavamed.model.loss import supervised_loss
from llavamed.model.recompute import recompute
from llavamed.run.curriculum import plan_curriculum
from llavamed.run.model_checks import check_language_model
from llavamed.train.job import order_of
from tests.support.training_setup import mixture, small_config, without_inductor
from tests.training.test_attention import IMAGE_TOKEN, LANGUAGE_MODELS, make_llava, pack

CPU = torch.device("cpu")


def rows(*lengths: tuple[int, ...]) -> Batch:
    """Rows of samples of these lengths, all rows as long as each other, with an image in each."""
    total = sum(lengths[0])
    generator = torch.Generator().manual_seed(sum(map(len, lengths)))
    input_ids = torch.randint(3, 120, (len(lengths), total), generator=generator)
    input_ids[:, 1:5] = IMAGE_TOKEN
    positions = [torch.cat([torch.arange(length) for length in row]) for row in lengths]
    return replace(
        pack(),
        input_ids=input_ids,
        supervised=torch.arange(total),
        targets=torch.randint(3, 120, (len(lengths), total), generator=generator),
        position_ids=torch.stack(positions),
        sample_lengths=lengths,
        pixel_values=torch.randn(len(lengths), 3, 8, 8, generator=generator),
        image_sizes=torch.tensor([[8, 8]] * len(lengths)),
    )


def loss_and_gradient(
    model: LlavaForConditionalGeneration, batch: Batch
) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    loss = supervised_loss(model, batch)
    loss.backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return loss.item(), torch.cat(gradients)


def assert_same(found: tuple[float, torch.Tensor], expected: tuple[float, torch.Tensor]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert (found[1] - expected[1]).norm() < 1e-5 * expected[1].norm()


@pytest.mark.parametrize("every", [False, 2, True], ids=["kept", "half recomputed", "recomputed"])
def test_compiled_layers_are_one_graph_for_all_packs_of_a_size(
    every: bool | int, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_inductor(monkeypatch)
    torch._dynamo.reset()
    model = make_llava("llama", num_hidden_layers=10)  # dynamo gives up after 8 graphs of a layer
    attend_per_sample(model)
    recompute(model, every)
    batches = [rows(lengths) for lengths in ((23, 4, 17), (20, 24), (44,), (10, 10, 10, 10, 4))]
    expected = [loss_and_gradient(model, batch) for batch in batches]
    use_kernels(model, Kernels(compile=True), CPU)
    graphs = []
    for batch, alone in zip(batches, expected, strict=True):
        assert_same(loss_and_gradient(model, batch), alone)
        graphs.append(counters["stats"]["unique_graphs"])
    assert len({*graphs}) == 1
    assert graphs[0] > 0


def test_packs_for_compiled_layers_have_one_size(tiny_config: RunConfig) -> None:
    config = small_config(tiny_config)
    stage, data = config.stages[0], mixture(config)
    order = order_of(stage, data, config.seed)
    batches: list[list[Batch]] = []
    for number in (0, stage.pack_tokens):
        loader = StageLoader(data, order, rank=0, world_size=1, packing=True, row_tokens=number)
        batches.append([batch for step in loader.steps() for batch in step])
    free, padded = batches
    assert len({batch.input_ids.shape[1] for batch in free}) > 1
    assert {batch.input_ids.shape[1] for batch in padded} == {stage.pack_tokens}
    for one, other in zip(free, padded, strict=True):
        assert sum(other.sample_lengths[0]) == stage.pack_tokens
        assert other.num_tokens == one.num_tokens
        assert torch.equal(other.supervised, one.supervised)
        assert torch.equal(other.input_ids[:, : one.input_ids.shape[1]], one.input_ids)


@pytest.mark.parametrize("every", [True, 2, 3])
def test_recomputing_every_nth_layer_is_exact_and_repeats_only_those(every: bool | int) -> None:
    model = make_llava("llama", num_hidden_layers=5)
    attend_per_sample(model)
    expected = loss_and_gradient(model, pack())
    recompute(model, every)
    calls: list[int] = []
    for number, layer in enumerate(model.model.language_model.layers):
        layer.mlp.register_forward_pre_hook(lambda *_, at=number: calls.append(at))
    found = loss_and_gradient(model, pack())
    assert found[0] == expected[0]
    assert torch.equal(found[1], expected[1])
    repeated = [number for number in range(5) if calls.count(number) == 2]
    assert repeated == list(range(0, 5, int(every)))
    stage = {"name": "align", "data": "captions", "trainable": ["projector"]}
    stage |= {"global_batch_size": 1, "optimizer": {"lr": 1}, "gradient_checkpointing": every}
    assert Stage.model_validate(stage).recomputed_layers(5) == len(repeated)


def varlen_by_definition(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    key_bounds: torch.Tensor,
    longest: int,
    longest_key: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> torch.Tensor:
    """What the documentation of `varlen_attn` says that its kernel computes, which is for GPUs."""
    assert torch.equal(bounds, key_bounds)
    assert bounds.dtype == torch.int32
    lengths = bounds.diff().tolist()
    assert longest == longest_key == max(lengths)
    assert enable_gqa == (query.shape[1] != key.shape[1])
    left, right = window_size
    pieces = []
    for parts in zip(*(each.split(lengths) for each in (query, key, value)), strict=True):
        q, k, v = (each.transpose(0, 1) for each in parts)
        position = torch.arange(q.shape[1])
        ahead = position[None] - position[:, None]
        seen = (ahead <= right) & ((-ahead <= left) | (left < 0))
        attended = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, scale=scale, enable_gqa=enable_gqa
        )
        pieces.append(attended.transpose(0, 1))
    return torch.cat(pieces)


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_samples_in_one_call_are_those_of_a_call_each(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llavamed.model.attention.varlen_attn", varlen_by_definition)
    model = make_llava(kind, **LANGUAGE_MODELS[kind])
    batches = [pack(), rows((44,), (44,)), rows((23, 4, 17), (30, 14))]
    attend_per_sample(model)
    expected = [loss_and_gradient(model, batch) for batch in batches]
    model.set_attn_implementation("sdpa")
    attend_per_sample(model, varlen=True)
    assert model.config.text_config._attn_implementation == VARLEN
    assert keeps_apart(model)
    for batch, alone in zip(batches, expected, strict=True):
        assert_same(loss_and_gradient(model, batch), alone)


GPU = torch.device("cuda")
"""Where kernels would run; nothing is computed there."""


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("llama", {"attention_dropout": 0.1}, "no dropout of attention, and .*_dropout=0.1; set"),
        ("llama", {"head_dim": 20}, "of a multiple of 8 up to 256 features, .* model have 20; set"),
        ("llama", {"head_dim": 264}, "multiple of 8 up to 256 features, .* model have 264; set it"),
        ("biogpt", {}, "the attention of language models of the kind biogpt cannot be exchanged;"),
    ],
)
def test_one_call_for_all_samples_is_refused_where_it_would_not_be_made(
    kind: str, settings: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"engine.kernels.varlen=true: .*{message}"):
        use_kernels(make_llava(kind, **settings), Kernels(varlen=True), GPU)


@pytest.mark.parametrize("every", [False, True, 2])
def test_a_frozen_tower_has_no_gradient_and_recomputes_nothing(every: bool | int) -> None:
    model = make_llava("llama").requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    attend_per_sample(model)
    recompute(model, every)
    tower = model.model.vision_tower
    outputs: list[torch.Tensor] = []
    for module in tower.modules():
        if type(module).__name__ == "CLIPMLP":
            module.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    loss_and_gradient(model, pack())
    assert len(outputs) == tower.config.num_hidden_layers
    assert not any(output.requires_grad for output in outputs)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "phi3", "gemma3_text"])
def test_liger_takes_norms_and_feed_forward_layers_and_no_names(kind: str) -> None:
    model = make_llava(kind, **LANGUAGE_MODELS[kind])
    use_liger(model.model.language_model)
    other = make_llava(kind, **LANGUAGE_MODELS[kind])
    assert not any("Liger" in type(each).__name__ for each in other.modules())
    assert [*model.state_dict()] == [*other.state_dict()]
    for layer in model.model.language_model.layers:
        assert layer.mlp._get_name().startswith("Liger")
        assert layer.input_layernorm._get_name().startswith("Liger")
    tower = [each._get_name() for each in model.model.vision_tower.modules()]
    assert not any(name.startswith("Liger") for name in tower)


def test_liger_is_refused_where_it_is_not_installed_or_does_not_know_the_model(
    tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("biogpt", "nemotron"):
        with pytest.raises(
            ConfigError, match=f"liger=true: is for .* llama, .* this one is {kind};"
        ):
            check_liger(SimpleNamespace(model_type=kind))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.monkey_patch", None)
    config = small_config(tiny_config, "scaling.use_gpu=true", "engine.kernels.liger=true")
    with pytest.raises(ConfigError, match=r"liger-kernel, which is not installed; install llavame"):
        check_language_model(config, plan_curriculum(config))
    config = override_config(config, ["engine.kernels.liger=false"])
    check_language_model(config, plan_curriculum(config))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.language_model.config.attention_dropout=0.1", "varlen=true: .*_dropout=0.1; set"),
        ("model.language_model.config.head_dim=20", "varlen=true: .* language model have 20; set"),
        ("model.language_model.config.hidden_act=relu", "liger=true: .* model has relu; set"),
    ],
)
def test_kernels_that_do_not_fit_the_model_are_refused_before_a_gpu_waits(
    tiny_config: RunConfig, override: str, message: str
) -> None:
    kernels = "engine.kernels={liger: true, varlen: true, compile: true}"
    on_gpu = ("scaling.use_gpu=true", "engine.precision=bf16", kernels)
    config = small_config(tiny_config, *on_gpu)
    check_language_model(config, plan_curriculum(config))
    config = override_config(config, [override])
    with pytest.raises(ConfigError, match=message):
        check_language_model(config, plan_curriculum(config))


def test_liger_is_refused_where_it_would_compute_another_activation() -> None:
    decoder = make_llava("llama", hidden_act="relu").model.language_model
    message = "liger=true: its feed-forward layer computes si.*, and the language model has relu;"
    with pytest.raises(ConfigError, match=message):
        use_liger(decoder)


@pytest.mark.parametrize("name", ["liger", "varlen"])
def test_kernels_for_gpus_are_refused_on_a_cpu(tiny_config: RunConfig, name: str) -> None:
    message = f"engine.kernels.{name}=true: its kernels are for NVIDIA GPUs, and this .* on cpu;"
    with pytest.raises(ConfigError, match=message):
        use_kernels(make_llava("llama"), Kernels.model_validate({name: True}), CPU)


@pytest.mark.parametrize(
    ("name", "device", "compilers"),
    [("compile", CPU, r"g\+\+, clang\+\+"), ("liger", GPU, "gcc, clang")],
)
def test_compiling_without_a_compiler_is_refused(
    name: str, device: torch.device, compilers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    message = f"{name}=true: compiles kernels when .* none of the compilers {compilers}; install"
    with pytest.raises(ConfigError, match=message):
        use_kernels(make_llava("llama"), Kernels.model_validate({name: True}), device)


def test_compiling_is_refused_where_no_layers_are_found() -> None:
    model = make_llava("llama")
    model.model.language_model.layers = torch.nn.ModuleList()
    with pytest.raises(ConfigError, match=r"compile=true: finds no layers in .* kind llama; set"):
        use_kernels(model, Kernels(compile=True), CPU)


def test_no_attention_of_a_training_process_uses_cudnn() -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        use_kernels(make_llava("llama"), Kernels(), torch.device("cpu"))
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
