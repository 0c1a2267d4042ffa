"""What a dataset, a checkpoint, an export and an evaluation say of themselves.

A folder is complete when its manifest exists, so every writer writes it last.
"""

from llavamed.storage.manifest.dataset import (
    DatasetManifest,
    Decontamination,
    FiguresManifest,
    ImageFacts,
    MadeFrom,
    ProcessorMadeFrom,
    ProcessorManifest,
    ProcessorModel,
)
from llavamed.storage.manifest.measurement import MeasuredMemory, Measurement, PlannedBytes
from llavamed.storage.manifest.scores import EstimateFacts, GroupScores, ScoresManifest, row_name
from llavamed.storage.manifest.training import (
    CheckpointManifest,
    ExportManifest,
    FileFacts,
    Layout,
    PartFacts,
    StageSettings,
    TrainedData,
    TrainedDataset,
)
from llavamed.storage.manifest.typed import Facts, Manifest, dump, find, read, write
