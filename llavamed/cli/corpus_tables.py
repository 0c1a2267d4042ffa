"""Print the tables of the corpus commands."""

from llavamed.cli.options import print_line
from llavamed.config.corpus import Corpus, Dialogues
from llavamed.config.harvest import Harvest
from llavamed.corpus.dialogues.forecast import forecast
from llavamed.corpus.dialogues.generate import Plan
from llavamed.corpus.dialogues.table import DialoguesManifest
from llavamed.corpus.pmc.estimate import NUM_ARTICLES, HarvestEstimate, count_candidates, estimate
from llavamed.corpus.pmc.plan import HarvestManifest
from llavamed.corpus.questions import QUESTIONS, QuestionsManifest
from llavamed.corpus.select.job import Selection
from llavamed.errors import StorageError
from llavamed.llm.cost import CostEstimate
from llavamed.storage.location import Location


def show_harvest_estimate(settings: Harvest, num_cpus: int) -> HarvestEstimate:
    """Print what a harvest takes, and return it.

    Where the server that counts the articles of a query does not answer, as without a network,
    the numbers are those of the whole bucket.

    Raises:
        DataError: The query is refused, or the list or the mirror of the harvest cannot be read.
        StorageError: The storage of the list or of the mirror does not answer.
    """
    try:
        number = count_candidates(settings)
    except StorageError as error:
        if settings.query is None:
            raise
        number = NUM_ARTICLES
        print_line(
            f"corpus.harvest.query={settings.query}: its articles cannot be counted, so these "
            f"are the numbers of the whole bucket, the most there can be ({error})"
        )
    found = estimate(settings, num_cpus, number)
    print_line(
        f"{found.num_articles:,} articles to look at, {found.num_taken:,} with an allowed licence, "
        f"about {found.num_figures:,} figures"
    )
    print_line(
        f"{found.num_requests:,} requests, {_bytes(found.num_bytes)} to fetch, "
        f"{_bytes(found.stored_bytes)} to store"
    )
    print_line(
        f"{found.hours:,.1f} hours: {found.hours_of_requests:,.1f} by requests_per_second, "
        f"{found.hours_of_cpu:,.1f} on {num_cpus} CPUs"
    )
    return found


def show_harvest(manifest: HarvestManifest) -> None:
    """Print what was harvested, and why the rest was refused."""
    counts = manifest.counts
    print_line(
        f"inventory {manifest.inventory}: {manifest.num_articles:,} articles, "
        f"{manifest.num_kept:,} with figures, {manifest.num_kept_figures:,} of "
        f"{manifest.num_figures:,} figures kept, {manifest.num_removed:,} articles removed"
    )
    for title, reasons in (("articles", manifest.reasons), ("figures", manifest.refused)):
        for reason, count in sorted(reasons.items(), key=lambda each: -each[1]):
            print_line(f"  {title} {reason}: {count:,}")
    failed = ", ".join(f"{count:,} {name}" for name, count in counts.items() if "failed" in name)
    print_line(
        f"{counts.get('requests', 0):,} requests, {_bytes(counts.get('bytes', 0))}"
        f"{f' ({failed})' if failed else ''}"
    )


def _bytes(number: float) -> str:
    """Write a number of bytes with three digits."""
    units = ("bytes", "kB", "MB", "GB", "TB", "PB")
    power = next((p for p in range(len(units)) if number < 1000 ** (p + 1)), len(units) - 1)
    return f"{number / 1000**power:.3g} {units[power]}"


def show_selection(selection: Selection) -> None:
    """Print how many figures are kept, and why the others are not."""
    modalities = ", ".join(f"{count:,} {name}" for name, count in selection.modalities.items())
    print_line(
        f"{selection.num_figures:,} figures, {selection.num_kept:,} kept"
        f"{f' ({modalities})' if modalities else ''}"
    )
    for reason, count in selection.refused.items():
        print_line(f"  {reason}: {count:,}")


def show_corpus_forecast(corpus: Corpus, num_cpus: int) -> None:
    """Print what the corpus of a run takes, from the bucket to the dialogues.

    Raises:
        ConfigError: The prompt of the dialogues cannot be read.
        DataError: The list, the query or the mirror of the harvest cannot be read.
    """
    print_line("harvest")
    harvest = show_harvest_estimate(corpus.harvest, num_cpus)
    settings = corpus.dialogues
    if settings is None:
        return
    number = min(settings.num_dialogues or harvest.num_figures, harvest.num_figures)
    most = "" if settings.num_dialogues else ", if all are selected"
    print_line(f"dialogues: {number:,} figures{most}")
    writing, checking = forecast(settings, number)
    print_line(f"{settings.endpoint.model}: {describe_estimate(writing)}")
    if settings.checker is not None and checking is not None:
        print_line(f"{settings.checker.model}, which checks: {describe_estimate(checking)}")


def show_dialogue_plan(plan: Plan, settings: Dialogues) -> None:
    """Print what dialogues take before the first request."""
    print_line(f"{plan.num_figures:,} figures, {plan.num_answered:,} answered before")
    print_line(f"{settings.endpoint.model}: {describe_estimate(plan.writing)}")
    if settings.checker is not None and plan.checking is not None:
        print_line(f"{settings.checker.model}, which checks: {describe_estimate(plan.checking)}")


def show_dialogues(manifest: DialoguesManifest) -> None:
    """Print how many dialogues passed, and why the others did not."""
    outcomes = ", ".join(f"{count:,} {name}" for name, count in manifest.outcomes.items())
    modalities = ", ".join(f"{count:,} {name}" for name, count in manifest.modalities.items())
    price = "" if manifest.cost is None else f", cost {manifest.cost:.4g}"
    print_line(f"{manifest.num_figures:,} figures: {outcomes}")
    print_line(
        f"{manifest.num_dialogues:,} dialogues with {manifest.num_exchanges:,} questions passed"
        f"{f' ({modalities})' if modalities else ''}"
    )
    for rule, count in manifest.findings.items():
        print_line(f"  {rule}: {count:,}")
    print_line(
        f"{manifest.prompt_tokens:,} tokens of prompts, {manifest.completion_tokens:,} of answers"
        f"{price}"
    )


def show_questions(manifest: QuestionsManifest, folder: Location) -> None:
    """Print how many questions of a chat evaluation were written."""
    outcomes = ", ".join(f"{count:,} {name}" for name, count in manifest.outcomes.items())
    kinds = ", ".join(f"{count:,} {name}" for name, count in manifest.types.items())
    domains = ", ".join(f"{count:,} {name}" for name, count in manifest.domains.items())
    counts = f" ({kinds}; {domains})" if kinds else ""
    print_line(f"{manifest.num_figures:,} figures: {outcomes}")
    print_line(f"{sum(manifest.types.values()):,} questions{counts}")
    print_line(f"{folder}: {QUESTIONS} and images")


def describe_estimate(estimate: CostEstimate) -> str:
    """Return a sentence about what requests take before the first one is sent."""
    price = "" if estimate.cost is None else f", cost up to {estimate.cost:.4g}"
    return (
        f"{estimate.num_requests:,} requests, about {estimate.prompt_tokens:,} tokens of prompts "
        f"and at most {estimate.max_completion_tokens:,} of answers{price}"
    )
