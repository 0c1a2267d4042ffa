"""A zero-shot model in addition to the words: which description fits a picture best.

Any model of transformers that compares pictures with texts will do (CLIP, SigLIP), and BiomedCLIP
as open_clip saves it. No weights are shipped: `corpus.select.classifier.weights` names a folder or
a model on the hub.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

from llavamed.config.corpus import Classifier
from llavamed.corpus.figures import FigureRow
from llavamed.corpus.select.open_clip import load_open_clip
from llavamed.errors import ConfigError
from llavamed.processor.image_files import Pixels

SCORE = "model:"
"""Prefix of the scores that the model gave."""


class ZeroShot:
    """A model and the embeddings of its descriptions."""

    def __init__(self, settings: Classifier, descriptions: Mapping[str, str]) -> None:
        """Load the model.

        Args:
            settings: Where its weights are.
            descriptions: Of every kind of picture, by name.

        Raises:
            ConfigError: The weights cannot be loaded, or are of a model of another kind.
        """
        try:
            self._model, self._processor = _load(settings)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"corpus.select.classifier.weights={settings.weights}: cannot be loaded "
                f"({str(error).splitlines()[0]}); give a folder or a name on the hub"
            ) from error
        self._device = "cuda" if settings.use_gpu and torch.cuda.is_available() else "cpu"
        self._model.eval().to(self._device)
        self.min_score = settings.min_score
        self._batch_size = settings.batch_size
        self._names = list(descriptions)
        self._texts = list(descriptions.values())

    @torch.inference_mode()
    def scores(self, pictures: Sequence[Pixels]) -> list[dict[str, float]]:
        """Return the probability of each kind for every picture."""
        found: list[dict[str, float]] = []
        for start in range(0, len(pictures), self._batch_size):
            batch = [Image.fromarray(each) for each in pictures[start : start + self._batch_size]]
            inputs = self._processor(
                text=self._texts,
                images=batch,
                return_tensors="pt",
                padding="max_length",
                truncation=True,
            ).to(self._device)
            logits = self._model(**inputs).logits_per_image  # [pictures, kinds]
            for row in logits.float().softmax(dim=-1).tolist():
                found.append(dict(zip(self._names, row, strict=True)))
        return found


def _load(settings: Classifier) -> tuple[Any, Any]:
    """Return the model and its processor."""
    if found := load_open_clip(settings.weights, settings.revision):
        return found
    where = {"revision": settings.revision, "trust_remote_code": False}
    model = AutoModel.from_pretrained(settings.weights, **where)
    if not hasattr(model, "get_image_features"):
        raise ConfigError(
            f"corpus.select.classifier.weights={settings.weights}: a {type(model).__name__} does "
            "not compare pictures with texts; give a CLIP or SigLIP model"
        )
    return model, AutoProcessor.from_pretrained(settings.weights, **where)


def agree(figure: FigureRow, scores: Mapping[str, float], least: float) -> FigureRow:
    """Return the figure with the model's scores, refused where it sees another modality.

    Reason: modality_disagreement.
    """
    named = {f"{SCORE}{name}": score for name, score in scores.items()}
    figure = replace(figure, scores=figure.scores | named)
    best = max(scores, key=lambda name: scores[name])
    if best != figure.modality or scores[best] < least:
        detail = f"words say {figure.modality}, the model {best} with {scores[best]:.2f}"
        return figure.refused("modality_disagreement", detail)
    return figure
