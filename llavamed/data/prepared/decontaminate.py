"""Find, report and optionally remove training samples that an evaluation set also contains.

This compares the content hashes of prepared datasets. Removing writes new tables and then a
manifest that points to them; the shards do not change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llavamed.config.gate import Criterion
from llavamed.config.run import RunConfig
from llavamed.data.prepared.content import MAX_DISTANCE, NO_TEXT, Words, as_words, near
from llavamed.data.prepared.dataset import CONTENT, PreparedDataset, open_prepared
from llavamed.data.prepared.sample_tables import read_sample_tables
from llavamed.errors import ConfigError, DataError
from llavamed.processor.turns import IMAGE_PLACEHOLDER
from llavamed.storage.location import Location, locate
from llavamed.storage.manifest import Decontamination, write

CONTAMINATION = "contamination.parquet"
CONTAMINATION_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64()),
        pa.field("id", pa.string()),
        pa.field("against", pa.string()),
        *(pa.field(criterion, pa.string()) for criterion in get_args(Criterion)),
        pa.field("distance", pa.int32()),
    ]
)
"""Schema of `contamination.parquet`, one row for each matching sample and evaluation set. `row` is
the sample's position in its source. Each criterion holds the id of an evaluation sample that
matches by it, or null. `distance` is that of the nearest image, in bits."""

_BATCH_SAMPLES = 4096
_NUM_EXAMPLES = 5


@dataclass(frozen=True)
class Contamination:
    """The samples of a training set that match samples of evaluation sets."""

    dataset: PreparedDataset
    against: tuple[PreparedDataset, ...]
    by: tuple[Criterion, ...]
    max_distance: int
    matches: pa.Table
    """Table of `CONTAMINATION_SCHEMA`, in the order of the training set."""

    @property
    def report(self) -> Location:
        """The file with the matches."""
        return self.dataset.location / CONTAMINATION

    def count(self, criteria: Sequence[Criterion], against: str | None = None) -> int:
        """Count the training samples that match any of the criteria.

        Args:
            against: Name of one evaluation set, or None for all of them.
        """
        matches = self.chosen(criteria)
        if against is not None:
            matches = matches.filter(pc.equal(matches.column("against"), against))
        return int(pc.count_distinct(matches.column("row")).as_py())

    def chosen(self, criteria: Sequence[Criterion]) -> pa.Table:
        """Return the matches by any of the criteria."""
        found = [self.matches.column(name).is_valid().to_numpy() for name in criteria]
        return self.matches.filter(np.logical_or.reduce(found))

    def examples(self) -> list[dict[str, Any]]:
        """Return a few matches spread over the set, each with the `words` of its question."""
        matches = self.chosen(self.by)
        step = max(1, matches.num_rows // _NUM_EXAMPLES)
        places = np.arange(0, matches.num_rows, step)[:_NUM_EXAMPLES]
        rows = self.dataset.read(CONTENT).column("row")
        return [
            match | {"words": self._question(pc.index(rows, match["row"]).as_py())}
            for match in matches.take(places).to_pylist()
        ]

    def _question(self, position: int) -> str:
        place = self.dataset.index.slice(position, 1).to_pylist()[0]
        table = self.dataset.read_row_group(place["shard"], place["row_group"], ["turns"])
        turns = table.column("turns")[place["row"]].as_py()
        asked = next(turn["text"] for turn in turns if turn["role"] == "user")
        return " ".join(asked.replace(IMAGE_PLACEHOLDER, " ").split())

    def remove(self) -> PreparedDataset:
        """Move the matching samples to the quarantine and return the dataset without them.

        Nothing is written if there are no matches. The manifest is written last; until then the
        dataset is unchanged.

        Raises:
            DataError: No sample would be left.
        """
        details: dict[int, str] = {}
        for match in self.chosen(self.by).to_pylist():
            said = [details[match["row"]]] if match["row"] in details else []
            details[match["row"]] = "; ".join([*said, self._describe(match)])
        if not details:
            return self.dataset
        tables = read_sample_tables(self.dataset)
        if len(details) == tables.index.num_rows:
            raise DataError(
                f"{self.dataset.location}: all {len(details)} samples match "
                f"{', '.join(other.name for other in self.against)} by {' or '.join(self.by)}, and "
                "none would be left; nothing was changed; choose a stricter --by, such as pair, or "
                "a lower --max-distance"
            )
        rows = tables.content.column("row").to_numpy()
        leaving = np.flatnonzero(np.isin(rows, list(details)))
        told = [details[row] for row in rows[leaving].tolist()]
        tables = tables.move_out(self.dataset.name, leaving.tolist(), "contaminated", told)
        revision = self.dataset.revision + 1
        tables.write(self.dataset.location, revision)
        manifest = self.dataset.manifest
        entry = Decontamination(
            against={other.name: other.manifest.fingerprint for other in self.against},
            by=tuple(self.by),
            max_distance=self.max_distance,
            num_removed=len(details),
        )
        changed = manifest.replace(
            **tables.counts(),
            fingerprint=tables.fingerprint(manifest),
            revision=revision,
            decontaminated=(*manifest.decontaminated, entry),
        )
        write(self.dataset.location, changed)
        return open_prepared(self.dataset.location)

    def _describe(self, match: "ContaminationRow") -> str:
        """Describe by which criteria a sample matches."""
        facts = []
        for criterion in self.by:
            if match[criterion] is not None:
                bits = f" {match['distance']} bits from that" if criterion == "image" else ""
                facts.append(f"{criterion}{bits} of {match[criterion]}")
        return f"{match['against']}: {', '.join(facts)}"


def find_contamination(
    config: RunConfig,
    name: str,
    against: Sequence[str],
    *,
    by: Sequence[str] | None = None,
    max_distance: int | None = None,
) -> Contamination:
    """Compare a prepared training set with prepared evaluation sets, and write the report.

    Args:
        config: The config of the run that prepared the datasets.
        name: The training set.
        against: The evaluation sets.
        by: Criteria of a match; by default image and question.
        max_distance: Maximum number of bits in which equal images differ; by default
            `MAX_DISTANCE`.

    Raises:
        ConfigError: A dataset or criterion is unknown.
        DataError: A dataset is not prepared.
    """
    criteria = tuple(dict.fromkeys(by or ("image", "question")))
    for criterion in criteria:
        if criterion not in get_args(Criterion):
            known = ", ".join(get_args(Criterion))
            raise ConfigError(f"by={criterion}: is not a criterion; use some of: {known}")
    config.data.check_name(name)
    for other in against:
        config.data.check_name(other, "against")
        if other == name:
            raise ConfigError(f"against={other}: is the dataset itself; name an evaluation set")
    directory = locate(config.datasets_directory)
    distance = MAX_DISTANCE if max_distance is None else max_distance
    dataset = open_prepared(directory / name)
    others = tuple(open_prepared(directory / other) for other in dict.fromkeys(against))
    held = [_Known.read(other) for other in others]
    matches: list[ContaminationRow] = []
    for batch in read_sample_tables(dataset).content.to_batches(max_chunksize=_BATCH_SAMPLES):
        for evaluation in held:
            matches += evaluation.match(batch, distance)
    table = pa.Table.from_pylist(matches, CONTAMINATION_SCHEMA).sort_by("row")
    found = Contamination(dataset, others, criteria, distance, table)  # type: ignore[arg-type]
    found.report.write_table(table)
    return found


class ContaminationRow(TypedDict):
    """A row of `CONTAMINATION_SCHEMA`."""

    row: int
    id: str
    against: str
    image: str | None
    question: str | None
    pair: str | None
    text: str | None
    distance: int | None


@dataclass(frozen=True)
class _Known:
    """The content of an evaluation set, each part with the id of the first sample that has it."""

    name: str
    words: Words
    """The hashes of the different images: uint64 array of shape [images, 4]."""
    images: list[str]
    """Ids of samples, by the number of the image."""
    questions: dict[bytes, str]
    pairs: dict[tuple[int, bytes], str]
    """Ids of samples, by the number of an image and the hash of a question about it."""
    texts: dict[tuple[bytes, bytes], str]
    """Ids of samples, by the hashes of a question and its answer."""

    @classmethod
    def read(cls, dataset: PreparedDataset) -> "_Known":
        numbers: dict[bytes, int] = {}
        known = cls(dataset.name, np.empty((0, 4), np.uint64), [], {}, {}, {})
        for sample in dataset.read(CONTENT).to_pylist():
            questions = [found for found in sample["question_hashes"] if found != NO_TEXT]
            for image in sample["image_hashes"]:
                if image not in numbers:
                    numbers[image] = len(numbers)
                    known.images.append(sample["id"])
                for question in questions:
                    known.pairs.setdefault((numbers[image], question), sample["id"])
            for question in questions:
                known.questions.setdefault(question, sample["id"])
            for text in zip(sample["question_hashes"], sample["answer_hashes"], strict=False):
                if text[1] != NO_TEXT:
                    known.texts.setdefault(text, sample["id"])
        words = np.frombuffer(b"".join(numbers), dtype=np.uint64).reshape(-1, 4)
        return cls(known.name, words, known.images, known.questions, known.pairs, known.texts)

    def match(self, batch: pa.RecordBatch, max_distance: int) -> list[ContaminationRow]:
        """Return the rows of `CONTAMINATION_SCHEMA` for a batch of `CONTENT_SCHEMA`."""
        images = batch.column("image_hashes")
        owners = pc.list_parent_indices(images).to_numpy()
        close: dict[int, list[tuple[int, int]]] = {}
        found = near(as_words(images.flatten()), self.words, max_distance)
        for place, image, distance in zip(*(values.tolist() for values in found), strict=True):
            close.setdefault(int(owners[place]), []).append((distance, image))
        matches: list[ContaminationRow] = []
        for number, sample in enumerate(batch.to_pylist()):
            questions = [found for found in sample["question_hashes"] if found in self.questions]
            answered = zip(sample["question_hashes"], sample["answer_hashes"], strict=False)
            texts = [self.texts[text] for text in answered if text in self.texts]
            alike = sorted(close.get(number, []))
            if not (questions or texts or alike):
                continue
            both = [
                self.pairs[image, question]
                for _, image in alike
                for question in questions
                if (image, question) in self.pairs
            ]
            distance, image = alike[0] if alike else (None, None)
            matches.append(
                {
                    "row": sample["row"],
                    "id": sample["id"],
                    "against": self.name,
                    "image": None if image is None else self.images[image],
                    "question": self.questions[questions[0]] if questions else None,
                    "pair": both[0] if both else None,
                    "text": texts[0] if texts else None,
                    "distance": distance,
                }
            )
        return matches
