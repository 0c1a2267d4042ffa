"""The zero-shot model beside the words: its scores are those of transformers, in any batch."""

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
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


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    words = sorted({word for text in descriptions().values() for word in text.split()})
    names = ["<pad>", "<bos>", "<eos>", "<unk>", *words]
    vocabulary = {name: number for number, name in enumerate(names)}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=16,
    )
    torch.manual_seed(0)
    text = {"vocab_size": len(names), "max_position_embeddings": 16, "eos_token_id": 2}
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
