"""Published image encoders keep their weights, whoever saved them and at whatever image size."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention
from transformers import (
    AutoConfig,
    AutoModel,
    BitImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    ViTImageProcessorPil,
)

from llavamed.config.load import override_config
from llavamed.config.model import UNFIT_TOWERS
from llavamed.config.run import RunConfig
from llavamed.errors import CheckpointError, ConfigError
from llavamed.model.llava import build_model
from llavamed.model.positions import at_image_size, resample_positions
from llavamed.processor.build import build_processor, image_settings, num_image_tokens
from llavamed.processor.pretrained import part_config
from llavamed.processor.tower import CLIP_MEAN, IMAGENET_MEAN, tower_of

SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
WITH_TABLE = ("clip_vision_model", "siglip_vision_model", "vit", "dinov2", "dinov2_with_registers")


def tower_model(kind: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    return AutoModel.from_config(AutoConfig.for_model(**{"model_type": kind} | SHAPE | changes))


def with_tower(config: RunConfig, folder: Path, **more: Any) -> RunConfig:
    tower = json.dumps({"weights": str(folder)} | more)
    return override_config(config, [f"model.vision_tower={tower}"])


@pytest.mark.parametrize("kind", WITH_TABLE)
@pytest.mark.parametrize("size", [16, 48])
def test_a_tower_at_another_size_is_what_transformers_makes_of_it(kind: str, size: int) -> None:
    """Its `interpolate_pos_encoding` resamples the table at each call, and we resample it once."""
    tower = tower_model(kind).eval()
    pixels = torch.rand(1, 3, size, size)
    automatic = {} if kind.startswith("dinov2") else {"interpolate_pos_encoding": True}
    expected = tower(pixels, output_hidden_states=True, **automatic).hidden_states
    found = at_image_size(tower, size).eval()(pixels, output_hidden_states=True).hidden_states
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@settings(max_examples=25, deadline=None)
@given(edge=st.integers(1, 9), wanted=st.integers(1, 9), kept=st.integers(0, 1))
def test_a_resampled_table_keeps_its_class_token_and_a_constant(
    edge: int, wanted: int, kept: int
) -> None:
    table = torch.full((1, kept + edge**2, 3), 2.0)
    table[:, :kept] = 7.0
    found = resample_positions(table, kept + wanted**2)
    assert found.shape == (1, kept + wanted**2, 3)
    assert (found[:, :kept] == 7.0).all()
    torch.testing.assert_close(found[:, kept:], torch.full((1, wanted**2, 3), 2.0))
    if edge == wanted:
        torch.testing.assert_close(found, table)


@pytest.mark.parametrize("kind", [*WITH_TABLE, "dinov3_vit"])
def test_a_run_takes_images_of_the_size_it_wants(
    tiny_config: RunConfig, tmp_path: Path, kind: str
) -> None:
    tower_model(kind).save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    config = with_tower(tiny_config, tmp_path, image_size=16)
    processor = build_processor(config.model, iter(["words"]))
    assert image_settings(processor).size == 16
    assert image_settings(processor).aspect_ratio == "stretch"
    model = build_model(config.model, processor, seed=0, precision="fp32")
    assert model.config.vision_config.image_size == 16
    features = model.get_image_features(torch.rand(1, 3, 16, 16)).pooler_output
    assert len(features[0]) == num_image_tokens(processor)


def test_a_tower_s_own_processor_says_how_an_image_becomes_square(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    tower_model("vit").save_pretrained(tmp_path)
    cut = {"height": 32, "width": 32}
    BitImageProcessorPil(size={"shortest_edge": 36}, crop_size=cut).save_pretrained(tmp_path)
    found = image_settings(build_processor(with_tower(tiny_config, tmp_path).model, iter(["a"])))
    assert (found.aspect_ratio, found.size) == ("square", 32)


def test_a_random_tower_gets_the_statistics_of_its_kind(tiny_config: RunConfig) -> None:
    shape = json.dumps({"model_type": "dinov2"} | SHAPE)
    config = override_config(tiny_config, [f"model.vision_tower={{config: {shape}}}"])
    found = image_settings(build_processor(config.model, iter(["words"])))
    assert found.mean == IMAGENET_MEAN
    assert found.aspect_ratio == "square"


@pytest.mark.parametrize("kind", UNFIT_TOWERS)
def test_a_tower_that_cannot_fit_is_refused_with_the_reason(
    tiny_config: RunConfig, kind: str
) -> None:
    message = rf"vision_tower.config.model_type={kind}: it .*; use one of: clip_vision_model, "
    with pytest.raises(ConfigError, match=message):
        override_config(tiny_config, [f"model.vision_tower={{config: {{model_type: {kind}}}}}"])


@pytest.mark.parametrize("kind", ["siglip2_vision_model", "convnext"])
def test_weights_of_a_tower_that_cannot_fit_are_refused_too(
    tiny_config: RunConfig, tmp_path: Path, kind: str
) -> None:
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    message = rf"model_type={kind}: it .*; use one of: clip_vision_model, "
    with pytest.raises(ConfigError, match=message):
        build_processor(with_tower(tiny_config, tmp_path).model, iter(["words"]))


@pytest.mark.parametrize("unused", ["pooler.", "head.", "embeddings.mask_token"])
def test_a_published_tower_may_lack_what_llava_does_not_use(
    tiny_config: RunConfig, tmp_path: Path, unused: str
) -> None:
    kind = {"pooler.": "vit", "head.": "siglip_vision_model"}.get(unused, "dinov2")
    tower = tower_model(kind)
    weights = {k: v for k, v in tower.state_dict().items() if not k.startswith(unused)}
    assert len(weights) < len(tower.state_dict())
    tower.save_pretrained(tmp_path, state_dict=weights)
    ViTImageProcessorPil().save_pretrained(tmp_path)
    config = with_tower(tiny_config, tmp_path)
    processor = build_processor(config.model, iter(["words"]))
    built = build_model(config.model, processor, seed=0, precision="fp32").model.vision_tower
    for name, weight in weights.items():
        assert torch.equal(built.state_dict()[name], weight)


# --- open_clip ------------------------------------------------------------------------------------

OF_TIMM = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "image_size": 32}


def write_open_clip(folder: Path, vision: dict[str, Any], weights: dict[str, Any]) -> Path:
    """A model as open_clip publishes it: no config.json, and its own names."""
    settings = {
        "model_cfg": {"embed_dim": 8, "vision_cfg": vision, "text_cfg": {}},
        "preprocess_cfg": {"mean": list(CLIP_MEAN), "std": [0.25, 0.25, 0.25]},
    }
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    text = {"text.proj.weight": torch.rand(2, 2), "logit_scale": torch.tensor(1.0)}
    torch.save(weights | text, folder / "open_clip_pytorch_model.bin")
    return folder


def timm_weights(width: int = 192, layers: int = 12) -> dict[str, torch.Tensor]:
    """The tensors of timm's vision transformer for images of two by two patches."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 5, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for number in range(layers):
        for name, rows, columns in [
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ]:
            shapes[f"blocks.{number}.{name}.weight"] = (rows, columns)
            shapes[f"blocks.{number}.{name}.bias"] = (rows,)
        for name in ("norm1", "norm2"):
            shapes[f"blocks.{number}.{name}.weight"] = (width,)
            shapes[f"blocks.{number}.{name}.bias"] = (width,)
    torch.manual_seed(1)
    return {f"visual.trunk.{name}": torch.randn(shape) * 0.05 for name, shape in shapes.items()}


