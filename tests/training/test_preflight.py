"""What would stop a run is found before any worker starts."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llavamed.config.load import override_config, parse_config
from llavamed.config.run import RunConfig
from llavamed.data.prepared.mixture import Mixture
from llavamed.errors import ConfigError, DataError
from llavamed.processor.build import build_processor
from llavamed.processor.pretrained import part_config
from llavamed.run.curriculum import find_stage, plan_curriculum
from llavamed.run.model_checks import check_language_model, check_weights, warn_of_unlearned_ends
from llavamed.run.preflight import check_images, check_settings, check_stage, warn_of_instability
from llavamed.storage.location import MANIFEST, locate
from llavamed.storage.manifest import Layout, StageSettings, write
from llavamed.train.job import StageJob
from tests.support import small_datasets
from tests.support.manifests import checkpoint_manifest
from tests.support.small_tokenizers import chatml
from tests.support.training_setup import make_job, mixture, small_config


def stored_in(config: RunConfig, folder: Path) -> RunConfig:
    return config.model_copy(update={"storage": str(folder)})


def check(config: RunConfig, job: StageJob) -> None:
    check_stage(plan_curriculum(config)[0], job, mixture(config))


def test_weights_that_cannot_be_had(tiny_config: RunConfig) -> None:
    check_weights(tiny_config, plan_curriculum(tiny_config))
    stage = tiny_config.stages[0].model_copy(update={"initial_weights": "/nowhere/llava"})
    config = tiny_config.model_copy(update={"stages": (stage,)})
    with pytest.raises(ConfigError, match=r"align.initial_weights=/nowhere/llava: no such folder"):
        check_weights(config, plan_curriculum(config))


def test_an_end_that_no_stage_trains_is_told(
    tiny_config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = chatml()
    tokenizer.save_pretrained(tmp_path)
    shape = part_config(tiny_config.model.language_model, "model.language_model")
    tree = tiny_config.model_dump(mode="json")
    tree["model"] |= {"language_model": {"weights": str(tmp_path)}, "template": "tokenizer"}
    projector, whole = tree["stages"][0] | {"trainable": ["projector"]}, dict(tree["stages"][0])
    whole |= {"name": "whole", "trainable": ["projector", "language_model"]}
    lora = whole | {"name": "lora", "lora": {}}
    for stages, rows, is_told in (
        ([projector, lora], tokenizer.eos_token_id, True),
        ([projector, whole], tokenizer.eos_token_id, False),
        ([projector, lora], tokenizer.eos_token_id + 1, False),
    ):
        shape.vocab_size = rows
        shape.save_pretrained(tmp_path)
        config = parse_config(tree | {"stages": stages})
        build_processor(config.model, iter([])).save_pretrained(tmp_path / "processor")
        caplog.clear()
        place = locate(str(tmp_path / "processor"))
        warn_of_unlearned_ends(config, plan_curriculum(config), place)
        assert [line[:42] for line in caplog.messages] == (
            ["stages: none trains the output layer, and "] * is_told
        )


def test_a_stage_that_reads_images_of_data_without_any_is_told(
    tiny_config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = Mixture((small_datasets.prepare(f"{tmp_path}/words", 4, num_images=(0,)).dataset,))
    both = Mixture((small_datasets.prepare(f"{tmp_path}/both", 4).dataset,))
    stage = tiny_config.stages[0]
    projector = stage.model_copy(update={"trainable": ("projector",)})
    whole = stage.model_copy(update={"trainable": ("projector", "language_model")})
    with pytest.raises(
        ConfigError, match=r"^stages.align.trainable=\[projector\]: no sample of capt"
    ):
        check_images(projector, words)
    for each, data in ((projector, both), (whole, both), (whole, words)):
        assert not caplog.messages
        check_images(each, data)
    assert caplog.messages == [
        "stages.align: no sample of captions has an image, so projector does not change; remove it "
        "from trainable, or name data with images"
    ]


def test_a_sample_that_is_longer_than_a_pack(tiny_config: RunConfig, tmp_path: Path) -> None:
    config = stored_in(tiny_config, tmp_path)
    stage = config.stages[0].model_copy(update={"max_tokens": 16})
    config = config.model_copy(update={"stages": (stage,)})
    with pytest.raises(DataError, match=r"max_tokens=16: \d+ samples are longer.*raise max_tokens"):
        check(config, make_job(config))


def test_a_missing_shard(tiny_config: RunConfig, tmp_path: Path) -> None:
    config = stored_in(tiny_config, tmp_path)
    job = make_job(config)
    check(config, job)
    (Path(job.datasets[0]) / "shards" / "000000.parquet").unlink()
    with pytest.raises(DataError, match=r"1 of \d+ shards are missing, the first is shards/000000"):
        check(config, job)


def test_a_checkpoint_of_other_settings(tiny_config: RunConfig, tmp_path: Path) -> None:
    config = stored_in(tiny_config, tmp_path)
    job = make_job(config)
    place = locate(job.checkpoints) / "step-000002"
    plans = plan_curriculum(config)[:1]
    settings = job.settings.replace(seed=5)
    write(place, checkpoint_manifest(fingerprint="0123", settings=settings))
    with pytest.raises(
        ConfigError, match=r"^seed=0, was 5: other settings than .*stages/align was"
    ):
        check_settings(plans, [job])
    (place / MANIFEST).write_bytes(b"{")  # damaged: found again, and told, when it is loaded
    check_settings(plans, [job])


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ("{target_modules: [q_porj]}", r"target_modules=q_porj: .* no linear layer of this name"),
        (
            "{quantize: nf4}",
            r"quantize=nf4: the layer layers.0.self_attn.q_proj has 16 inputs, not",
        ),
    ],
    ids=["target", "blocks"],
)
def test_adapters_that_do_not_fit(tiny_config: RunConfig, lora: str, message: str) -> None:
    config = override_config(tiny_config, [f"stages.instruct.lora={lora}"])
    check_language_model(tiny_config, plan_curriculum(tiny_config))
    with pytest.raises(ConfigError, match=message):
        check_language_model(config, plan_curriculum(config))


@pytest.mark.parametrize("gpu", ["V100", "T4", "A100", "H100", None])
def test_a_kernel_on_gpus_that_are_too_old_for_it(tiny_config: RunConfig, gpu: str | None) -> None:
    shape = "model.language_model.config.head_dim=8"
    scaling = {"use_gpu": True} | ({"accelerator_type": gpu} if gpu else {})
    engine = "engine={precision: bf16, kernels: {varlen: true}}"
    asked = [f"scaling={json.dumps(scaling)}", engine, shape]
    config = override_config(tiny_config, asked)
    plans = plan_curriculum(config)
    if gpu not in ("V100", "T4"):
        check_language_model(config, plans)
        return
    with pytest.raises(
        ConfigError, match=rf"varlen=true: .* capability 8.0 .* and {gpu} has 7.[05]; set it to fal"
    ):
        check_language_model(config, plans)
    check_language_model(override_config(config, ["engine.kernels.varlen=false"]), plans)


def test_a_rate_with_its_sign_lost_is_told(
    tiny_config: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_instability(tiny_config)
    assert not caplog.messages
    part = "stages.instruct.optimizer.parts={projector: {lr: 2e3}}"
    warn_of_instability(override_config(tiny_config, ["stages.align.optimizer.lr=2e3", part]))
    assert [line.partition(", and")[0] for line in caplog.messages] == [
        "stages.align.optimizer: the learning rate of projector is 2000",
        "stages.instruct.optimizer: the learning rate of projector is 2000",
    ]
    assert caplog.messages[0].endswith("; set it to at most 0.1")
    caplog.clear()
    warn_of_instability(override_config(tiny_config, ["stages.align.optimizer.lr=0.1"]))
    assert not caplog.messages


ASKED_BF16 = "deepspeed: {data_types: {grad_accum_dtype: bf16}}"


@pytest.mark.parametrize(
    ("engine", "workers", "advice"),
    [
        ("{precision: bf16, zero_stage: 1}", 1, "set it to 2, or use more workers"),
        ("{precision: bf16, zero_stage: 1}", 16, None),
        ("{precision: bf16, zero_stage: 2}", 1, None),
        ("{precision: bf16, zero_stage: 0}", 1, None),
        ("{precision: fp32, zero_stage: 0}", 1, None),
        *(
            (
                f"{{precision: bf16, zero_stage: {stage}, {ASKED_BF16}}}",
                1,
                "remove engine.deepspeed.data_types.grad_accum_dtype=bf16, or use more workers",
            )
            for stage in (0, 2)
        ),
    ],
)
def test_a_long_sum_of_gradients_in_bf16_is_told(
    tiny_config: RunConfig,
    caplog: pytest.LogCaptureFixture,
    engine: str,
    workers: int,
    advice: str | None,
) -> None:
    asked = (f"engine={engine}", f"scaling.num_workers={workers}")
    batches = [f"stages.{stage.name}.global_batch_size=64" for stage in tiny_config.stages]
    warn_of_instability(override_config(tiny_config, [*asked, *batches]))
    assert [line for line in caplog.messages if "added up in bf16" in line] == caplog.messages
    assert bool(caplog.messages) == (advice is not None)
    assert all(line.endswith(f"to 8 bits; {advice}") for line in caplog.messages)


def test_a_stage_that_is_not_there(tiny_config: RunConfig) -> None:
    assert find_stage(tiny_config, None).stage.name == "vqa"
    with pytest.raises(ConfigError, match=r"stage=alihn: there is none .* align, instruct, vqa"):
        find_stage(tiny_config, "alihn")


@pytest.mark.parametrize(("saved", "is_refused"), [(2, False), (1, False), (0, True), (3, True)])
def test_a_checkpoint_of_another_zero_stage_is_refused_before_any_worker_starts(
    tiny_config: RunConfig, tmp_path: Path, saved: int, is_refused: bool
) -> None:
    config = stored_in(tiny_config, tmp_path)
    job, plans = make_job(config), plan_curriculum(config)[:1]
    layout = Layout(world_size=1, zero_stage=saved)
    manifest = checkpoint_manifest(fingerprint=job.fingerprint, settings=job.settings)
    write(locate(job.checkpoints) / "step-000002", manifest.model_copy(update={"layout": layout}))
    if not is_refused:
        check_settings(plans, [job])
        return
    message = rf"^engine.zero_stage=2: the checkpoint was saved with {saved}, and only 1 and 2 can"
    with pytest.raises(ConfigError, match=message):
        check_settings(plans, [job])


def test_settings_that_are_stored_and_read_again_do_not_differ(tiny_config: RunConfig) -> None:
    raw = "engine.deepspeed={zero_optimization: {overlap_comm: true}}"
    job = make_job(override_config(tiny_config, [raw]))
    stored = StageSettings.model_validate_json(job.settings.model_dump_json())
    assert stored.differences(job.settings) == []
    assert stored == job.settings
    logging = raw.replace("}}", "}, steps_per_print: 7, wall_clock_breakdown: true}")
    assert make_job(override_config(tiny_config, [logging])).fingerprint == job.fingerprint
    assert make_job(tiny_config).fingerprint != job.fingerprint


def test_steps_that_would_take_more_than_an_epoch_are_told(
    tiny_config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = small_config(stored_in(tiny_config, tmp_path))
    plan, job, data = plan_curriculum(config)[0], make_job(config), mixture(config)
    for lanes, is_told in ((data.num_samples, False), (100_000, True)):
        size = lanes * plan.stage.micro_batch_size
        stage = plan.stage.model_copy(update={"global_batch_size": size, "max_steps": 40})
        caplog.clear()
        order = check_stage(replace(plan, stage=stage), job, data)
        assert order.num_steps == 40
        start = f"stages.align.global_batch_size={size}: an epoch has {data.num_samples} samples"
        assert [line[: len(start)] for line in caplog.messages] == [start] * is_told
