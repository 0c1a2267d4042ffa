"""Of the benchmarks only what needs no clock: the gate of the packs, and what makes the table."""

import json
from pathlib import Path
from types import ModuleType

import pytest

from llavamed.data.prepared.dataset import open_prepared
from llavamed.storage.location import locate

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def packing(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import packing

    return packing


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import report

    return report


@pytest.fixture
def dataset(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import dataset

    return dataset


def test_the_dataset_of_the_benchmarks_is_one_that_training_opens(
    dataset: ModuleType, tmp_path: Path
) -> None:
    dataset.make_dataset(locate(str(tmp_path)), 5, size=28, rows_per_shard=4, row_group=2)
    opened = open_prepared(locate(str(tmp_path)))
    assert (opened.num_samples, opened.tiling.num_tile_tokens) == (5, 4)
    assert opened.column("num_images").tolist() == [1] * 5
    found = [opened.read_samples(*place, ["id"])["id"] for place in opened.row_groups()]
    ids = [name for column in found for name in column.to_pylist()]
    assert ids == [f"{number:08d}" for number in range(5)]


def test_packs_are_full_for_every_corpus(packing: ModuleType) -> None:
    scores = {c: packing.ours(packing.draw_lengths(c, 10_000)) for c in packing.CORPORA}
    gates = packing.gates(scores)
    assert len(gates) == 2 * len(packing.CORPORA)
    assert [one for one in gates if not one["passed"]] == []


@pytest.mark.parametrize("peer", ["trl", "pad_to_longest", "pad_to_max_length"])
def test_no_peer_processes_fewer_tokens_than_are_useful(packing: ModuleType, peer: str) -> None:
    score = getattr(packing, peer)(packing.draw_lengths("dialogues 336 px", 3000))
    assert 0 < score["useful"] <= 1
    assert 0 < score["full"] <= 1


def test_a_straggler_makes_all_workers_wait(packing: ModuleType) -> None:
    work = packing.np.array([100] * 7 + [200])
    assert packing.score(work, 1600, work) == {
        "full": 900 / 1600,
        "useful": 900 / 1600,
        "passes": 1,
    }


@pytest.mark.parametrize(
    ("bounds", "passed"),
    [
        ({"at_least": 2}, True),
        ({"at_least": 2.1}, False),
        ({"at_most": 2}, True),
        ({"at_most": 1}, False),
    ],
)
def test_a_missed_gate_is_the_exit_status(
    report: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bounds: dict[str, float],
    passed: bool,
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    (tmp_path / "README.md").write_text(
        "before\n<!-- table -->\nold\n<!-- end of table -->\nafter\n"
    )
    gates = [report.gate("apples", 2, **bounds)]
    assert report.finish("fruit", {"gates": gates}) == int(not passed)
    assert report.finish("fruit-quick", {"gates": gates}) == int(not passed)
    assert json.loads((tmp_path / "results" / "fruit.json").read_text())["environment"]["cpu"]
    report.main()
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("before\n<!-- table -->\n| benchmark")
    assert readme.endswith("|\n<!-- end of table -->\nafter\n")
    assert ("missed" in readme) is not passed
    assert readme.count("apples") == 1


def test_the_speed_of_the_fast_images_is_one_number_everywhere() -> None:
    results = json.loads(
        (BENCHMARKS / "results" / "prepare_images.json").read_text(encoding="utf-8")
    )
    speeds = {
        backend: [gate["value"] for gate in results["gates"] if backend in gate["measure"]]
        for backend in ("exact", "fast")
    }
    told = {name: f"{min(both):.1f} to {max(both):.1f} times" for name, both in speeds.items()}
    texts = {
        path: " ".join((BENCHMARKS.parent / path).read_text(encoding="utf-8").split())
        for path in ("llavamed/config/data.py", "llavamed/processor/images.py", "CHANGELOG.md")
    }
    assert all(told["fast"] in text for text in texts.values())
    assert told["exact"] in texts["llavamed/config/data.py"]


def test_the_table_of_gates_is_that_of_the_results(report: ModuleType) -> None:
    assert report.table() in (report.RESULTS.parent / "README.md").read_text(encoding="utf-8"), (
        "run `python benchmarks/report.py`"
    )
