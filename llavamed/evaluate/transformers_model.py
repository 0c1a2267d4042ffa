"""Evaluate any image-text-to-text model of transformers by its Auto classes."""

import gc
import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from llavamed.config.engine import Precision
from llavamed.errors import ConfigError
from llavamed.evaluate.candidate import Answerer, Reply, shares
from llavamed.evaluate.questions import Question
from llavamed.model.llava import DTYPES, load_model
from llavamed.processor.forms.find import find_form
from llavamed.processor.pretrained import load_pretrained, loading_problem
from llavamed.processor.templates import chat_template, get_template
from llavamed.processor.turns import IMAGE_PLACEHOLDER, Turn
from llavamed.storage.fetch import fetch_once

_KEY = "model"


@dataclass(frozen=True)
class TransformersCandidate:
    """A model in a folder, at a URI or on the hub, with its own chat template or ours."""

    name: str
    fingerprint: str
    template: str
    template_name: str | None
    """Name of one of our templates; None for the model's own."""
    precision: Precision
    batch_size: int
    kind: Literal["transformers"] = "transformers"

    def load(self) -> Answerer:
        """Load the model and its processor. Raises: ConfigError, CheckpointError."""
        processor = _processor(self.name)
        model = _load(self.name, self.precision)
        model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        return TransformersAnswerer(model, processor, self.template_name, self.batch_size)


def transformers_candidate(
    source: str, *, template: str | None, precision: Precision, batch_size: int
) -> TransformersCandidate:
    """Return a model as a candidate after checking its config and processor.

    Raises:
        ConfigError: It cannot be found, is not for pictures and text, needs code of its own, or
            has no chat template where none is named.
    """
    config = load_pretrained(AutoConfig, source, _KEY)
    if type(config) not in AutoModelForImageTextToText._model_mapping:
        raise ConfigError(
            f"{_KEY}={source}: its model_type is {config.model_type}, which transformers does not "
            "load for pictures and text; name another model, or serve it and give its endpoint"
        )
    text = _template(_processor(source), template, source)
    return TransformersCandidate(
        name=source,
        fingerprint=hashlib.sha256(f"{_identity(source, config)} {precision}".encode()).hexdigest(),
        template=hashlib.sha256(text.encode()).hexdigest(),
        template_name=template,
        precision=precision,
        batch_size=batch_size,
    )


class TransformersAnswerer:
    """Answer with `generate`, in batches of questions of similar length."""

    def __init__(self, model: Any, processor: Any, template: str | None, batch_size: int) -> None:
        self._model, self._processor = model, processor
        self._batch_size = batch_size
        self._chat_template = _template(processor, template, str(model.name_or_path))
        self._is_ours = template is not None
        tokenizer = processor.tokenizer
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

    def answer(self, questions: Sequence[Question], max_new_tokens: int) -> list[Reply | None]:
        """Answer questions, batched by number of images and by length."""
        # A processor takes pictures for all prompts of a batch or for none.
        kinds: dict[int, list[int]] = {}
        for place, question in enumerate(questions):
            kinds.setdefault(len(question.pictures), []).append(place)
        replies: dict[int, Reply] = {}
        for places in kinds.values():
            places.sort(key=lambda place: sum(len(turn.text) for turn in questions[place].turns))
            for start in range(0, len(places), self._batch_size):
                batch = places[start : start + self._batch_size]
                found = self._answer_batch([questions[place] for place in batch], max_new_tokens)
                replies |= dict(zip(batch, found, strict=True))
        return [replies[place] for place in range(len(questions))]

    def close(self) -> None:
        """Free the memory of the model."""
        self._model = None
        gc.collect()
        torch.cuda.empty_cache()

    @torch.inference_mode()
    def _answer_batch(self, questions: list[Question], max_new_tokens: int) -> list[Reply]:
        started = time.monotonic()
        inputs = self._encode(questions).to(self._model.device)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
        generated = self._model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            pad_token_id=self._processor.tokenizer.pad_token_id,
        )
        answers = generated[:, inputs["input_ids"].shape[1] :].tolist()
        ends = self._ends()
        lengths = [_until_end(answer, ends) for answer in answers]
        seconds = shares(time.monotonic() - started, [length for length, _ in lengths])
        return [
            Reply(
                text=self._processor.tokenizer.decode(
                    answer[:length], skip_special_tokens=True
                ).strip(),
                tokens=length,
                outcome="answered" if ended else "cut_off",
                seconds=share,
            )
            for answer, (length, ended), share in zip(answers, lengths, seconds, strict=True)
        ]

    def _encode(self, questions: list[Question]) -> Any:
        texts = [self._text(question) for question in questions]
        pictures = [
            [Image.fromarray(picture.pixels) for picture in question.pictures]
            for question in questions
        ]
        bos = self._processor.tokenizer.bos_token
        return self._processor(
            text=texts,
            images=pictures if any(pictures) else None,
            padding=True,
            return_tensors="pt",
            # A template that writes the first token itself must not get it twice.
            add_special_tokens=not (bos and texts[0].startswith(bos)),
        )

    def _text(self, question: Question) -> str:
        messages = [{"role": turn.role, "content": self._content(turn)} for turn in question.turns]
        text: str = self._processor.apply_chat_template(
            messages, chat_template=self._chat_template, add_generation_prompt=True, tokenize=False
        )
        return text

    def _content(self, turn: Turn) -> Any:
        """Return a turn as the template reads it: ours reads text, others a list of parts."""
        if self._is_ours:
            mark = getattr(self._processor, "image_token", IMAGE_PLACEHOLDER)
            return turn.text.replace(IMAGE_PLACEHOLDER, mark)
        texts = turn.text.split(IMAGE_PLACEHOLDER)
        parts: list[dict[str, str]] = []
        for number, text in enumerate(texts):
            parts += [{"type": "image"}] if number else []
            parts += [{"type": "text", "text": text.strip("\n")}] if text.strip() else []
        return parts

    def _ends(self) -> set[int]:
        ends = self._model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return {end for end in (*ends, self._processor.tokenizer.eos_token_id) if end is not None}


