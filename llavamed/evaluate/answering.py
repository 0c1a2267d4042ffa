"""Answer the test questions of a stage, or any benchmark, and write `answers.parquet`."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llavamed.config.evaluation import Evaluation
from llavamed.config.run import RunConfig
from llavamed.data.prepared.dataset import PreparedDataset
from llavamed.errors import ConfigError, EndpointError
from llavamed.evaluate.answers import ANSWERS, TRAINED, AnswersManifest, Overlap
from llavamed.evaluate.benchmarks import find_benchmark
from llavamed.evaluate.candidate import Candidate
from llavamed.evaluate.conditions import CONDITIONS, MAJORITY, UNTRAINED, Majority
from llavamed.evaluate.generate import AnswerCounts, Task, add_up, answer_here, collect
from llavamed.evaluate.listing import list_questions
from llavamed.evaluate.probes import ProbingPairs
from llavamed.evaluate.questions import PreparedQuestions, Questions
from llavamed.evaluate.ray_workers import answer_on_ray
from llavamed.storage.fingerprint import fingerprint
from llavamed.storage.lease import Lease
from llavamed.storage.location import Location
from llavamed.storage.manifest import find, write

OnProgress = Callable[[int, int], None]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """Which benchmark to ask, and how.

    Attributes:
        benchmark: Name of the benchmark.
        path: URI of its data.
        split: Name of the split; None for the usual one.
        controls: Control conditions to answer under in addition to `trained`.
        instruction: Line appended to every question; None for the benchmark's own.
        probe: Ask probing pairs built from the questions instead of the questions.
        max_new_tokens: Maximum number of tokens of an answer.
        max_bad_fraction: Fraction of questions that may be unusable.
        limit: Number of questions to ask, counted from the first; None for all.
    """

    benchmark: str
    path: str
    split: str | None = None
    controls: tuple[str, ...] = ()
    instruction: str | None = None
    probe: bool = False
    max_new_tokens: int = 64
    max_bad_fraction: float = 0.0
    limit: int | None = None


def answer_stage(
    config: RunConfig,
    settings: Evaluation,
    datasets: dict[str, PreparedDataset],
    *,
    trained: Candidate,
    untrained: Candidate,
    folder: Location,
    lease: Lease,
    overlaps: tuple[Overlap, ...] | None,
    on_progress: OnProgress,
) -> AnswersManifest:
    """Answer the test questions of a stage with its model, under all conditions.

    Args:
        settings: What to answer and how.
        datasets: Prepared datasets by name.
        trained: The model of the stage.
        untrained: The model that the run started from.
        lease: Lease of the run's folder, checked before the answers are published.
        overlaps: Overlap of each training set with the questions; None if one is unknown.
        on_progress: Called with the number of answers so far and in total.

    Raises:
        LeaseError: Another attempt has taken the run over; then nothing is published.
    """
    dataset = datasets[settings.data]
    conditions = (TRAINED, *settings.controls)
    candidates = {
        name: untrained if name == UNTRAINED else trained for name in conditions if name != MAJORITY
    }
    task = Task(PreparedQuestions(dataset), candidates, settings.max_new_tokens, str(folder))
    total = dataset.num_samples * len(candidates)
    scaling = config.scaling
    counts = answer_on_ray(
        task,
        num_workers=scaling.most_workers,
        use_gpu=scaling.use_gpu,
        max_failures=config.max_failures,
    )
    count = add_up(counts, lambda done: on_progress(done, total))
    _check_complete(trained, count, total)
    lease.check()
    majority = None
    if MAJORITY in conditions:
        majority = Majority.of(PreparedQuestions(datasets[settings.majority]))
    collect(task, folder, majority)
    manifest = _manifest(
        trained,
        conditions,
        max_new_tokens=settings.max_new_tokens,
        questions=dataset.name,
        questions_fingerprint=dataset.manifest.fingerprint,
        num_questions=dataset.num_samples,
        quarantined=dataset.manifest.quarantined,
        overlaps=overlaps,
    )
    manifest = manifest.replace(num_generated=count.generated)
    write(folder, manifest)
    return manifest


def answer_benchmark(
    candidate: Candidate,
    asked: Asked,
    folder: Location,
    *,
    num_workers: int = 0,
    use_gpu: bool = False,
    on_progress: OnProgress = lambda *_: None,
    before_writing: Callable[[], None] = lambda: None,
) -> tuple[AnswersManifest, Questions]:
    """Answer a benchmark with a model under every condition. No question is asked twice.

    Args:
        candidate: The model.
        asked: The benchmark and how to ask it.
        num_workers: Number of Ray Data workers; 0 answers in this process.
        use_gpu: Reserve a GPU for each worker.
        on_progress: Called with the number of answers so far and in total.
        before_writing: Called when all questions are answered. If it raises, `answers.parquet`
            stays as it was.

    Returns:
        The manifest of the answers, and the questions.

    Raises:
        LlavaMedError: The data is incomplete or damaged, the model cannot be loaded, questions
            are left without an answer, or the folder holds answers of another model.
    """
    benchmark, split = find_benchmark(asked.benchmark, asked.split)
    conditions = check_conditions(asked.controls)
    listed = list_questions(
        benchmark.name,
        split,
        asked.path,
        folder,
        instruction=asked.instruction,
        max_bad_fraction=asked.max_bad_fraction,
        limit=asked.limit,
    )
    questions: Questions = ProbingPairs(listed) if asked.probe else listed
    num_questions = _count_pairs(questions, asked) if asked.probe else listed.num_questions
    manifest = _manifest(
        candidate,
        conditions,
        max_new_tokens=asked.max_new_tokens,
        questions=f"{benchmark.title}{'+probes' if asked.probe else ''}",
        prompt=benchmark.prompt if asked.instruction is None else asked.instruction,
        split=split,
        questions_fingerprint=listed.fingerprint,
        num_questions=num_questions,
        quarantined=dict(listed.quarantined),
    )
    before = find(AnswersManifest, folder)
    _check_same_subject(before, manifest, folder)
    is_there = before is not None and (folder / ANSWERS).exists()
    if before is not None and is_there and before.fingerprint == manifest.fingerprint:
        logger.info("evaluate: all answers are there, nothing is asked")
        return before.replace(num_generated=0), questions
    candidates = {name: candidate for name in conditions if name != MAJORITY}
    task = Task(questions, candidates, asked.max_new_tokens, str(folder))
    total = num_questions * len(candidates)
    counts = (
        answer_on_ray(task, num_workers=num_workers, use_gpu=use_gpu, max_failures=0)
        if num_workers
        else answer_here(task)
    )
    count = add_up(counts, lambda done: on_progress(done, total))
    _check_complete(candidate, count, total)
    before_writing()
    collect(task, folder, Majority.of(questions) if MAJORITY in conditions else None)
    manifest = manifest.replace(num_generated=count.generated)
    write(folder, manifest)
    return manifest, questions


def _check_same_subject(
    before: AnswersManifest | None, manifest: AnswersManifest, folder: Location
) -> None:
    """Refuse to put answers in place of another model's, or of those to another benchmark.

    Raises:
        ConfigError: The folder holds such answers.
    """
    if before is None:
        return
    is_same_model = manifest.model_fingerprint == before.model_fingerprint
    if before.questions != manifest.questions or not (
        is_same_model or manifest.model == before.model
    ):
        raise ConfigError(
            f"output={folder}: holds the answers of {before.model} to {before.questions}; name "
            f"another folder for those of {manifest.model} to {manifest.questions}"
        )


def _check_complete(candidate: Candidate, count: AnswerCounts, total: int) -> None:
    """Refuse an incomplete set of answers. Raises: EndpointError."""
    if count.missing:
        raise EndpointError(
            f"model={candidate.name}: {count.missing} of {total} questions have no answer, because "
            "their requests failed; nothing is scored; start the same command again, which asks "
            "only those"
        )


def check_conditions(controls: Sequence[str]) -> tuple[str, ...]:
    """Return the conditions to answer under, `trained` first.

    Raises:
        ConfigError: A control is unknown, or is only for the stages of a run.
    """
    possible = [*(name for name in CONDITIONS if name != TRAINED), MAJORITY]
    for name in controls:
        if name not in possible:
            known = ", ".join(possible)
            raise ConfigError(f"control={name}: is not a control; use some of {known}")
    return tuple(dict.fromkeys((TRAINED, *controls)))


def _count_pairs(questions: Questions, asked: Asked) -> int:
    number = sum(
        len(questions.read(chunk, with_pictures=False)) for chunk in range(questions.num_chunks)
    )
    if not number:
        raise ConfigError(
            f"probe: none of the questions of {asked.benchmark} asks whether a finding is there; "
            "ask the questions themselves"
        )
    return number


def _manifest(
    candidate: Candidate,
    conditions: tuple[str, ...],
    *,
    max_new_tokens: int,
    questions: str,
    questions_fingerprint: str,
    num_questions: int,
    quarantined: dict[str, int],
    prompt: str = "",
    split: str = "",
    overlaps: tuple[Overlap, ...] | None = None,
) -> AnswersManifest:
    facts: dict[str, Any] = {
        "model_fingerprint": candidate.fingerprint,
        "template": candidate.template,
        "max_new_tokens": max_new_tokens,
        "questions": questions,
        "prompt": prompt,
        "split": split,
        "questions_fingerprint": questions_fingerprint,
        "conditions": conditions,
    }
    return AnswersManifest(
        **facts,
        model=candidate.name,
        kind=candidate.kind,
        template_name=candidate.template_name,
        num_questions=num_questions,
        num_generated=0,
        quarantined=quarantined,
        overlaps=overlaps,
        fingerprint=fingerprint(facts),
    )
