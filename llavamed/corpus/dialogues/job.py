"""Dialogues for a corpus: which figures, where everything lies, and in which way to ask."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from functools import cached_property

from llavamed.config.corpus import Dialogues
from llavamed.config.run import RunConfig
from llavamed.corpus.dialogues.choose import choose
from llavamed.corpus.dialogues.generate import (
    Places,
    Plan,
    Writer,
    check_cost,
    judge_again,
    plan_dialogues,
    write_dialogues,
)
from llavamed.corpus.dialogues.gone import forget, gone_articles
from llavamed.corpus.dialogues.table import DialoguesManifest
from llavamed.corpus.figures import FigureRow, iter_kept
from llavamed.errors import ConfigError, DataError
from llavamed.llm.batch_file import read_batch, write_batches
from llavamed.storage.location import locate


class DialogueJob:
    """The dialogues of one corpus."""

    def __init__(self, config: RunConfig, held_out: Set[str]) -> None:
        """Read the prompt and the rules.

        Args:
            config: A run with a section `corpus.dialogues`.
            held_out: Articles to leave out.

        Raises:
            ConfigError: The section is missing, or a prompt or a rule is not one.
        """
        self._corpus = locate(config.corpus_directory)
        self.settings = _settings(config)
        self._writer = Writer.load(self.settings, self._corpus)
        self._places = Places(
            str(self._corpus / "answers"), self._corpus / "dialogues", self._corpus / "samples"
        )
        self._held_out = held_out
        self._chosen: frozenset[str] | None = None

    def figures(self) -> Iterator[FigureRow]:
        """Yield the figures to ask about, in the order of their parts.

        Raises:
            DataError: None is selected.
        """
        step = self._corpus / "select"
        if self._chosen is None:
            modalities = (
                (figure.id, figure.modality)
                for figure in iter_kept(step)
                if figure.pmcid not in self._held_out
            )
            names = choose(modalities, self.settings.num_dialogues, self.settings.seed)
            self._chosen = frozenset(names)
        if not self._chosen:
            raise DataError(
                f"corpus.directory={self._corpus}: no figure is selected; run `llavamed corpus "
                "select` first, and read its counts of refusals"
            )
        return (figure for figure in iter_kept(step) if figure.id in (self._chosen or ()))

    def plan(self) -> Plan:
        """Say what is still to be paid. Raises: DataError."""
        return plan_dialogues(self.figures, self._writer, self._places.answers)

    def run(self, plan: Plan) -> DialoguesManifest:
        """Ask, judge and write.

        Raises:
            ConfigError: The plan costs more than allowed.
            EndpointError: See `write_dialogues`.
        """
        check_cost(plan, self.settings)
        return asyncio.run(write_dialogues(self.figures, self._writer, self._places))

    def forget(self) -> int:
        """Remove the raw answers about articles that left the corpus; return their number.

        Raises:
            StorageError: They cannot be read or removed.
        """
        return forget(self._places.dialogues, self._places.answers, self._gone)

    def judge_again(self) -> DialoguesManifest:
        """Judge the dialogues that are there by the rules as they are now. Raises: DataError."""
        return judge_again(self._writer, self._places, self._held_out | self._gone)

    @cached_property
    def _gone(self) -> frozenset[str]:
        return gone_articles(self._corpus / "harvest", self._places.dialogues)

    def write_batches(self, folder: str) -> list[str]:
        """Write the requests without an answer as files of the Batch API; return their names.

        Raises:
            EndpointError: They could cost more than allowed.
        """
        requests = map(self._writer.request, self.figures())
        return write_batches(requests, self.settings.endpoint, folder, self._places.answers)

    def read_batches(self, files: Sequence[str]) -> Counter[str]:
        """Keep the answers of output files of the Batch API; return the lines by kind.

        Raises:
            DataError: There is no such file.
        """
        counts: Counter[str] = Counter()
        for file in files:
            counts += read_batch(file, self._places.answers)
        return counts


def _settings(config: RunConfig) -> Dialogues:
    if config.corpus is None or config.corpus.dialogues is None:
        raise ConfigError(
            "corpus.dialogues: must be set; name a language model by corpus.dialogues.endpoint.url "
            "and .model"
        )
    return config.corpus.dialogues
