"""Go from articles to a trained model: harvest, select, pairs, dialogues, card, prepare, train.

`make demo-corpus` runs it on this machine alone, with articles and a language model that are made
for it; `demo_mirror` and `demo_reciter` say how. The commands are those of a real corpus.
"""

import shutil
import sys
import time
from pathlib import Path

from llavamed.cli.main import main
from llavamed.cli.options import console
from llavamed.config.load import load_config
from llavamed.run.ray_cluster import ray_cluster
from scripts.demo_mirror import write_mirror
from scripts.demo_reciter import reciter

CONFIG = "ray_jobs/configs/demo-corpus.yaml"
NUM_ARTICLES = 100
STEPS = (
    ["corpus", "harvest"],
    ["corpus", "select"],
    ["corpus", "pairs"],
    ["corpus", "dialogues"],
    ["corpus", "card"],
    ["train"],
)


def demo(folder: Path) -> None:
    """Make the corpus and train on it.

    Args:
        folder: Where the mirror of the articles is written; an earlier one is replaced.
    """
    started = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    write_mirror(folder, NUM_ARTICLES)
    with reciter() as url, ray_cluster(load_config(CONFIG)):
        overrides = [
            f"corpus.harvest.source={folder.absolute()}",
            f"corpus.dialogues.endpoint.url={url}",
        ]
        for step in STEPS:
            console.print(f"\n$ llavamed {' '.join(step)} --config {CONFIG}", highlight=False)
            _run([*step, "--config", CONFIG, *overrides])
    console.print(f"\ndone in {time.monotonic() - started:.0f} s", highlight=False)


def _run(words: list[str]) -> None:
    """Run a command of the command line; one that fails ends the demo."""
    try:
        main(words)
    except SystemExit as ended:
        if ended.code:
            raise


if __name__ == "__main__":
    demo(Path(sys.argv[1]))