def _until_end(tokens: list[int], ends: set[int]) -> tuple[int, bool]:
    """Return the number of tokens up to the one that ends the answer, and whether one does."""
    for place, token in enumerate(tokens, start=1):
        if token in ends:
            return place, True
    return len(tokens), False


def _load(source: str, precision: Precision) -> Any:
    """Return a model. Raises: ConfigError, CheckpointError."""
    folder = fetch_once(source)
    if find_form(folder) is not None:  # a LLaVA of its own trainer
        return load_model(source, precision, "sdpa")
    try:
        model, report = AutoModelForImageTextToText.from_pretrained(
            folder, trust_remote_code=False, output_loading_info=True, dtype=DTYPES[precision]
        )
    except Exception as error:  # transformers raises KeyError and others for other forms
        raise ConfigError(f"{_KEY}={source}: {loading_problem(error)}") from error
    if missing := sorted(report["missing_keys"]):
        raise ConfigError(
            f"{_KEY}={source}: {len(missing)} tensors are missing, e.g. {missing[0]}; name "
            f"a folder that holds a whole {type(model).__name__}"
        )
    return model


def _processor(source: str) -> Any:
    processor = load_pretrained(AutoProcessor, source, _KEY, backend="pil")
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise ConfigError(
            f"{_KEY}={source}: its processor, a {type(processor).__name__}, does not take pictures "
            "and text; add its preprocessor_config.json and tokenizer"
        )
    return processor


def _template(processor: Any, template: str | None, source: str) -> str:
    """Return the chat template as text. Raises: ConfigError, where there is none."""
    if template is not None:
        return str(chat_template(get_template(template)))
    own = processor.chat_template or processor.tokenizer.chat_template
    if not own:
        raise ConfigError(
            f"{_KEY}={source}: has no chat template; name the one it was trained with by --template"
        )
    return str(own.get("default", "") if isinstance(own, dict) else own)


def _identity(source: str, config: Any) -> str:
    """Return a hash of all files of a folder; of a model on the hub its name and commit."""
    folder = fetch_once(source)
    if not os.path.isdir(folder):
        return f"{source}@{getattr(config, '_commit_hash', None)}"
    digest = hashlib.sha256()
    for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        with file.open("rb") as data:
            content = hashlib.file_digest(data, "sha256").hexdigest()
        digest.update(f"{file.relative_to(folder)} {content}\n".encode())
    return digest.hexdigest()
