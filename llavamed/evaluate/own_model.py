"""Evaluate our own models: an export, or the initial model of a run."""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from llavamed.config.engine import Precision
from llavamed.config.run import RunConfig
from llavamed.errors import DataError
from llavamed.evaluate.candidate import Answerer, Reply, shares
from llavamed.evaluate.questions import Question
from llavamed.model.continuation import Continuation, Sampling
from llavamed.model.export import fetch_export
from llavamed.model.generation import Generator, Prompt
from llavamed.model.llava import Llava, build_model, load_model
from llavamed.processor.build import Processor, load_processor
from llavamed.processor.images import fit
from llavamed.processor.templates import get_template
from llavamed.storage.fingerprint import fingerprint
from llavamed.storage.location import locate
from llavamed.storage.manifest import ExportManifest, read


@dataclass(frozen=True)
class ExportCandidate:
    """Our own export, used with the template and image processing of its training."""

    name: str
    fingerprint: str
    template: str
    template_name: str
    precision: Precision
    attn_implementation: str
    batch_size: int
    kind: Literal["export"] = "export"

    def load(self) -> Answerer:
        """Load the export. Raises: CheckpointError."""
        return _load(
            self.name,
            self.template_name,
            self.batch_size,
            lambda folder, _: load_model(folder, self.precision, self.attn_implementation),
        )


@dataclass(frozen=True)
class InitialCandidate:
    """The initial model of a run, used like its export, whose processor it shares."""

    name: str
    config: RunConfig
    template: str
    batch_size: int
    kind: Literal["export"] = "export"

    @property
    def template_name(self) -> str:
        """Return the name of the run's template."""
        return self.config.model.template

    @property
    def fingerprint(self) -> str:
        """Return a hash of what decides the initial weights."""
        return fingerprint(
            {
                "model": self.config.model.model_dump(mode="json"),
                "seed": self.config.seed,
                "precision": self.config.engine.precision,
            }
        )

    def load(self) -> Answerer:
        """Build the model. Raises: ConfigError, CheckpointError."""
        config = self.config
        return _load(
            self.name,
            config.model.template,
            self.batch_size,
            lambda _, processor: build_model(
                config.model, processor, seed=config.seed, precision=config.engine.precision
            ),
        )


def export_candidate(
    uri: str, *, precision: Precision, attn_implementation: str, batch_size: int
) -> ExportCandidate:
    """Return an export as a candidate.

    Raises:
        FileNotFoundError: There is no complete export of ours.
        CheckpointError: Another version of this program wrote it.
    """
    manifest = read(ExportManifest, locate(uri))
    return ExportCandidate(
        name=uri,
        fingerprint=fingerprint([manifest.fingerprint, precision]),
        template=manifest.template_hash,
        template_name=manifest.template,
        precision=precision,
        attn_implementation=attn_implementation,
        batch_size=batch_size,
    )


class GeneratorAnswerer:
    """Answer with continuous batching: a new question joins when an answer ends."""

    def __init__(self, generator: Generator, batch_size: int) -> None:
        self._generator: Generator | None = generator
        self._batch_size = batch_size

    def answer(self, questions: Sequence[Question], max_new_tokens: int) -> list[Reply | None]:
        """Answer questions, the longest first. Raises: DataError (one is too long)."""
        assert self._generator is not None, "it is closed"
        generator, started = self._generator, time.monotonic()
        waiting = sorted(range(len(questions)), key=lambda place: _length(questions[place]))
        answers: dict[int, Continuation] = {}
        batch = generator.running_batch()
        while waiting or len(batch):
            free = min(self._batch_size - len(batch), len(waiting))
            # Few at a time would read prompts more often than it saves steps.
            if free and (not len(batch) or free >= max(1, self._batch_size // 4)):
                places = [waiting.pop() for _ in range(free)]
                prompts = []
                for place in places:
                    answers[place] = generator.begin(Sampling(max_new_tokens))
                    prompts.append(generator.encode(_prompt(questions[place], generator)))
                    _check_length(
                        questions[place], len(prompts[-1].input_ids), max_new_tokens, generator
                    )
                batch.join(prompts, [[answers[place]] for place in places])
            else:
                batch.step()
        tokens = [len(answers[place].token_ids) for place in range(len(questions))]
        return [
            Reply(
                text=answers[place].text,
                tokens=tokens[place],
                outcome="cut_off" if answers[place].finish_reason == "length" else "answered",
                seconds=seconds,
            )
            for place, seconds in enumerate(shares(time.monotonic() - started, tokens))
        ]

    def close(self) -> None:
        """Free the memory of the model."""
        self._generator = None
        gc.collect()
        torch.cuda.empty_cache()


def _load(
    export: str, template: str, batch_size: int, make: Callable[[Path, Processor], Llava]
) -> GeneratorAnswerer:
    folder = fetch_export(locate(export))
    processor = load_processor(folder)
    model = make(folder, processor).to("cuda" if torch.cuda.is_available() else "cpu")
    return GeneratorAnswerer(Generator(model, processor, get_template(template)), batch_size)


def _length(question: Question) -> tuple[int, int]:
    return len(question.pictures), sum(len(turn.text) for turn in question.turns)


def _prompt(question: Question, generator: Generator) -> Prompt:
    pixels = [picture.pixels for picture in question.pictures]
    size = (generator.images.size, generator.images.size, 3)
    # A prepared dataset holds the pixels of training already.
    return Prompt(
        question.turns,
        [each if each.shape == size else fit(each, generator.images) for each in pixels],
    )


def _check_length(
    question: Question, num_tokens: int, max_new_tokens: int, generator: Generator
) -> None:
    if num_tokens + max_new_tokens > generator.context_length:
        raise DataError(
            f"id={question.id!r}: its prompt of {num_tokens} tokens and max_new_tokens="
            f"{max_new_tokens} are more than the {generator.context_length} that the model reads; "
            "set max_new_tokens lower, or leave the question out"
        )
