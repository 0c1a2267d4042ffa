"""VQA-RAD: questions of clinicians about radiology images.

The test set has 451 questions on 203 images. Of training there are two sets in the literature: all
3,064 questions, or 1,797 without those that annotators framed from a template.
"""

from typing import Any

from llavamed.config.sources import VqaRad
from llavamed.data.sources.vqa_rad import LICENCE, VqaRadSource
from llavamed.evaluate.benchmarks.benchmark import Benchmark, question_of
from llavamed.evaluate.questions import Question

_WITHOUT_FRAME = "train-without-frame"


class VqaRadItems(VqaRadSource):
    """Questions of one split."""

    def ask(self, row: dict[str, Any]) -> Question:
        """Interpret a row. Raises: SampleError, as `parse` does."""
        return question_of(self.parse(row), organ=str(row.get("image_organ", "")), language="en")


def _open(path: str, split: str) -> VqaRadItems:
    if split == _WITHOUT_FRAME:
        kinds: dict[str, Any] = {"split": "train", "phrase_types": ("freeform", "para")}
    else:
        kinds = {"split": split}
    return VqaRadItems(VqaRad(source="vqa_rad", path=path, **kinds))


BENCHMARK = Benchmark(
    name="vqa-rad",
    version=1,
    splits=("test", "train", _WITHOUT_FRAME),
    open=_open,
    data="a folder with testset.json, trainset.json and images, or the public file of both",
    licence=LICENCE,
    is_on_hub=True,
)
