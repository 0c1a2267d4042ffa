"""Check a model against a policy, and report by how much each rule is missed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from llavamed.config.gate import GatePolicy
from llavamed.errors import ConfigError, DataError, GateError
from llavamed.evaluate.answers import Answer
from llavamed.evaluate.measures import MEASURES, NO_ANSWER, measure
from llavamed.evaluate.scoring import BLANK, find_group
from llavamed.evaluate.statistics import cluster_indices, cluster_key, difference_intervals
from llavamed.storage.manifest import EstimateFacts, ExportManifest, ScoresManifest


@dataclass(frozen=True, slots=True)
class RuleResult:
    """One rule of a policy and whether a model meets it."""

    rule: str
    """Key of the rule in the policy."""
    is_met: bool
    found: str
    """The value of the model, and by how much it misses the rule."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """The facts by which a model is checked.

    Attributes:
        scores: Scores of its evaluation.
        answers: Its answers to the unchanged questions.
        export: Manifest of its export; None if the export is incomplete.
        licences: Number of training samples by licence, and then by dataset.
    """

    scores: ScoresManifest
    answers: Sequence[Answer]
    export: ExportManifest | None
    licences: Mapping[str, Mapping[str, int]]


def check_policy(
    policy: GatePolicy, model: Evidence, champion: Sequence[Answer] | None
) -> list[RuleResult]:
    """Return every rule of a policy with its result. Raises: ConfigError.

    Args:
        model: The model that is to become the champion.
        champion: The answers of the champion to the same questions, None where there is no
            champion.
    """
    return [
        *_at_least("min_scores", policy.min_scores, model.scores),
        *_at_least("min_grounding", policy.min_grounding, model.scores, BLANK),
        *_no_answer(policy, model.scores),
        *_overlap(policy, model.scores),
        *_export(policy, model),
        *_licences(policy, model),
        *_losses(policy, model.answers, champion),
    ]


def require(checks: Sequence[RuleResult], name: str) -> None:
    """Refuse a model that breaks a rule. Raises: GateError, naming every broken rule."""
    broken = [f"{check.rule}: {check.found}" for check in checks if not check.is_met]
    if broken:
        raise GateError(
            f"model={name}: breaks {len(broken)} of {len(checks)} rules of the policy: "
            f"{'; '.join(broken)}; the champion stays, train a better model or change the policy"
        )


def _estimate(scores: ScoresManifest, key: str, rule: str, control: str = "") -> EstimateFacts:
    """Return a score such as `closed_strict`, or its gain over a control."""
    part, _, name = key.partition("_")
    group = find_group(scores.groups, part)
    values: Mapping[str, EstimateFacts] = {}
    if group is not None:
        values = group.gains.get(control, {}) if control else group.scores[scores.conditions[0]]
    if name not in values:
        known = ", ".join(sorted(scores.scores[scores.conditions[0]]))
        what = f"a gain over {control} of it, set evaluation.controls" if control else known
        raise ConfigError(f"{rule}.{key}: the evaluation has no such score; it has {what}")
    return values[name]


def _at_least(
    rule: str, bounds: Mapping[str, float], scores: ScoresManifest, control: str = ""
) -> Iterator[RuleResult]:
    for key, least in bounds.items():
        found = _estimate(scores, key, rule, control)
        text = f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
        if found.low < least:
            text = f"{text}, whose lower bound is {least - found.low:.3f} too low"
        yield RuleResult(f"{rule}.{key}={least:g}", found.low >= least, text)


def _no_answer(policy: GatePolicy, scores: ScoresManifest) -> Iterator[RuleResult]:
    most = policy.max_no_answer
    if most is None:
        return
    found = _estimate(scores, f"closed_{NO_ANSWER}", "max_no_answer")
    text = f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
    if found.high > most:
        text = f"{text}, whose upper bound is {found.high - most:.3f} too high"
    yield RuleResult(f"max_no_answer={most:g}", found.high <= most, text)


def _overlap(policy: GatePolicy, scores: ScoresManifest) -> Iterator[RuleResult]:
    for way, most in policy.max_overlap.items():
        rule = f"max_overlap.{way}={most:g}"
        if scores.overlaps is None:
            yield RuleResult(rule, False, "a training set of this model is unknown")
            continue
        shares = {
            name: counts.get(way, 0) / max(1, counts["samples"])
            for name, counts in scores.overlaps.items()
        }
        worst = max(shares, key=lambda name: shares[name], default=None)
        if worst is None:
            yield RuleResult(rule, True, "no training set")
            continue
        count, share = scores.overlaps[worst].get(way, 0), shares[worst]
        text = (
            f"{count:,} of {scores.overlaps[worst]['samples']:,} samples of {worst} ({share:.3%})"
        )
        if share > most:
            text = f"{text}, which is {share - most:.3%} too many"
        yield RuleResult(rule, share <= most, text)


def _export(policy: GatePolicy, model: Evidence) -> Iterator[RuleResult]:
    if not policy.export_verified:
        return
    export, wanted = model.export, model.scores.model_fingerprint
    if export is None:
        yield RuleResult(
            "export_verified", False, f"{model.scores.model} is not a complete export of ours"
        )
    elif export.fingerprint != wanted:
        text = f"the export is {export.fingerprint}, and {wanted} was scored"
        yield RuleResult("export_verified", False, text)
    else:
        text = f"loaded back, logits differ by {export.logits_difference:.1e} of the largest"
        yield RuleResult("export_verified", True, text)


def _licences(policy: GatePolicy, model: Evidence) -> Iterator[RuleResult]:
    if policy.licences is None:
        return
    rule = f"licences={', '.join(policy.licences)}"
    refused = {
        f"{count:,} samples of {dataset} have {licence or 'no licence'}"
        for licence, datasets in model.licences.items()
        if licence not in policy.licences
        for dataset, count in datasets.items()
    }
    found = ", ".join(sorted(name or "none" for name in model.licences)) or "no samples"
    yield RuleResult(rule, not refused, "; ".join(sorted(refused)) or found)


def _losses(
    policy: GatePolicy, answers: Sequence[Answer], champion: Sequence[Answer] | None
) -> Iterator[RuleResult]:
    for key, most in policy.max_loss.items():
        rule = f"max_loss.{key}={most:g}"
        if champion is None:
            yield RuleResult(rule, True, "there is no champion yet")
            continue
        try:
            before = _align(answers, champion)
        except DataError as error:
            yield RuleResult(rule, False, str(error))
            continue
        yield _loss(rule, key, most, answers, before)


def _align(answers: Sequence[Answer], champion: Sequence[Answer]) -> list[Answer]:
    """Return the champion's answers in the order of the model's answers."""
    by_id = {answer.id: answer for answer in champion}
    same = [by_id.get(answer.id) for answer in answers]
    odd = [
        answer.id
        for answer, other in zip(answers, same, strict=True)
        if other is None
        or (other.question, other.references) != (answer.question, answer.references)
    ]
    if odd or len(by_id) != len(answers):
        raise DataError(
            f"the champion answered {len(by_id)} questions and this model {len(answers)}, of which "
            f"{len(odd)} differ; evaluate the champion on the same questions"
        )
    return [other for other in same if other is not None]


def _loss(
    rule: str, key: str, most: float, answers: Sequence[Answer], champion: Sequence[Answer]
) -> RuleResult:
    part, _, name = key.partition("_")
    if name not in {each.name for each in MEASURES if each.part in ("all", part)}:
        known = ", ".join(each.name for each in MEASURES)
        raise ConfigError(f"max_loss.{key}: there is no such measure; use one of {known}")
    chosen = [
        place for place, answer in enumerate(answers) if part in ("all", answer.answer_type.lower())
    ]
    if not chosen:
        raise ConfigError(f"max_loss.{key}: there is no {part} question; remove the rule")
    now, before = (
        measure([given[place] for place in chosen])[name] for given in (answers, champion)
    )
    images = [cluster_key(answers[place].image, answers[place].id) for place in chosen]
    [found] = difference_intervals(before, now[None], cluster_indices(images))
    text = f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}] to the champion"
    if found.low < -most:
        text = f"{text}, whose lower bound is {-most - found.low:.3f} too low"
    return RuleResult(rule, bool(found.low >= -most), text)
