"""What was planted is found and nothing else; a kill leaves the old dataset or the new."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from llavamed.config.load import dump_config, parse_config
from llavamed.data.prepared.content import near
from llavamed.data.prepared.dataset import CONTENT, QUARANTINE, open_prepared
from llavamed.data.prepared.decontaminate import CONTAMINATION_SCHEMA, find_contamination
from llavamed.data.prepared.sample_tables import read_sample_tables
from llavamed.errors import ConfigError, DataError
from llavamed.storage.location import Location, locate
from llavamed.storage.manifest import Decontamination
from tests.support.planted_datasets import DISTANCE, PLANTED, make, planted_rows
from tests.support.small_datasets import Prepared, content, prepare, write


@pytest.fixture(scope="module")
def rows():
    return planted_rows()


@pytest.fixture
def planted(rows, tiny_config, tmp_path):
    """The two datasets, prepared in a folder of their own, and the config that leads there."""
    return make(rows, tiny_config, str(tmp_path))


def find(config, by=None, against=("test-questions",), max_distance=DISTANCE):
    return find_contamination(config, "questions", list(against), by=by, max_distance=max_distance)


def state(config) -> dict[str, bytes]:
    """Every file of the training set but the report."""
    folder = Path(config.datasets_directory) / "questions"
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.name: path.read_bytes() for path in files if path.name != "contamination.parquet"}


def kinds(*wanted: str) -> set[str]:
    return {f"train-{place}" for place, (kind, _) in PLANTED.items() if kind in wanted}


IMAGES = kinds("image", "both", "all")
QUESTIONS = kinds("question", "both", "all", "later question")
BY = {"image": IMAGES, "question": QUESTIONS, "pair": kinds("both", "all"), "text": kinds("all")}


@pytest.mark.parametrize("by", BY)
def test_exactly_the_planted_samples_are_found(planted, by):
    found = find(planted, by=[by])
    chosen = found.chosen([by]).to_pylist()
    assert {match["id"] for match in chosen} == BY[by]
    assert found.count([by]) == found.count([by], "test-questions") == len(BY[by])
    for match in chosen:
        assert match["row"] == int(match["id"].removeprefix("train-"))
        assert match[by] == f"test-{PLANTED[match['row']][1]}"
        assert (match["distance"] is None) == (match["image"] is None)


def test_the_report_lies_beside_the_dataset_and_nothing_else_changes(planted):
    before = state(planted)
    found = find(planted, against=["test-questions", "dialogues"])
    table = found.report.read_table()
    assert table.schema == CONTAMINATION_SCHEMA
    assert table == found.matches
    assert set(table["against"].to_pylist()) == {"test-questions"}
    assert set(table["id"].to_pylist()) == IMAGES | QUESTIONS
    assert state(planted) == before
    examples = found.examples()
    assert 0 < len(examples) <= 6
    assert examples[0]["words"] == "What is shown in 3?"


def test_removed_samples_leave_index_and_content_for_the_quarantine(planted, rows):
    old = open_prepared(locate(planted.datasets_directory) / "questions")
    dataset = find(planted).remove()
    left = [row for row in rows[0] if row["id"] not in IMAGES | QUESTIONS]
    tables = read_sample_tables(dataset)
    assert tables.content["id"].to_pylist() == [row["id"] for row in left]
    gone = tables.quarantine.to_pylist()
    assert {row["id"] for row in gone} == IMAGES | QUESTIONS
    assert {row["reason"] for row in gone} == {"contaminated"}
    details = {row["id"]: row["detail"] for row in gone}
    assert details["train-12"] == "test-questions: question of test-1"
    assert details["train-3"].startswith("test-questions: image ")
    assert details["train-3"].endswith(" bits from that of test-0")
    facts = dataset.manifest
    assert facts.num_samples == len(left)
    assert facts.quarantined == {"contaminated": len(gone)}
    assert facts.num_tokens == sum(len(row["input_ids"]) for row in left)
    assert facts.num_images == len(left)
    assert facts.num_truncated == sum(i % 50 % 2 for i, row in enumerate(rows[0]) if row in left)
    assert facts.fingerprint != old.manifest.fingerprint
    assert facts.made_from == old.manifest.made_from, "or it would be prepared again"
    assert facts.decontaminated == (
        Decontamination(
            against={"test-questions": "test-questions"},
            by=("image", "question"),
            max_distance=DISTANCE,
            num_removed=len(gone),
        ),
    )


def test_removing_twice_is_removing_once_and_two_ways_lead_to_one_dataset(
    planted, rows, tiny_config, tmp_path
):
    once = find(planted).remove()
    before = state(planted)
    again = find(planted)
    assert again.matches.num_rows == 0
    assert again.remove().manifest == once.manifest
    assert state(planted) == before

    other = make(rows, tiny_config, str(tmp_path / "other"))
    find(other, by=["image"]).remove()
    twice = find(other, by=["question"]).remove()
    assert twice.revision == 2
    assert [entry.num_removed for entry in twice.manifest.decontaminated] == [4, 2]
    assert twice.manifest.fingerprint == once.manifest.fingerprint
    assert twice.index == once.index


class Killed(BaseException):
    """What no code of ours catches."""


@pytest.mark.parametrize("writes", range(5))
def test_a_kill_between_the_writes_leaves_the_old_dataset_or_the_new(planted, monkeypatch, writes):
    """Index, content, quarantine, manifest: only the last makes the change."""
    place = locate(planted.datasets_directory) / "questions"
    old = open_prepared(place).manifest
    found, done, write_bytes = find(planted), [], Location.write_bytes

    def write_or_die(self: Location, data: bytes) -> None:
        if len(done) == writes:
            raise Killed
        done.append(self.name)
        write_bytes(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Location, "write_bytes", write_or_die)
        if writes < 4:
            with pytest.raises(Killed):
                found.remove()
        else:
            found.remove()
            assert done[-1] == "manifest.json"
            assert len(done) == 4
    dataset = open_prepared(place)
    assert (dataset.manifest == old) == (writes < 4)
    counts = read_sample_tables(dataset).counts()
    assert counts == {key: getattr(dataset.manifest, key) for key in counts}
    assert find(planted).remove().num_samples == 54
    assert read_sample_tables(open_prepared(place)).counts()["num_quarantined"] == 6


@pytest.mark.parametrize("packing", [True, False])
def test_a_loader_sees_every_remaining_sample_exactly_once(tiny_config, tmp_path, packing):
    whole = prepare(str(tmp_path / "questions"), 330)
    leaving = np.random.default_rng(0).choice(330, 200, replace=False).tolist()
    leaving += range(96, 112)  # two whole row groups
    write(str(tmp_path / "test-questions"), [whole.rows[i] for i in sorted(set(leaving))])
    tree = tiny_config.model_dump(mode="json")
    tree["data"]["directory"] = str(tmp_path)
    dataset = find_contamination(
        parse_config(tree), "questions", ["test-questions"], by=["pair", "text"], max_distance=0
    ).remove()
    left = [row for i, row in enumerate(whole.rows) if i not in set(leaving)]
    assert dataset.num_samples == len(left)
    rest = Prepared(dataset, left)
    order = rest.order(num_epochs=1, packing=packing)
    rows = {row["id"]: row for row in left}
    seen = []
    for step in rest.loader(order, packing=packing).steps():
        for batch in step:
            seen += batch.sample_ids
            assert batch.num_tokens == sum(
                len(rows[name]["input_ids"]) for name in batch.sample_ids
            )
    assert sorted(seen) == sorted(rows)
    read = [dataset.read_samples(*group, ["id"]) for group in dataset.row_groups()]
    assert pa.concat_tables(read)["id"].to_pylist() == [row["id"] for row in left]


def test_when_all_would_go_nothing_does(planted):
    before = state(planted)
    found = find(planted, max_distance=255)
    with pytest.raises(DataError, match="all 60 samples match test-questions by image or question"):
        found.remove()
    assert state(planted) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mri", ["questions"]), "dataset=mri: is not in data.datasets; use one of: captions"),
        (("questions", ["mri"]), "against=mri: is not in data.datasets; use one of: captions"),
        (("questions", ["questions"]), "against=questions: is the dataset itself; name an eval"),
    ],
    ids=["dataset", "against", "itself"],
)
def test_datasets_that_cannot_be_compared_are_refused(planted, arguments, message):
    with pytest.raises(ConfigError, match=message):
        find_contamination(planted, *arguments)
    with pytest.raises(ConfigError, match="by=words: is not a criterion; use some of: image, que"):
        find(planted, by=["image", "words"])


def test_a_dataset_must_be_prepared_and_whole(planted):
    with pytest.raises(DataError, match="no prepared dataset there"):
        find(planted, against=["captions"])
    place = locate(planted.datasets_directory) / "questions"
    table = (place / CONTENT).read_table()
    (place / CONTENT).write_table(table.slice(1))
    with pytest.raises(DataError, match="60 samples in the index, 59 in the content, 60 in the m"):
        find(planted)
    (place / CONTENT).remove()
    with pytest.raises(DataError, match=r"content\.parquet: is missing; prepare the dataset again"):
        find(planted)


def test_on_object_storage(rows, tiny_config, s3_uri):
    config = make(rows, tiny_config, f"{s3_uri}/decontaminate")
    dataset = find(config, by=["pair"]).remove()
    assert dataset.num_samples == 58
    assert dataset.read(QUARANTINE)["id"].to_pylist() == ["train-40", "train-50"]
    assert find(config, by=["pair"]).matches.num_rows > 0, "by the other criteria"


def test_the_command_shows_the_consequences_before_it_removes(planted, tmp_path, llavamed):
    file = tmp_path / "run.yaml"
    file.write_text(dump_config(planted), encoding="utf-8")
    words = ["data", "decontaminate", "--config", str(file), "--dataset", "questions"]
    words += ["--against", "test-questions", "--against", "dialogues", "--max-distance", "12"]

    def call(*more):
        code, out, _ = llavamed(*words, *more)
        return code, " ".join(out.split())

    before = state(planted)
    code, out = call()
    assert code == 0
    assert "Samples of questions (60) that match" in out
    assert "* image (within 12 of 256 bits) │ 4 (6.7%) │ 0 (0.0%) │ 4 (6.7%)" in out
    assert "│ pair (both of one sample) │ 2 (3.3%) │ 0 (0.0%) │ 2 (3.3%)" in out
    assert (
        "Nothing was changed; --remove would take out 6 of 60 samples (10.0%) by image or "
        "question and leave 54"
    ) in out
    assert state(planted) == before
    code, out = call("--by", "pair", "--remove")
    assert code == 0
    assert "* pair (both of one sample) │ 2 (3.3%)" in out
    assert "Removed 2 of 60 samples (3.3%) by pair; 58 are left, the others are in the quara" in out
    code, out = call("--by", "pair", "--remove")
    assert "Nothing was changed: none of 58 samples match by pair" in out


def test_no_phantom_of_these_is_near_another(rows):
    """What the tests above rest on."""
    train, test = rows
    originals = [row for i, row in enumerate(train) if i not in PLANTED] + test
    hashes = [content(0, row)["image_hashes"][0] for row in originals]
    words = np.frombuffer(b"".join(hashes), np.uint64).reshape(-1, 4)
    assert near(words, words, DISTANCE)[0].tolist() == list(range(len(words)))
