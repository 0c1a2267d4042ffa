"""Tokenizers that are trained in a moment, of the kinds that matter."""

import json

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llavamed.processor.encode import TEMPLATES
from llavamed.processor.turns import IMAGE_PLACEHOLDER

CORPUS = [template.system for template in TEMPLATES.values()] + [
    "USER: Where is the lesion? ASSISTANT: In the left lower lobe.</s>",
    "### Human: What is shown?\n### Assistant: A chest radiograph.\n###",
    "[INST] Is there an effusion? [/INST] Yes, on the right. </s>",
]
CHATML = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' ~ message.role ~ '\n' }}{{ message.content }}{{ '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
CHATML_MARKED = CHATML.replace(
    "{{ message.content }}",
    "{%- if message.role == 'assistant' -%}"
    "{% generation %}{{ message.content }}{% endgeneration %}"
    "{%- else -%}{{ message.content }}{%- endif -%}",
)


def llama_like() -> PreTrainedTokenizerBase:
    """A space is part of the word after it, and unknown characters are bytes."""
    model = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    model.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    model.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    )
    # The trainer takes bytes into the vocabulary only as special tokens, which they are not.
    definition = json.loads(model.to_str())
    definition["added_tokens"] = definition["added_tokens"][:3]
    definition["pre_tokenizer"]["split"] = False
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(definition)),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_PLACEHOLDER]})
    return tokenizer


def chatml(*, joins_lines: bool = False) -> PreTrainedTokenizerBase:
    """Byte-level, without a first token, and with a chat template of its own.

    One that joins lines has tokens of several line breaks, as those of Qwen and LLaMA 3 have.
    """
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    corpus = CORPUS
    if joins_lines:
        words = Regex(r" ?\p{L}+|\s*[\r\n]+|\s+(?!\S)|\s+| ?[^\s\p{L}]+")
        model.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(words, "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        corpus = [*CORPUS, *["a\n\nb \n\n\nc"] * 20]
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    model.train_from_iterator(
        corpus,
        trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", IMAGE_PLACEHOLDER]})
    tokenizer.chat_template = CHATML
    return tokenizer
