"""Which checkpoints are kept: a rule of its own, whatever the moments it is asked at."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from llavamed.config.run import Checkpoint
from llavamed.train.checkpoint.retention import Saved, names_to_keep

HOUR = 3600.0
RULES = st.builds(
    Checkpoint,
    num_to_keep=st.integers(1, 4),
    keep_best=st.sampled_from(["none", "loss"]),
    keep_every_hours=st.none() | st.floats(0.1, 5.0),
)
SAVES = st.lists(st.tuples(st.floats(0.0, 2 * HOUR), st.sampled_from([0.1, 0.2, 0.5, 0.9])))


def saved(saves: Sequence[tuple[float, float]]) -> list[Saved]:
    """Checkpoints so many seconds after each other, with these losses."""
    found, now = [], 0.0
    for step, (seconds, loss) in enumerate(saves, start=1):
        now += seconds
        found.append(Saved(f"step-{step:06d}", now, loss))
    return found


@given(SAVES.map(saved), RULES)
def test_what_is_kept_after_each_save_is_what_would_be_kept_at_the_end(
    history: list[Saved], rule: Checkpoint
) -> None:
    left: list[Saved] = []
    for one in history:
        left.append(one)
        names = names_to_keep(left, rule)
        left = [each for each in left if each.name in names]
    assert {one.name for one in left} == names_to_keep(history, rule)


@given(SAVES.map(saved).filter(bool), RULES)
def test_the_newest_the_best_and_one_of_every_span_of_hours_stay(
    history: list[Saved], rule: Checkpoint
) -> None:
    kept = [one for one in history if one.name in names_to_keep(history, rule)]
    newest = history[-rule.num_to_keep :]
    assert kept[-len(newest) :] == newest
    if rule.keep_best == "loss":
        assert min(one.loss for one in kept) == min(one.loss for one in history)
    if rule.keep_every_hours is not None:
        span = rule.keep_every_hours * HOUR
        spans = {one.seconds // span for one in history} - {0}
        assert {one.seconds // span for one in kept} >= spans
        num_spans = len(spans)
    else:
        num_spans = 0
    assert len(kept) <= rule.num_to_keep + (rule.keep_best == "loss") + num_spans


def test_by_default_only_the_newest_stay() -> None:
    history = saved([(HOUR, loss) for loss in (0.1, 0.2, 0.3, 0.4)])
    assert names_to_keep(history, Checkpoint()) == {"step-000003", "step-000004"}


def test_hours_are_of_training_and_the_first_one_after_each_stays() -> None:
    history = saved([(0.4 * HOUR, 1.0)] * 8)  # at 0.4, 0.8, 1.2, 1.6, 2.0, 2.4, 2.8 and 3.2 hours
    rule = Checkpoint(num_to_keep=1, keep_every_hours=1.0)
    assert names_to_keep(history, rule) == {"step-000003", "step-000005", "step-000008"}


def test_of_equally_good_ones_the_oldest_stays() -> None:
    history = saved([(1.0, 0.5), (1.0, 0.2), (1.0, 0.2), (1.0, 0.9)])
    rule = Checkpoint(num_to_keep=1, keep_best="loss")
    assert names_to_keep(history, rule) == {"step-000002", "step-000004"}
