"""An evaluation's scores as they lie in storage, and all that they depend on."""

from collections.abc import Mapping
from typing import Any

from llavamed.config.evaluation import Evaluation
from llavamed.config.load import fingerprint
from llavamed.evaluate.vqa import SCORER
from llavamed.storage.location import Location

SCORES = "scores.json"


def scores_fingerprint(
    settings: Evaluation, export_fingerprint: str, datasets: Mapping[str, str]
) -> str:
    """Of everything that decides the scores; other scores are not those of this evaluation.

    Args:
        settings: What is answered and how.
        export_fingerprint: Of what the model was trained with.
        datasets: Fingerprints of the datasets it takes questions and majority answer from, by name.
    """
    return fingerprint(
        {
            "settings": settings.model_dump(mode="json"),
            "export": export_fingerprint,
            "datasets": dict(datasets),
            "scorer": SCORER,
        }
    )


def read_scores(folder: Location) -> dict[str, Any] | None:
    """What an evaluation that has come to its end found, or none."""
    try:
        found: dict[str, Any] = (folder / SCORES).read_json()
    except FileNotFoundError:
        return None
    return found
