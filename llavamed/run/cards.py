"""Write the cards of a stage's model and of the datasets that it was trained on."""

from collections import Counter

from llavamed.config.run import RunConfig
from llavamed.data.prepared.dataset import PreparedDataset, open_prepared
from llavamed.evaluate.cards import MODEL_CARD, render_data_card, render_model_card
from llavamed.run.curriculum import StagePlan, find_stage, plan_curriculum, scores_now, trained_on
from llavamed.storage.location import Location, locate
from llavamed.storage.manifest import ScoresManifest


def write_cards(config: RunConfig, stage: str | None, folder: Location) -> list[str]:
    """Write a model card and a card for each training set; return the names of the files.

    Args:
        stage: Name of the stage, None for the last one.

    Raises:
        DataError: The stage is not scored with what the config says now, or a training set is gone.
        StorageError: The folder cannot be written.
    """
    plan = find_stage(config, stage)
    cards = render_cards(config, plan, scores_now(config, plan))
    for file, text in cards.items():
        (folder / file).write_bytes(text.encode())
    return list(cards)


def render_cards(config: RunConfig, plan: StagePlan, scores: ScoresManifest) -> dict[str, str]:
    """Return the model card of a stage and the card of each training set, by file name.

    Raises:
        DataError: A training set is gone or not complete.
    """
    datasets = training_sets(config, plan)
    licences = {name: count_licences(dataset) for name, dataset in datasets.items()}
    cards = {
        MODEL_CARD: render_model_card(
            config.name,
            scores,
            plan.result(),
            training={name: dataset.manifest for name, dataset in datasets.items()},
            licences=licences,
            initial_weights=plan_curriculum(config)[0].initial_weights,
        )
    }
    for name, dataset in datasets.items():
        cards[f"data_card-{name}.md"] = render_data_card(name, dataset.manifest, licences[name])
    return cards


def training_sets(config: RunConfig, plan: StagePlan) -> dict[str, PreparedDataset]:
    """Return the datasets that a model was trained on, in its stage and those before it, by name.

    Raises:
        DataError: A dataset is gone or not complete.
    """
    folder = locate(config.datasets_directory)
    return {name: open_prepared(folder / name) for name in trained_on(config, plan)}


def count_licences(dataset: PreparedDataset) -> Counter[str]:
    """Count the samples of a dataset by licence, which is empty where the source states none."""
    counts: Counter[str] = Counter()
    for shard, row_group in dataset.row_groups():
        table = dataset.read_samples(shard, row_group, ["licence"])
        counts.update(licence or "" for licence in table.column("licence").to_pylist())
    return counts
