"""The tables of dialogues: what each row says of where it comes from, and what the folder holds."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa

from llavamed.errors import DataError, LlavaMedError
from llavamed.storage.manifest import Manifest

DIALOGUE_SCHEMA = pa.schema(
    [
        ("figure_id", pa.string()),
        ("pmcid", pa.string()),
        ("pmid", pa.string()),
        ("licence", pa.string()),
        ("modality", pa.string()),
        ("image", pa.string()),
        ("notes", pa.string()),
        ("outcome", pa.string()),
        ("detail", pa.string()),
        ("turns", pa.list_(pa.struct([("speaker", pa.string()), ("text", pa.string())]))),
        ("scores", pa.map_(pa.string(), pa.float64())),
        ("exchanges", pa.list_(pa.struct([("question", pa.string()), ("answer", pa.string())]))),
        (
            "findings",
            pa.list_(
                pa.struct([("rule", pa.string()), ("exchange", pa.int32()), ("found", pa.string())])
            ),
        ),
        ("generator", pa.string()),
        ("answered_by", pa.string()),
        ("prompt_hash", pa.string()),
        ("request_hash", pa.string()),
        ("filters_hash", pa.string()),
        ("response_id", pa.string()),
        ("system_fingerprint", pa.string()),
        ("received_at", pa.string()),
        ("attempts", pa.int32()),
        ("is_repaired", pa.bool_()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("is_estimated", pa.bool_()),
        ("cost", pa.float64()),
        ("checker", pa.string()),
        ("checker_hash", pa.string()),
        ("checker_cost", pa.float64()),
    ]
)
"""Schema of `dialogues-*.parquet`, one row per figure that was asked about. `turns` are as the
model wrote them, `exchanges` those that passed, and `findings` what the rules of `filters_hash`
found. `request_hash` names the raw answer below the folder of answers. `notes` are what the model
read."""


class DialoguesManifest(Manifest):
    """A folder of dialogues."""

    VERSION: ClassVar[int] = 1
    ERROR: ClassVar[type[LlavaMedError]] = DataError
    HINT: ClassVar[str] = "run `llavamed corpus dialogues` again, which pays for no answer twice"

    generator: str
    """The model as it was asked for."""
    checker: str | None
    """The model that checked the answers, null where none did."""
    prompt_hash: str
    """Hash of the prompts."""
    filters_hash: str
    """Hash of the rules that filter."""
    selection: str
    """Hash of the selected figures that were asked about."""
    num_figures: int
    """Figures that were asked about."""
    num_dialogues: int
    """Those whose dialogue passed, at least in part."""
    num_exchanges: int
    """Pairs of a question and an answer that passed."""
    outcomes: dict[str, int]
    """Figures by how the request ended."""
    findings: dict[str, int]
    """Findings by rule."""
    modalities: dict[str, int]
    """Dialogues that passed, by modality."""
    prompt_tokens: int
    """Tokens of all prompts."""
    completion_tokens: int
    """Tokens of all answers."""
    cost: float | None
    """Price of all answers when they were paid for, None without prices."""


@dataclass
class Tally:
    """Counts over many rows, which are not kept."""

    counts: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)
    modalities: Counter[str] = field(default_factory=Counter)
    cost: float | None = None

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Count rows of `DIALOGUE_SCHEMA`."""
        for row in rows:
            self.outcomes[row["outcome"]] += 1
            self.findings.update(each["rule"] for each in row["findings"])
            self.counts["num_figures"] += 1
            for key in ("prompt_tokens", "completion_tokens"):
                self.counts[key] += row[key]
            if row["exchanges"]:
                self.modalities[row["modality"]] += 1
                self.counts["num_dialogues"] += 1
                self.counts["num_exchanges"] += len(row["exchanges"])
            for key in ("cost", "checker_cost"):
                if row[key] is not None:
                    self.cost = (self.cost or 0.0) + row[key]

    def facts(self) -> dict[str, Any]:
        """Return the counts under the names of the manifest."""
        names = ("num_figures", "num_dialogues", "num_exchanges")
        return {
            **{name: self.counts[name] for name in (*names, "prompt_tokens", "completion_tokens")},
            "outcomes": dict(sorted(self.outcomes.items())),
            "findings": dict(sorted(self.findings.items())),
            "modalities": dict(sorted(self.modalities.items())),
            "cost": self.cost,
        }
