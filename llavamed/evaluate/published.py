"""Scores from LLaVA-Med's paper, shown next to ours with caveats.

Source: Li et al., "LLaVA-Med" (2023), the table of visual question answering; facts, not text.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """Scores of one model in percent: open recall and closed accuracy of each benchmark."""

    model: str
    vqa_rad: tuple[float, float]
    slake: tuple[float, float]
    path_vqa: tuple[float, float]


PUBLISHED = (
    PublishedRow("LLaVA, fine-tuned", (50.00, 65.07), (78.18, 63.22), (7.74, 63.20)),
    PublishedRow("LLaVA-Med from LLaVA", (61.52, 84.19), (83.08, 85.34), (37.95, 91.21)),
    PublishedRow("LLaVA-Med from Vicuna", (64.39, 81.98), (84.71, 83.17), (38.87, 91.65)),
    PublishedRow("LLaVA-Med with BiomedCLIP", (64.75, 83.09), (87.11, 86.78), (39.60, 91.09)),
)

CAVEATS = (
    'Its closed accuracy looks for the reference inside the answer, so "no" is found in "normal"; '
    "its open score is recall with repeated words counted. Our legacy column follows these "
    "rules; the strict one does not compare with it.",
    "Answers were sampled at temperature 0.7 in single runs, without seeds or intervals; ours are "
    "greedy.",
    "VQA-RAD was trained on 3,064 questions, with rephrased ones of test images; with the usual "
    "1,797 the same code gives about 33 open and 64 closed.",
    "The rows were trained for different numbers of epochs: 3 for LLaVA, 9 to 15 for the others.",
    "All 203 test images of VQA-RAD are among its training images.",
)
"""Caveats of the table."""
