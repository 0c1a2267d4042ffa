"""Several datasets in one stage: each as often as asked for, evenly, and read as one."""

from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llavamed.config.load import override_config
from llavamed.config.run import RunConfig
from llavamed.data.feed.loader import StageLoader
from llavamed.data.feed.order import WINDOW_ROW_GROUPS, StageOrder, order_stage
from llavamed.data.prepared.mixture import Mixture, Share
from llavamed.errors import ConfigError, DataError
from llavamed.run.plan import plan_run
from tests.support.samples_held import SamplesHeld
from tests.support.small_datasets import prepare
from tests.support.training_setup import make_job, mixture, prepared, run_stage, small_config

DECLARED = "{num_samples: 100, mean_text_tokens: 20, mean_supervised_tokens: 5}"


def order(
    shares: list[Share], *, num_epochs: int, num_lanes: int = 4, seed: int = 0, group_size: int = 16
) -> StageOrder:
    sizes = [share.num_samples for share in shares]
    starts = np.cumsum([0, *[-(-size // group_size) for size in sizes]])
    groups = [
        np.arange(size) // group_size + start for size, start in zip(sizes, starts, strict=False)
    ]
    weights = np.random.default_rng(seed).integers(1, 40, size=sum(sizes))
    return order_stage(
        np.concatenate(groups),
        weights,
        seed=seed,
        num_lanes=num_lanes,
        capacity=100,
        num_epochs=num_epochs,
        shares=shares,
    )


def samples_of_epoch(whole: StageOrder, epoch: int) -> list[int]:
    lanes = whole.epochs[epoch].lanes
    packs = [
        whole.epochs[epoch].pack(lane, step)
        for lane in range(len(lanes))
        for step in range(len(lanes[lane]))
    ]
    return np.concatenate([np.empty(0, np.int64), *packs]).tolist()


@settings(max_examples=80)
@given(
    shares=st.lists(
        st.builds(
            Share, st.integers(1, 300), st.sampled_from([0.01, 0.25, 1 / 3, 0.5, 1.0, 1.5, 3.0])
        ),
        min_size=1,
        max_size=4,
    ).filter(lambda shares: any(share.passes * share.num_samples > 0.6 for share in shares)),
    num_epochs=st.integers(1, 5),
    num_lanes=st.sampled_from([1, 2, 3, 8]),
    seed=st.integers(0, 1000),
)
def test_each_dataset_is_passed_over_as_often_as_asked(
    shares: list[Share], num_epochs: int, num_lanes: int, seed: int
) -> None:
    whole = order(shares, num_epochs=num_epochs, num_lanes=num_lanes, seed=seed)
    seen: Counter[int] = Counter()
    for epoch in range(num_epochs):
        samples = samples_of_epoch(whole, epoch)
        seen.update(samples)
        first = 0
        for share in shares:
            own = range(first, first + share.num_samples)
            wanted = share.passes * share.num_samples
            assert abs(sum(sample in own for sample in samples) - wanted) <= 1
            times = {seen[sample] for sample in own}  # no sample is a whole pass ahead of another
            assert max(times) - min(times) <= 1
            first += share.num_samples


def test_whole_passes_take_every_sample_exactly_so_often() -> None:
    whole = order([Share(150, 2.0), Share(70)], num_epochs=2)
    for epoch in range(2):
        times = Counter(samples_of_epoch(whole, epoch))
        assert {times[sample] for sample in range(150)} == {2}
        assert {times[sample] for sample in range(150, 220)} == {1}


def test_two_halves_are_a_whole() -> None:
    whole = order([Share(151, 0.5)], num_epochs=2)
    assert sorted(samples_of_epoch(whole, 0) + samples_of_epoch(whole, 1)) == list(range(151))


def test_a_dataset_that_is_visited_once_may_come_anywhere_in_an_epoch() -> None:
    groups = np.repeat(np.arange(41), 8)
    places = [
        order_stage(
            groups,
            np.ones(328, np.int64),
            shares=[Share(8), Share(320)],
            num_lanes=1,
            capacity=8,
            num_epochs=1,
            seed=seed,
        )
        .epochs[0]
        .samples.tolist()
        .index(0)
        for seed in range(20)
    ]
    assert min(places) < 100
    assert max(places) > 228


def test_every_stretch_of_steps_keeps_the_proportions() -> None:
    shares = [Share(6400), Share(1600), Share(3200, 0.25)]
    whole = order(shares, num_epochs=1, num_lanes=8)
    wanted = np.array([6400, 1600, 800]) / 8800
    bounds = [0, 6400, 8000, 11200]
    stretch = 20  # about a window's worth of each lane
    for start in range(0, whole.num_steps - stretch, stretch):
        samples = np.concatenate(
            [np.concatenate(whole.samples(k)) for k in range(start, start + stretch)]
        )
        found = np.histogram(samples, bounds)[0] / len(samples)
        assert np.abs(found - wanted).max() < 0.12


def test_a_stage_without_a_sample_is_refused() -> None:
    message = r"data=0\.001: 1 epochs with so few passes contain none of 100 samples; raise the"
    with pytest.raises(DataError, match=message):
        order([Share(100, 0.001)], num_epochs=1)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_workers_read_the_samples_of_every_dataset(tmp_path: Path, world_size: int) -> None:
    parts = [prepare(str(tmp_path / name), size) for name, size in (("a", 120), ("b", 70))]
    data = Mixture(tuple(part.dataset for part in parts), (1.0, 2.5))
    rows = parts[0].rows + parts[1].rows
    whole = order_stage(
        data.groups,
        data.column("num_tokens"),
        seed=0,
        num_lanes=4,
        capacity=128,
        num_epochs=2,
        shares=data.shares,
    )
    for rank in range(world_size):
        loader = StageLoader(data, whole, rank=rank, world_size=world_size, packing=True)
        for step, batches in enumerate(loader.steps()):
            for batch, pack in zip(batches, whole.samples(step)[rank::world_size], strict=True):
                wanted = [rows[sample]["input_ids"] for sample in pack]
                assert batch.sample_ids == tuple(rows[sample]["id"] for sample in pack)
                if wanted:
                    assert batch.input_ids[0].tolist()[: sum(map(len, wanted))] == list(
                        chain(*wanted)
                    )


def test_row_groups_of_many_passes_are_not_held_between_them(tmp_path: Path) -> None:
    data = Mixture((prepare(str(tmp_path / "a"), 400).dataset,), (8.0,))
    whole = order_stage(
        data.groups,
        data.column("num_tokens"),
        seed=0,
        num_lanes=1,
        capacity=128,
        num_epochs=1,
        shares=data.shares,
    )
    loader = StageLoader(data, whole, rank=0, world_size=1, packing=True)
    held = SamplesHeld(loader)
    for _ in loader.steps():
        pass
    assert held.now == 0
    assert held.most <= 4 * WINDOW_ROW_GROUPS * np.bincount(data.groups).max() < data.num_samples


def test_a_stage_trains_on_a_mixture(tiny_config: RunConfig) -> None:
    config = small_config(
        tiny_config,
        "name=mixed",
        "stages.align.max_steps=2",
        "stages.align.data={captions: 1, dialogues: 0.5}",
        f"data.datasets.questions.declared={DECLARED}",
    )
    job = make_job(config)
    manifest = run_stage(job)
    assert manifest.datasets == dict(
        zip(["captions", "dialogues"], job.dataset_fingerprints, strict=True)
    )
    cost = plan_run(config, accelerator="A100")[0]
    assert cost.dataset == "captions + 0.5 dialogues"
    assert not cost.is_declared
    assert cost.num_samples == mixture(config).num_samples


def test_a_plan_counts_what_is_prepared_and_believes_the_rest(tiny_config: RunConfig) -> None:
    config = small_config(
        tiny_config,
        "stages.align.max_steps=null",
        "stages.align.data={captions: 2, questions: 0.5}",
        f"data.datasets.questions.declared={DECLARED}",
        f"data.datasets.dialogues.declared={DECLARED}",
    )
    captions = prepared(config)
    cost = plan_run(config, accelerator="A100")[0]
    assert cost.is_declared
    assert cost.num_samples == captions.num_samples + 100
    tokens = 2 * captions.manifest.num_tokens + 50 * (20 + captions.tiling.num_tile_tokens)
    assert cost.num_tokens == pytest.approx(tokens * config.stages[0].num_train_epochs)


@pytest.mark.parametrize("data", ["captions", "questions"], ids=["prepared", "declared"])
def test_a_plan_counts_the_room_that_compiled_packs_are_padded_to(
    tiny_config: RunConfig, data: str
) -> None:
    config = small_config(
        tiny_config,
        "stages.align.max_steps=null",
        f"stages.align.data={data}",
        f"data.datasets.questions.declared={DECLARED}",
        f"data.datasets.dialogues.declared={DECLARED}",
    )
    prepared(config)
    plain, compiled = (
        plan_run(override_config(config, [f"engine.kernels.compile={value}"]), accelerator="A100")[
            0
        ]
        for value in ("false", "true")
    )
    assert plain.is_declared == (data == "questions")
    assert compiled.flops == plain.flops
    assert compiled.useful_tokens == plain.useful_tokens < 1
    # All but the tower's part of the hours grows as the tokens do.
    assert plain.hours < compiled.hours <= plain.hours / plain.useful_tokens**2


def test_a_mixture_is_part_of_what_a_checkpoint_must_match(tiny_config: RunConfig) -> None:
    jobs = [
        make_job(
            small_config(tiny_config, f"stages.align.data={{captions: {passes}, dialogues: 1}}")
        )
        for passes in (1, 0.5)
    ]
    assert jobs[0].fingerprint != jobs[1].fingerprint


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{captions: 0}", r"stages.*data.*captions.*greater than 0"),
        ("{captions: 1, scans: 1}", r"stages\.align\.data=scans is not in data\.datasets; use one"),
        ("{}", r"stages.*data"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(
    tiny_config: RunConfig, data: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        small_config(tiny_config, f"stages.align.data={data}")
