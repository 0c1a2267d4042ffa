"""What the quarantine says of a row, whatever its source."""

import json

import pyarrow as pa
import pyarrow.parquet as pq

from llavamed.config.load import parse_config
from llavamed.data.prepare.shards import Chunk, ShardWriter
from llavamed.data.sources import open_source


def test_the_quarantine_names_a_row_whatever_its_source(tiny_config, processor_folder, tmp_path):
    row = {"question": "Where?", "answer": "Here", "image_name": "a.jpg", "answer_type": "OPEN"}
    rows = [row | {"qid": 1}, row | {"qid": 2, "answer": None}]
    (tmp_path / "trainset.json").write_text(json.dumps(rows))
    turns = [
        {"from": "human", "value": "<image>\nWhat is this?"},
        {"from": "gpt", "value": "A lung."},
    ]
    table = pa.Table.from_pylist([{"id": "a", "image": b"x", "turns": turns}, {"turns": None}])
    pq.write_table(table, tmp_path / "x.parquet")
    reads = {"vqa_rad": str(tmp_path), "parquet": str(tmp_path / "x.parquet")}
    named = []
    for source, path in reads.items():
        tree = tiny_config.model_dump(mode="json") | {"storage": str(tmp_path)}
        tree["data"]["datasets"]["mine"] = {"read": {"source": source, "path": path}}
        config = parse_config(tree)
        rows = list(open_source(config.data.datasets["mine"].read).rows())
        report = ShardWriter(config, str(processor_folder)).write(Chunk("mine", 0, 0, rows))
        named += [(bad["id"], bad["reason"]) for bad in report.tables.quarantine.to_pylist()]
    assert named == [
        ("vqa-rad-train-1", "missing_image"),
        ("vqa-rad-train-2", "missing_key"),
        ("a", "corrupt_image"),
        ("x.parquet#0/1", "no_conversations"),
    ]
