"""Harvest a synthetic mirror: articles a CPU second, memory part by part, and a kill in between.

    python benchmarks/harvest.py [--quick]

The mirror has the layout of `pmc-oa-opendata` and articles of 70 kB with four figures. It is in a
folder, so that what is measured is ours: reading metadata and XML, checking, hashing and writing.
A process of its own harvests it in ten parts. It is killed in the middle of the third and started
again; every read of the mirror is logged, and none of a finished article may come twice.
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import report

sys.path.insert(0, str(Path(__file__).parents[1]))

from llavamed.config.harvest import Harvest
from llavamed.corpus.figures import iter_kept
from llavamed.corpus.pmc.fetch import Fetcher
from llavamed.corpus.pmc.inventory import read_inventory
from llavamed.corpus.pmc.part import find_part, harvest_part, part_folder
from llavamed.corpus.pmc.plan import HarvestPlan, first_round, settings_of
from llavamed.storage.location import locate
from llavamed.storage.manifest import find, write
from tests.support.pmc_bucket import PmcBucket, article_xml, picture

NAME = "harvest"
NUM_PARTS = 10
NUM_FIGURES = 4


def make(root: Path, num_articles: int) -> None:
    """Write a mirror of articles that differ in numbers and pictures."""
    bucket = PmcBucket(root)
    names = [f"fig{n}" for n in range(1, NUM_FIGURES + 1)]
    words = "The patient was seen again after a month, and the finding had not changed. " * 14
    filler = f"<p>{words}</p>" * 64
    pictures = [picture(n, size=(600, 400)) for n in range(50)]
    for number in range(1, num_articles + 1):
        xml = article_xml(number, names).replace(b"</sec>", filler.encode() + b"</sec>")
        own = {f"{name}.jpg": pictures[(number + n) % 50] for n, name in enumerate(names)}
        bucket.add(number, xml=xml, media=own)
    bucket.write_inventory()


def work(source: str, target: str, log: str, size: str) -> None:
    """Harvest all parts that are not complete, and write what each of them took."""
    settings = Harvest(source=source, articles_per_part=int(size), requests_per_second=5500)
    corpus = locate(target)
    folder = corpus / "harvest"
    plan = find(HarvestPlan, folder)
    if plan is None:
        here = first_round(folder, settings, read_inventory(locate(source)), None)
        plan = HarvestPlan(settings=settings_of(settings), rounds=(here,))
        write(folder, plan)
    read = Fetcher.read
    with Path(log).open("a") as lines:

        def read_noted(self: Fetcher, key: str, md5: str = "") -> bytes:
            lines.write(f"{key}\n")
            lines.flush()
            return read(self, key, md5)

        Fetcher.read = read_noted  # type: ignore[method-assign]
        for part in range(plan.num_parts):
            place = part_folder(folder, part)
            if find_part(place) is not None:
                continue
            before, start = os.times(), time.perf_counter()
            rows = plan.read_part(folder, part)
            harvest_part(place, rows, settings, corpus, made_from=plan.made_from(part))
            now = os.times()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            cpu = now.user + now.system - before.user - before.system
            wall = time.perf_counter() - start
            fact = {"part": part, "cpu_seconds": cpu, "seconds": wall, "peak_bytes": peak}
            sys.stdout.write(json.dumps(fact) + "\n")
            sys.stdout.flush()


def run(arguments: list[str], kill_after: int | None = None) -> list[dict[str, Any]]:
    """Run the worker, killed in the part after some finished ones where asked."""
    command = [sys.executable, __file__, "--work", *arguments]
    found = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            found.append(json.loads(line))
            if len(found) == kill_after:
                journal = Path(arguments[1]) / "harvest" / f"{len(found):05d}" / "done"
                third = int(arguments[3]) // 3
                while not journal.is_dir() or len(list(journal.iterdir())) < third:
                    time.sleep(0.02)
                process.send_signal(signal.SIGKILL)
    return found


def main() -> int:
    """Make the mirror, harvest it with a kill, and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1,000 articles, not 10,000")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(*options.work)
        return 0
    num_articles = 1_000 if options.quick else 10_000
    size = num_articles // NUM_PARTS
    with tempfile.TemporaryDirectory() as scratch:
        source, target, log = (f"{scratch}/{name}" for name in ("mirror", "corpus", "reads"))
        make(Path(source), num_articles)
        start = time.perf_counter()
        arguments = [source, target, log, str(size)]
        parts = run(arguments, kill_after=2)
        journal = Path(target) / "harvest" / "00002" / "done"
        finished = {file.stem for file in journal.iterdir()}
        parts += run(arguments)
        seconds = time.perf_counter() - start
        reads = Counter(Path(log).read_text().split())
        twice = {key for key, count in reads.items() if count > 1}
        again = {name for name in finished if any(name in key for key in twice)}
        kept = sum(1 for _ in iter_kept(locate(target) / "harvest"))
    expected = num_articles * NUM_FIGURES
    whole = [part for part in parts if part["part"] != 2]
    cpu = sum(part["cpu_seconds"] for part in whole)
    speed = len(whole) * size / cpu
    peaks = [part["peak_bytes"] for part in parts]
    result = {
        "articles": num_articles,
        "figures_kept": kept,
        "seconds": seconds,
        "articles_per_cpu_second": speed,
        "requests_per_article": 2 + NUM_FIGURES,
        "finished_before_the_kill": len(finished),
        "finished_articles_read_twice": len(again),
        "files_read_twice": len(twice),
        "parts": parts,
        "gates": [
            report.gate("articles a CPU second", speed, at_least=20),
            report.gate("figures lost", expected - kept, at_most=0),
            report.gate("finished articles read twice after a kill", len(again), at_most=0),
            report.gate(
                "peak memory of the last part by the first", peaks[-1] / peaks[0], at_most=1.5
            ),
        ],
    }
    return report.finish(f"{NAME}-quick" if options.quick else NAME, result)


if __name__ == "__main__":
    sys.exit(main())