def timm_hidden_states(
    weights: dict[str, torch.Tensor], pixels: torch.Tensor, heads: int = 3
) -> list[torch.Tensor]:
    """What timm computes, written down from its definition."""
    w = {name.removeprefix("visual.trunk."): tensor for name, tensor in weights.items()}
    width = w["cls_token"].shape[-1]
    patches = torch.nn.functional.conv2d(
        pixels, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=16
    )
    x = torch.cat([w["cls_token"], patches.flatten(2).transpose(1, 2)], dim=1) + w["pos_embed"]
    states = [x]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return layer_norm(x, (width,), w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)

    def dense(x: torch.Tensor, name: str) -> torch.Tensor:
        return linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    for number in range(12):
        block = f"blocks.{number}"
        qkv = dense(norm(x, f"{block}.norm1"), f"{block}.attn.qkv")
        q, k, v = qkv.reshape(1, -1, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = x + dense(attended, f"{block}.attn.proj")
        hidden = gelu(dense(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
        x = x + dense(hidden, f"{block}.mlp.fc2")
        states.append(x)
    return states


def test_a_tower_of_timm_computes_what_timm_computes(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    weights = timm_weights()
    config = with_tower(tiny_config, write_open_clip(tmp_path / "biomed", OF_TIMM, weights))
    processor = build_processor(config.model, iter(["words"]))
    images = image_settings(processor)
    assert (images.size, images.mean, images.std) == (32, CLIP_MEAN, (0.25, 0.25, 0.25))
    assert images.aspect_ratio == "square"
    model = build_model(config.model, processor, seed=0, precision="fp32").eval()
    pixels = torch.rand(1, 3, 32, 32)
    found = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    for mine, theirs in zip(found[:-1], timm_hidden_states(weights, pixels)[:-1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_tower_of_open_clip_is_the_clip_it_is(tiny_config: RunConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    clip = CLIPVisionModel(CLIPVisionConfig(**SHAPE | {"hidden_act": "gelu"})).eval()
    vision = {"layers": 2, "width": 16, "head_width": 8, "mlp_ratio": 2, "patch_size": 8}
    folder = write_open_clip(tmp_path / "clip", vision | {"image_size": 32}, as_open_clip(clip))
    config = with_tower(tiny_config, folder)
    processor = build_processor(config.model, iter(["words"]))
    built = build_model(config.model, processor, seed=0, precision="fp32").model.vision_tower
    assert built.config.hidden_act == "gelu"
    expected = clip.state_dict()
    assert built.state_dict().keys() == expected.keys()
    for name, weight in built.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=0)


def test_what_open_clip_writes_in_its_settings_is_what_is_computed(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    clip = CLIPVisionModel(CLIPVisionConfig(**SHAPE))
    vision = {"layers": 2, "width": 16, "head_width": 8, "mlp_ratio": 2, "patch_size": 8}
    vision |= {"image_size": 32, "act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 0.5}}
    folder = write_open_clip(tmp_path / "it", vision, as_open_clip(clip))
    file = folder / "open_clip_config.json"
    facts = json.loads(file.read_text())
    facts["preprocess_cfg"] |= {"interpolation": "bilinear", "resize_mode": "squash"}
    file.write_text(json.dumps(facts))
    config = with_tower(tiny_config, folder)
    assert config.model.vision_tower is not None
    found = part_config(config.model.vision_tower, "model.vision_tower")
    assert (found.hidden_act, found.layer_norm_eps) == ("gelu_pytorch_tanh", 0.5)
    images = image_settings(build_processor(config.model, iter(["words"])))
    assert (images.aspect_ratio, images.resample) == ("stretch", "bilinear")
    facts["preprocess_cfg"]["resize_mode"] = "longest"
    file.write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match=r"resize_mode=longest: cannot be converted; use a model"):
        build_processor(config.model, iter(["words"]))


def as_open_clip(clip: CLIPVisionModel) -> dict[str, torch.Tensor]:
    """The weights of a CLIP under the names that open_clip gives them."""
    w = clip.state_dict()
    named = {
        "class_embedding": w["embeddings.class_embedding"],
        "positional_embedding": w["embeddings.position_embedding.weight"],
        "conv1.weight": w["embeddings.patch_embedding.weight"],
    }
    for kind in ("weight", "bias"):
        named[f"ln_pre.{kind}"] = w[f"pre_layrnorm.{kind}"]
        named[f"ln_post.{kind}"] = w[f"post_layernorm.{kind}"]
        for number in range(clip.config.num_hidden_layers):
            theirs, ours = f"transformer.resblocks.{number}", f"encoder.layers.{number}"
            parts = [w[f"{ours}.self_attn.{name}_proj.{kind}"] for name in "qkv"]
            named[f"{theirs}.attn.in_proj_{kind}"] = torch.cat(parts)
            named[f"{theirs}.attn.out_proj.{kind}"] = w[f"{ours}.self_attn.out_proj.{kind}"]
            named[f"{theirs}.ln_1.{kind}"] = w[f"{ours}.layer_norm1.{kind}"]
            named[f"{theirs}.ln_2.{kind}"] = w[f"{ours}.layer_norm2.{kind}"]
            named[f"{theirs}.mlp.c_fc.{kind}"] = w[f"{ours}.mlp.fc1.{kind}"]
            named[f"{theirs}.mlp.c_proj.{kind}"] = w[f"{ours}.mlp.fc2.{kind}"]
    return {f"visual.{name}": weight for name, weight in named.items()}


def drop_a_layer(folder: Path) -> None:
    file = folder / "open_clip_pytorch_model.bin"
    weights = torch.load(file)
    torch.save({name: w for name, w in weights.items() if ".blocks.3." not in name}, file)


def scale_a_layer(folder: Path) -> None:
    file = folder / "open_clip_pytorch_model.bin"
    scale = {"visual.trunk.blocks.0.ls1.gamma": torch.ones(192)}
    torch.save(torch.load(file) | scale, file)


def drop_weights(folder: Path) -> None:
    (folder / "open_clip_pytorch_model.bin").unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_a_layer, r"16 tensors are missing or of another shape: layers.N.attention.k_proj.bi"),
        (scale_a_layer, r"has a tensor visual.trunk.blocks.0.ls1.gamma, which is in no model that"),
        (drop_weights, r"holds open_clip_config.json without weights; add one of open_clip_model"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_weights_of_open_clip_that_are_not_those_of_a_tower_are_refused_by_name(
    tiny_config: RunConfig, tmp_path: Path, change: Any, message: str
) -> None:
    config = with_tower(tiny_config, write_open_clip(tmp_path / "it", OF_TIMM, timm_weights()))
    processor = build_processor(config.model, iter(["words"]))
    change(tmp_path / "it")
    with pytest.raises((CheckpointError, ConfigError), match=message):
        build_model(config.model, processor, seed=0, precision="fp32")


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        (
            {"timm_model_name": "vit_so400m_patch14_siglip_224"},
            r"timm_model_name=vit_so400m_patch14_siglip_224: is not a plain vision transformer",
        ),
        (
            {"layers": [3, 4, 6, 3], "width": 64, "image_size": 224},
            r"vision_cfg.layers=\[3, 4, 6, 3\]: is a convolutional network, which has no hidden",
        ),
    ],
)
def test_a_model_of_open_clip_without_tokens_for_llava_is_refused(
    tiny_config: RunConfig, tmp_path: Path, vision: dict[str, Any], message: str
) -> None:
    config = with_tower(tiny_config, write_open_clip(tmp_path / "it", vision, {}))
    assert config.model.vision_tower is not None
    with pytest.raises(ConfigError, match=message):
        tower_of(part_config(config.model.vision_tower, "model.vision_tower"), "tower")
