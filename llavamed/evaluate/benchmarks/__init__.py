"""The benchmarks, one module each. Data is read in place and never downloaded."""

from collections.abc import Mapping

from llavamed.config.uri import split_options
from llavamed.data.sources.archives import open_folder
from llavamed.errors import ConfigError, DataError
from llavamed.evaluate.benchmarks import (
    figure_chat,
    medxpertqa,
    mmmu,
    omnimedvqa,
    path_vqa,
    pmc_vqa,
    slake,
    vqa_rad,
)
from llavamed.evaluate.benchmarks.benchmark import Benchmark, Items
from llavamed.evaluate.benchmarks.hub_copies import files_of_split
from llavamed.evaluate.benchmarks.tables import ENDINGS, TableItems

BENCHMARKS: Mapping[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        vqa_rad.BENCHMARK,
        *slake.BENCHMARKS,
        path_vqa.BENCHMARK,
        pmc_vqa.BENCHMARK,
        omnimedvqa.BENCHMARK,
        mmmu.BENCHMARK,
        medxpertqa.BENCHMARK,
        figure_chat.BENCHMARK,
    )
}
"""Every benchmark by its name."""


def open_items(benchmark: Benchmark, path: str, split: str) -> Items:
    """Open a split: in the form in which the benchmark is published, or a table that copies it.

    Args:
        path: URI of the data.

    Raises:
        DataError: It is a file of another kind, or an archive that must be unpacked.
    """
    if split_options(path)[0].lower().endswith(ENDINGS):
        if benchmark.is_published(path):
            return benchmark.open(path, split)
        return TableItems(benchmark, path, split)
    folder = open_folder(path)
    if folder.fs.isfile(folder.path):
        raise DataError(f"path={folder}: is a file of another kind; name {benchmark.data}")
    if benchmark.is_on_hub and (
        files := files_of_split(folder, split, benchmark.splits, benchmark.categories)
    ):
        return TableItems(benchmark, path, split, folder, files)
    return benchmark.open(path, split)


def find_benchmark(name: str, split: str | None) -> tuple[Benchmark, str]:
    """Look up a benchmark and the name of a split of it, by default the usual one.

    Raises:
        ConfigError: There is no such benchmark or split.
    """
    if name not in BENCHMARKS:
        known = ", ".join(BENCHMARKS)
        raise ConfigError(f"benchmark={name}: is not a benchmark; use one of {known}")
    found = BENCHMARKS[name]
    split = found.splits[0] if split is None else split
    if split not in found.splits:
        raise ConfigError(
            f"split={split}: {name} has no such split; use one of {', '.join(found.splits)}"
        )
    return found, split
