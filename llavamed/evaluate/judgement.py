"""Write verdicts: `judgements.jsonl`, one line per question, and `judgement.json`."""

import json
from typing import ClassVar

import numpy as np

from llavamed.config.endpoint import Endpoint
from llavamed.errors import DataError, LlavaMedError
from llavamed.evaluate.judge import PROMPT_HASH, Judged, Judgement, relative_scores
from llavamed.storage.fingerprint import fingerprint
from llavamed.storage.location import Location
from llavamed.storage.manifest import EstimateFacts, Facts, Manifest, write

JUDGEMENTS = "judgements.jsonl"


class RelativeFacts(Facts):
    """The relative score of a group of questions, in percent of the reference answers."""

    name: str
    """Name of the group: `all`, a type or a domain."""
    num_judged: int
    """Number of questions judged in both orders; the others are in no score."""
    num_questions: int
    """Number of questions."""
    score: EstimateFacts | None
    """Mean ratio of candidate to reference, in percent. None where nothing was judged."""


class JudgementManifest(Manifest):
    """Relative scores, and everything that they depend on."""

    VERSION: ClassVar[int] = 1
    FILE: ClassVar[str] = "judgement.json"
    ERROR: ClassVar[type[LlavaMedError]] = DataError
    HINT: ClassVar[str] = "judge again; what is in the cache costs nothing"

    model: str
    """Name of the judge at its endpoint."""
    answered_by: dict[str, int]
    """Number of answers by the model name that the endpoint returned."""
    endpoint: str
    """Address of the judge's API."""
    prompt_hash: str
    """Hash of the prompt; scores of different prompts are not comparable."""
    has_json_schema: bool
    """Whether the endpoint enforced the schema of verdicts; otherwise the prompt states it."""
    first_at: str
    """Time of the first verdict, ISO 8601 in UTC."""
    last_at: str
    """Time of the last verdict."""
    items_fingerprint: str
    """Hash of the questions, references and answers."""
    num_questions: int
    """Number of questions."""
    num_images: int
    """Number of images, or questions without one, that the intervals rest on."""
    outcomes: dict[str, int]
    """Number of requests by outcome: `answered`, `refused`, `cut_off`, `malformed`, `failed`."""
    num_repaired: int
    """Requests whose first verdict broke its form, so that the judge was asked once more."""
    lead: float | None
    """How much higher the judge scores an answer in the first place than in the second, in points;
    both orders are averaged, so that it is in no score."""
    prompt_tokens: int
    """Tokens of all prompts."""
    completion_tokens: int
    """Tokens of all verdicts."""
    cost: float | None
    """Price of all verdicts when they were paid for, in the currency of the prices."""
    scores: dict[str, tuple[RelativeFacts, ...]]
    """Relative scores of `all` questions, by `type` and by `domain`."""


def write_judgement(
    folder: Location, judgement: Judgement, endpoint: Endpoint
) -> JudgementManifest:
    """Write verdicts, and the manifest last. Raises: StorageError."""
    lines = [json.dumps(_row(each), ensure_ascii=False) for each in judgement.items]
    (folder / JUDGEMENTS).write_bytes("".join(f"{line}\n" for line in lines).encode())
    items = [each.item for each in judgement.items]
    leads = [each.lead for each in judgement.items if each.lead is not None]
    manifest = JudgementManifest(
        model=endpoint.model,
        answered_by=dict(judgement.models),
        endpoint=endpoint.url,
        prompt_hash=PROMPT_HASH,
        has_json_schema=endpoint.json_schema,
        first_at=judgement.first_at,
        last_at=judgement.last_at,
        items_fingerprint=fingerprint(
            [[item.id, item.question, item.reference, item.candidate] for item in items]
        ),
        num_questions=len(items),
        num_images=len({item.image or f"item {item.id}" for item in items}),
        outcomes=dict(judgement.outcomes),
        num_repaired=judgement.num_repaired,
        lead=float(np.mean(leads)) if leads else None,
        prompt_tokens=judgement.usage.prompt_tokens,
        completion_tokens=judgement.usage.completion_tokens,
        cost=judgement.cost,
        scores={
            by: tuple(
                RelativeFacts(
                    name=group.name,
                    num_judged=group.num_judged,
                    num_questions=group.num_items,
                    score=None
                    if group.estimate is None
                    else EstimateFacts(
                        value=100 * group.estimate.value,
                        low=100 * group.estimate.low,
                        high=100 * group.estimate.high,
                    ),
                )
                for group in groups
            )
            for by, groups in relative_scores(judgement.items).items()
        },
    )
    write(folder, manifest)
    return manifest


def _row(judged: Judged) -> dict[str, object]:
    item = judged.item
    return {
        "id": item.id,
        "image": item.image,
        "type": item.kind,
        "domain": item.domain,
        "reference": judged.reference,
        "candidate": judged.candidate,
        "relative": judged.relative,
        "outcomes": judged.outcomes,
        "reasons": judged.reasons,
    }
