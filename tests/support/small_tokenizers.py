"""Tokenizers that are trained in a moment, of the kinds that matter."""

import json

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llavamed.processor.templates import TEMPLATES
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


HEAD = "{{ bos_token or '' }}{% for message in messages %}"
PARTS = (
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}"
)
ROLES = HEAD + (
    "{% if message.role == 'assistant' %}ASSISTANT: ANSWER"
    "{% else %}{{ message.role | upper }}: {{ message.content }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:PROMPT_END{% endif %}"
)
OWN_TEMPLATES = {
    "chatml": CHATML,
    "chatml, words marked": CHATML_MARKED,
    "chatml, end marked": CHATML.replace(
        "{{ message.content }}{{ '<|im_end|>\n' }}",
        "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>\n"
        "{% endgeneration %}{% else %}{{ message.content }}<|im_end|>\n{% endif %}",
    ),
    "parts": CHATML.replace("{{ message.content }}", PARTS),
    "parts or a string for answers": CHATML.replace(
        "{{ message.content }}",
        f"{{% if message.role == 'user' %}}{PARTS}{{% else %}}{{{{ '' + message.content }}}}"
        "{% endif %}",
    ),
    "a space at the prompt's end": ROLES.replace(
        "ANSWER", "{{ message.content }}{{ eos_token }}"
    ).replace("PROMPT_END", " "),
    "two lines at the prompt's end": ROLES.replace(": ANSWER", ":\n\nANSWER")
    .replace("ANSWER", "{{ message.content }}{{ eos_token }}")
    .replace("PROMPT_END", "\n\n"),
    "marked, ends in a space": ROLES.replace(
        "ANSWER", "{% generation %}{{ message.content }} {% endgeneration %}{{ eos_token }}"
    ).replace("PROMPT_END", ""),
    "marked in a macro": "{% macro say(text) %}{% generation %}{{ text }}{% endgeneration %}"
    "{% endmacro %}"
    + ROLES.replace("ANSWER", "{{ say(message.content) }}{{ eos_token }}").replace(
        "PROMPT_END", ""
    ),
    "trimmed": CHATML.replace("message.content", "message.content | trim"),
    "dated": "{{ strftime_now('%d %b %Y %H:%M') }}" + CHATML,
}
"""Chat templates of all kinds, that end answers with <|im_end|> or with eos_token."""


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
        corpus, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", IMAGE_PLACEHOLDER]})
    tokenizer.chat_template = CHATML
    return tokenizer


LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\n\n' }}"
    "{{ message.content | trim ~ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% set rest = messages %}{% set first = '' %}"
    "{% if messages[0].role == 'system' %}"
    "{% set first = messages[0].content ~ '\n\n' %}{% set rest = messages[1:] %}{% endif %}"
    "{% for message in rest %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' ~ ('model' if message.role == 'assistant' else 'user') ~ '\n' }}"
    "{{ (first if loop.first else '') ~ message.content | trim ~ '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL_V3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}{{ '[INST] ' ~ message.content ~ '[/INST]' }}"
    "{% elif message.role == 'system' %}{{ raise_exception('no system turns') }}"
    "{% else %}{{ ' ' ~ message.content | trim ~ eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_V7 = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}"
    "{{ '[SYSTEM_PROMPT]' ~ message.content ~ '[/SYSTEM_PROMPT]' }}"
    "{% elif message.role == 'user' %}{{ '[INST]' ~ message.content ~ '[/INST]' }}"
    "{% else %}{{ message.content ~ eos_token }}{% endif %}{% endfor %}"
)
QWEN_3 = (
    "{% set ns = namespace(last=-1) %}"
    "{% for message in messages %}{% if message.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}{{ '<|im_start|>' ~ message.role ~ '\n' }}"
    "{% set content = message.content %}{% set thought = '' %}"
    "{% if message.role == 'assistant' and '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if message.role == 'assistant' and loop.index0 > ns.last %}"
    "{{ '<think>\n' ~ thought ~ '\n</think>\n\n' ~ content.lstrip('\n') }}"
    "{% else %}{{ content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
"""It writes a thinking part before the answers that follow the last question, even an empty one."""
QWEN_3_THINKING = QWEN_3.replace(
    "|im_start|>assistant\n' }}{% if enable", "|im_start|>assistant\n<think>\n' }}{% if enable"
)
"""Its prompt begins the thinking part."""


def family(
    template: str, *, end: str, turns: tuple[str, ...] = (), bos: str | None = None
) -> PreTrainedTokenizerBase:
    """A tokenizer as a family of language models publishes it, whose pad token is its end token.

    Args:
        template: Its chat template.
        end: Its eos_token.
        turns: The special tokens around its turns.
        bos: Its bos_token, which it also puts before every text by itself.
    """
    tokenizer = chatml(joins_lines=True)
    tokenizer.add_special_tokens({"additional_special_tokens": [*turns, IMAGE_PLACEHOLDER]})
    tokenizer.add_special_tokens({"eos_token": end, "pad_token": end})
    if bos is not None:
        tokenizer.add_special_tokens({"bos_token": bos})
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
        )
    if "<think>" in template:
        tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = template
    return tokenizer
