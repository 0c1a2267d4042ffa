"""Check that a prepared dataset can be scored, before anything is trained."""

from collections import Counter
from collections.abc import Collection

from llavamed.data.prepared.dataset import PreparedDataset
from llavamed.errors import DataError

NO_TYPE = "without an answer type"
_ADVICE = {
    "without an id": "give each question an id",
    "with the id of another": "give each question an id of its own",
    "not asked by a user at the end": "let the last two turns be a question and its answer",
    "without a reference answer": "let the last turn be the answer",
    NO_TYPE: "say OPEN or CLOSED in answer_type",
}


def check_questions(
    dataset: PreparedDataset, key: str, problems: Collection[str] = tuple(_ADVICE)
) -> None:
    """Raise DataError unless all questions of a dataset can be distinguished, asked and scored.

    This reads the text of all samples but none of their images.

    Args:
        key: The setting that names the dataset.
        problems: What to look for. By default everything.

    Raises:
        DataError: A question has no id or another's id, no user turn, no reference answer or no
            answer type.
    """
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    seen: set[str] = set()
    for shard, group in dataset.row_groups():
        table = dataset.read_samples(shard, group, ["id", "turns", "answer_type"])
        for sample in table.to_pylist():
            found = _problems(sample["id"], sample["turns"], sample["answer_type"], seen)
            for problem in found:
                if problem in problems:
                    counts[problem] += 1
                    first.setdefault(problem, sample["id"])
            seen.add(sample["id"])
    if counts:
        number = dataset.num_samples
        facts = ", ".join(
            f"{count:,} of {number:,} {problem} (the first is {first[problem]!r})"
            for problem, count in counts.most_common()
        )
        advice = ", ".join(_ADVICE[problem] for problem, _ in counts.most_common())
        raise DataError(f"{key}={dataset.name}: its questions cannot be scored: {facts}; {advice}")


def _problems(
    name: str, turns: list[dict[str, str]], answer_type: str, seen: set[str]
) -> list[str]:
    asked = [turn["role"] for turn in turns[-2:]]
    answered = asked[-1:] == ["assistant"] and bool(turns[-1]["text"].strip())
    found = {
        "without an id": not name,
        "with the id of another": bool(name) and name in seen,
        "without a reference answer": not answered,
        "not asked by a user at the end": answered and asked[0] != "user",
        NO_TYPE: answer_type not in {"OPEN", "CLOSED"},
    }
    return [problem for problem, is_so in found.items() if is_so]
