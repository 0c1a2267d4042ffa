"""The fingerprint of scores."""

from collections.abc import Mapping

from llavamed.config.evaluation import Evaluation
from llavamed.evaluate.measures import RULES
from llavamed.storage.fingerprint import fingerprint


def scores_fingerprint(
    settings: Evaluation, export_fingerprint: str, datasets: Mapping[str, str]
) -> str:
    """Return the fingerprint of everything that decides the scores.

    Args:
        settings: Evaluation settings of the stage.
        export_fingerprint: Training fingerprint of the model.
        datasets: Fingerprints of the datasets it takes questions and majority answer from, by name.
    """
    return fingerprint(
        {
            "settings": settings.model_dump(mode="json", exclude={"num_cards"}),
            "export": export_fingerprint,
            "datasets": dict(datasets),
            "rules": RULES,
        }
    )
