"""Manifests of which a test says only what it is about."""

from typing import Any

from llavamed.config.sources import VqaRad
from llavamed.storage.manifest import (
    CheckpointManifest,
    DatasetManifest,
    ExportManifest,
    ImageFacts,
    Layout,
    MadeFrom,
    ScoresManifest,
    StageSettings,
    TrainedData,
)
from llavamed.storage.run_progress import RunSummary, StageSummary

IMAGES = ImageFacts(
    size=8, aspect_ratio="square", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), backend="exact"
)


SETTINGS = StageSettings(seed=0, model={}, engine={}, stages={}, data=TrainedData(datasets={}))


def dataset_manifest(*, images: ImageFacts = IMAGES, **facts: Any) -> DatasetManifest:
    made_from = MadeFrom(
        read=VqaRad(source="vqa_rad", path="/a-test"),
        tokenizer="",
        template="",
        images=images,
        max_length=2048,
        store_images=facts.pop("store_images", "pixels"),
        rows_per_shard=1024,
        row_group_size=64,
        drop_duplicates=False,
    )
    known = {"source_hash": "", "num_rows": 0, "template": "vicuna_v1", "num_image_tokens": 4}
    tokens = {"image_token_id": 5, "pad_token_id": 0}
    return DatasetManifest.model_validate({"made_from": made_from} | known | tokens | facts)


def export_manifest(**facts: Any) -> ExportManifest:
    known = {
        "stage": "align",
        "fingerprint": "",
        "settings": SETTINGS,
        "datasets": {},
        "template": "vicuna_v1",
        "template_hash": "",
        "steps": 1,
        "num_tokens": 1,
        "loss_first": 2.0,
        "loss_last": 1.0,
        "tokens_per_second": 1.0,
        "step_seconds": {},
        "seconds": 1.0,
        "parts": {},
        "logits_difference": 0.0,
    }
    return ExportManifest.model_validate(known | facts)


def checkpoint_manifest(**facts: Any) -> CheckpointManifest:
    known = {
        "stage": "align",
        "fingerprint": "",
        "settings": SETTINGS,
        "step": 2,
        "seconds": 1.0,
        "loss": 1.0,
        "layout": Layout(world_size=1, zero_stage=2),
        "files": {},
    }
    return CheckpointManifest.model_validate(known | facts)


def scores_manifest(**facts: Any) -> ScoresManifest:
    known = {
        "dataset": "test-questions",
        "split": "",
        "questions_fingerprint": "",
        "num_questions": 0,
        "num_images": 0,
        "model": "",
        "model_fingerprint": "",
        "template": "",
        "prompt": "",
        "decoding": "",
        "rules": {},
        "conditions": (),
        "groups": (),
        "failures": {},
        "overlaps": None,
        "samples": (),
        "datasets": {},
        "fingerprint": "",
        "report": "",
    }
    return ScoresManifest.model_validate(known | facts)


def stage_summary(**facts: Any) -> StageSummary:
    known = {
        "name": "align",
        "steps": 1,
        "loss_first": 1.0,
        "loss_last": 0.5,
        "tokens_per_second": 1.0,
        "mfu": None,
        "seconds": 1.0,
        "step_seconds": {},
        "export": "",
        "gpu_seconds": 0.0,
        "cost": None,
    }
    return StageSummary.model_validate(known | facts)


def run_summary(**facts: Any) -> RunSummary:
    known = {
        "name": "run",
        "fingerprint": "",
        "tracking_uri": "",
        "stages": (),
        "scores": {},
        "evaluations": (),
        "currency": "USD",
        "prices_date": "2026-01-01",
    }
    return RunSummary.model_validate(known | facts)
