"""What was written is loaded back before it counts: no damage on the way to storage gets by."""

import copy
import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llavamed.config.engine import Kernels
from llavamed.config.run import RunConfig
from llavamed.data.prepared.dataset import open_prepared
from llavamed.errors import CheckpointError
from llavamed.model.attention import attend_per_sample, per_sample_arguments
from llavamed.model.export import Trained, check_export, fetch_export, write_export
from llavamed.model.llava import build_model
from llavamed.model.loss import sampled_logits
from llavamed.processor.templates import get_template, template_hash
from llavamed.storage.location import Location, locate
from llavamed.storage.manifest import ExportManifest, find
from llavamed.train import worker
from tests.support.small_tokenizers import OWN_TEMPLATES
from tests.support.training_setup import (
    LEARNING,
    make_job,
    processor_of,
    run_stage,
    small_config,
    step_batches,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tiny_config: RunConfig) -> tuple[Any, Any, Trained]:
    """A model, its processor, and what its export must show."""
    config = small_config(tiny_config)
    processor = processor_of(config)
    model = build_model(config.model, processor, seed=0, precision="fp32").eval()
    attend_per_sample(model)  # as in training
    batch = step_batches(config)[0][0]
    dataset = open_prepared(locate(make_job(config).datasets[0]))
    return (
        model,
        processor,
        Trained(
            weights=dict(model.state_dict()),
            batch=batch,
            is_merged=False,
            logits=sampled_logits(model, batch),
            precision="fp32",
            attn_implementation="sdpa",
            kernels=Kernels(),
            template=config.model.template,
            template_hash=dataset.manifest.made_from.template,
        ),
    )


def written(trained: tuple[Any, Any, Trained], folder: Path) -> Location:
    model, processor, expected = trained
    write_export(locate(str(folder)), model, expected.weights, processor)
    return locate(str(folder))


def test_what_was_trained_passes_from_any_storage(
    trained: tuple[Any, Any, Trained], tmp_path: Path, s3_uri: str
) -> None:
    assert check_export(written(trained, tmp_path), trained[2], CPU) == 0.0
    place = locate(f"{s3_uri}/checked")
    write_export(place, trained[0], trained[2].weights, trained[1])
    assert check_export(place, trained[2], CPU) == 0.0
    assert find(ExportManifest, place) is None, "to check is not yet to publish"


@pytest.mark.parametrize("name", ["parts", "a space at the prompt's end", "dated"])
def test_a_tokenizers_own_template_passes(
    trained: tuple[Any, Any, Trained], tmp_path: Path, name: str
) -> None:
    model, processor, expected = trained
    processor = copy.deepcopy(processor)
    processor.chat_template = processor.tokenizer.chat_template = OWN_TEMPLATES[name]
    found = template_hash(get_template("tokenizer"), processor.tokenizer)
    expected = replace(expected, template="tokenizer", template_hash=found)
    assert check_export(written((model, processor, expected), tmp_path), expected, CPU) == 0.0


def test_the_trained_model_is_freed_before_its_export_is_loaded(
    tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that the stage fills would not hold both."""
    models, alive = [], []
    use_kernels, check_export = worker.use_kernels, worker.check_export

    def noted_kernels(model: Any, *rest: Any) -> None:
        models.append(weakref.ref(model))
        use_kernels(model, *rest)

    def noted_check(*arguments: Any) -> float:
        alive.extend(model() for model in models)
        return check_export(*arguments)

    monkeypatch.setattr(worker, "use_kernels", noted_kernels)
    monkeypatch.setattr(worker, "check_export", noted_check)
    run_stage(make_job(small_config(tiny_config, *LEARNING, "name=freed")))
    assert alive == [None]


def test_logits_are_sampled_from_the_first_position_to_the_last(
    trained: tuple[Any, Any, Trained],
) -> None:
    model, _, expected = trained
    batch = expected.batch
    with torch.no_grad():
        whole = model(
            input_ids=batch.input_ids,
            pixel_values=batch.pixel_values,
            position_ids=batch.position_ids,
            use_cache=False,
            **per_sample_arguments(model, batch.sample_lengths, batch.input_ids.device),
        ).logits
    assert expected.logits.shape == (1, 64, whole.shape[-1])
    torch.testing.assert_close(expected.logits[:, 0], whole[:, 0])
    torch.testing.assert_close(expected.logits[:, -1], whole[:, -1])


def edit_json(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return edit


def nudge(folder: Path) -> None:
    """One number of a layer that nothing uses: no logit shows it."""
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("post_layernorm.bias"))
    tensors[name][0] += 1e-3
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            nudge,
            r"1 tensors differ \(\S*post_layernorm.bias\), logits by 0 of the largest, where fp32 "
            r"allows 1e-05; check the storage and start the same command again",
        ),
        (
            edit_json("config.json", lambda c: c.update(vision_feature_layer=-1)),
            r"0 tensors differ, logits by 0?\.\d+\S* of the largest",
        ),
        (
            lambda folder: (folder / "chat_template.jinja").unlink(),
            r"has no chat template, so it cannot be prompted; check the storage",
        ),
        (
            lambda folder: (folder / "chat_template.jinja").write_text("{{ messages[0].content }}"),
            r"its processor makes \d+ tokens of '<image>\\nWhat .*', which differ from the \d+",
        ),
        (
            lambda folder: (folder / "processor_config.json").write_text("{"),
            r"its processor cannot be loaded: .*; check the storage",
        ),
    ],
    ids=["tensor", "config", "no template", "another template", "processor"],
)
def test_damage_is_found(
    trained: tuple[Any, Any, Trained], tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    place = written(trained, tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        check_export(place, trained[2], CPU)


def test_a_template_that_is_not_the_datas_is_found(
    trained: tuple[Any, Any, Trained], tmp_path: Path
) -> None:
    place = written(trained, tmp_path)
    other = Trained(**vars(trained[2]) | {"template_hash": "0" * 64})
    with pytest.raises(
        CheckpointError, match=r"template_hash=\w{64}: the stage was trained with 0{64}; prepare"
    ):
        check_export(place, other, CPU)


def test_logits_that_are_not_numbers_do_not_pass(
    trained: tuple[Any, Any, Trained], tmp_path: Path
) -> None:
    place = written(trained, tmp_path)
    other = Trained(**vars(trained[2]) | {"logits": trained[2].logits * float("nan")})
    with pytest.raises(CheckpointError, match=r"0 tensors differ, logits by nan of the largest"):
        check_export(place, other, CPU)


def test_no_stage_starts_from_an_export_that_failed(
    tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(tiny_config, "name=damaged", "stages.align.max_steps=1")
    job = make_job(config)

    def damaged(place: Location, *arguments: Any) -> None:
        write_export(place, *arguments)
        nudge(Path(place.path))

    monkeypatch.setattr(worker, "write_export", damaged)
    with pytest.raises(CheckpointError, match=r"export: what was written is not what was trained"):
        run_stage(job)
    place = locate(job.export)
    assert place.exists()
    assert find(ExportManifest, place) is None
    with pytest.raises(CheckpointError, match=r"no export there"):
        fetch_export(place)
    with pytest.raises(CheckpointError, match=r"no export there"):
        run_stage(make_job(config, stage=1))
    monkeypatch.undo()
    assert run_stage(job).logits_difference == 0.0
