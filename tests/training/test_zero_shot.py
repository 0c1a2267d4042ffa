"""The zero-shot model beside the words: its scores are those of transformers, in any batch."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoProcessor,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTModel,
)

from llavamed.config.corpus import Classifier
from llavamed.corpus.select.captions import load_lexicon
from llavamed.corpus.select.zero_shot import ZeroShot, agree
from llavamed.errors import ConfigError
from tests.support.corpus_figures import figure

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def descriptions():
    lexicon = load_lexicon(None)
    return {name: kind.description for name, kind in lexicon.modalities.items()}


def tokenizer_of_words():
    words = sorted({word for text in descriptions().values() for word in text.split()})
    names = ["<pad>", "<bos>", "<eos>", "<unk>", *words]
    vocabulary = {name: number for number, name in enumerate(names)}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=16,
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = tokenizer_of_words()
    torch.manual_seed(0)
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": 2}
    config = CLIPConfig(
        text_config=SMALL | text,
        vision_config=SMALL | {"image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return str(folder)


def test_scores_are_those_of_transformers_whatever_the_batch(weights):
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (40, 50 + n, 3), dtype=np.uint8) for n in range(5)]
    found = [
        ZeroShot(Classifier(weights=weights, batch_size=size), descriptions()).scores(pictures)
        for size in (1, 2, 5)
    ]
    model, processor = AutoModel.from_pretrained(weights), AutoProcessor.from_pretrained(weights)
    inputs = processor(
        text=list(descriptions().values()),
        images=[Image.fromarray(each) for each in pictures],
        return_tensors="pt",
        padding="max_length",
    )
    with torch.no_grad():
        wanted = model(**inputs).logits_per_image.softmax(dim=-1)
    for scores in found:
        assert [list(each) for each in scores] == [list(descriptions())] * 5
        values = torch.tensor([list(each.values()) for each in scores])
        torch.testing.assert_close(values, wanted, atol=1e-5, rtol=1e-4)


def save_as_open_clip(folder, vision, text, **changes):
    """Write a ViT and a BERT as open_clip writes BiomedCLIP, and return its projections."""
    torch.manual_seed(1)
    named = {"logit_scale": torch.tensor(1.5)}
    for name, weight in vision.state_dict().items():
        old = TIMM.get(name) or re.sub(
            r"layers\.(\d+)\.(.+)\.(weight|bias)",
            lambda found: f"blocks.{found[1]}.{TIMM_LAYER.get(found[2])}.{found[3]}",
            name,
        )
        named[f"visual.trunk.{old}"] = weight
    for number in range(vision.config.num_hidden_layers):
        for kind in ("weight", "bias"):
            layer = vision.get_submodule(f"layers.{number}.attention")
            parts = [getattr(layer.get_submodule(f"{each}_proj"), kind) for each in "qkv"]
            named[f"visual.trunk.blocks.{number}.attn.qkv.{kind}"] = torch.cat(parts).detach()
    named |= {f"text.transformer.{name}": weight for name, weight in text.state_dict().items()}
    named |= {
        "visual.head.proj.weight": torch.randn(8, vision.config.hidden_size),
        "text.proj.0.weight": torch.randn(12, 16),
        "text.proj.2.weight": torch.randn(8, 12),
    }
    named["text.transformer.embeddings.position_ids"] = torch.arange(16)[None]
    torch.save(
        {name: weight for name, weight in named.items() if ".None." not in name},
        folder / "open_clip_pytorch_model.bin",
    )
    text_settings = {
        "hf_model_name": str(folder / "bert"),
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "hf_proj_type": "mlp",
        "context_length": 16,
    }
    image_settings = {"timm_model_name": "vit_tiny_patch16_224", "image_size": 32}
    model = {"embed_dim": 8, "vision_cfg": image_settings, "text_cfg": text_settings | changes}
    content = {"model_cfg": model, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    text.config.save_pretrained(folder / "bert")
    tokenizer_of_words().save_pretrained(folder)
    return named


TIMM = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
TIMM_LAYER = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.o_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


@pytest.fixture
def encoders():
    torch.manual_seed(0)
    shape = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3}
    vision = ViTConfig(
        **shape, intermediate_size=768, image_size=32, patch_size=16, layer_norm_eps=1e-6
    )
    text = BertConfig(**SMALL, vocab_size=64, max_position_embeddings=16)
    return (
        ViTModel(vision, add_pooling_layer=False).eval(),
        BertModel(text, add_pooling_layer=False).eval(),
    )


def test_biomed_clip_as_open_clip_saves_it_compares_as_its_encoders_do(tmp_path, encoders):
    vision, text = encoders
    named = save_as_open_clip(tmp_path, vision, text)
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(3)]
    found = ZeroShot(Classifier(weights=str(tmp_path)), descriptions()).scores(pictures)
    pixels = torch.tensor(np.stack(pictures)).permute(0, 3, 1, 2) / 255
    words = tokenizer_of_words()(
        list(descriptions().values()), padding="max_length", return_tensors="pt"
    )
    with torch.no_grad():
        left = vision((pixels - 0.5) / 0.25).last_hidden_state[:, 0]
        left = left @ named["visual.head.proj.weight"].T
        right = text(words.input_ids, words.attention_mask).last_hidden_state[:, 0]
        right = torch.nn.functional.gelu(right @ named["text.proj.0.weight"].T)
        right = right @ named["text.proj.2.weight"].T
        cosines = torch.nn.functional.cosine_similarity(left[:, None], right[None], dim=-1)
        wanted = (np.exp(1.5) * cosines).softmax(dim=-1)
    values = torch.tensor([list(each.values()) for each in found])
    torch.testing.assert_close(values, wanted, atol=1e-4, rtol=1e-3)


def test_an_open_clip_of_another_kind_or_without_a_weight_is_refused(tmp_path, encoders):
    save_as_open_clip(tmp_path, *encoders, hf_pooler_type="mean_pooler")
    with pytest.raises(ConfigError, match=r"its text encoder is not one of .* give BiomedCLIP, or"):
        ZeroShot(Classifier(weights=str(tmp_path)), descriptions())
    named = save_as_open_clip(tmp_path, *encoders)
    with pytest.raises(ConfigError, match=r"classifier.revision=main: is for a model in the form"):
        ZeroShot(Classifier(weights=str(tmp_path), revision="main"), descriptions())
    file = tmp_path / "open_clip_pytorch_model.bin"
    stored = torch.load(file)
    assert stored.keys() <= named.keys()
    torch.save({name: w for name, w in stored.items() if name != "text.proj.2.weight"}, file)
    with pytest.raises(ConfigError, match=r"lacks text_projection.2.weight \(1 such weights\)"):
        ZeroShot(Classifier(weights=str(tmp_path)), descriptions())


def test_a_model_must_agree_with_the_words_and_be_sure():
    row = figure(modality="mri", scores={"words:mri": 1.0})
    sure = agree(row, {"mri": 0.8, "ct_scan": 0.2}, 0.5)
    assert sure.is_kept
    assert sure.scores == {"words:mri": 1.0, "model:mri": 0.8, "model:ct_scan": 0.2}
    for scores in ({"mri": 0.2, "ct_scan": 0.8}, {"mri": 0.4, "ct_scan": 0.3, "gross": 0.3}):
        assert agree(row, scores, 0.5).refusal == "modality_disagreement"


def test_other_models_are_refused(tmp_path):
    absent = Classifier(weights=str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match=r"weights=.*absent: cannot be loaded .*give a folder"):
        ZeroShot(absent, descriptions())
    folder = tmp_path / "llama"
    LlamaForCausalLM(LlamaConfig(**SMALL, vocab_size=32)).save_pretrained(folder)
    with pytest.raises(ConfigError, match=r"weights=.*llama: (cannot be loaded|a LlamaModel does)"):
        ZeroShot(Classifier(weights=str(folder)), descriptions())
