"""Whatever a broken rule of the config advises is accepted by the config that broke it."""

import ast
import re
from pathlib import Path

import pytest

from llavamed.config.load import load_config, load_section, override_config
from llavamed.config.serving import Serving
from llavamed.errors import ConfigError

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "llavamed" / "config"
SECTIONS = sorted({*(path.stem for path in CONFIG.glob("*.py"))} - {"load", "messages", "serving"})
SCANS = "data.datasets.scans.read={source: scans, path: a.json, image_folder: a, attested: a.txt}"
DIALOGUES = "corpus.dialogues={endpoint: {url: 'http://a/v1', model: a, max_cost: 1}}"
LORA = "stages.vqa.lora={quantize: nf4}"
PART = "stages.align.optimizer.parts"

Case = tuple[list[str], str, list[list[str]]]
"""Overrides that break a rule, what the message advises, and each advice as overrides. Three dots
in the advice stand for a number that the cures take from the message as `{0}`, `{1}` and so on."""

TILES = ("model.image_grid_pinpoints=[[64, 64]]", "data.store_images=original")

ON_GPU = ("scaling.use_gpu=true", "engine.precision=bf16")
CASES: list[Case] = [
    (
        ["scaling.resources_per_worker={GPU: 1}"],
        "remove it and set scaling.use_gpu to true",
        [["scaling.resources_per_worker={}", "scaling.use_gpu=true"]],
    ),
    (
        ["scaling.resources_per_worker={GPU: 0}"],
        "remove it and set scaling.use_gpu to false",
        [["scaling.resources_per_worker={}", "scaling.use_gpu=false"]],
    ),
    (
        ["scaling.resources_per_worker={cpu: 2}"],
        "'CPU'; write it that way",
        [["scaling.resources_per_worker={CPU: 2}"]],
    ),
    (
        ["scaling.resources_per_worker={' ': 2}"],
        "is not the name of a resource; remove it",
        [["scaling.resources_per_worker={}"]],
    ),
    (
        ["scaling.resources_per_worker={spot: 0.00003}"],
        "use (0\\.\\d+)",
        [["scaling.resources_per_worker={{spot: {0}}}"]],
    ),
    (
        ["scaling.accelerator_type=A100"],
        "set use_gpu to true, or remove it",
        [["scaling.use_gpu=true"], ["scaling.accelerator_type=null"]],
    ),
    (
        ["scaling.launcher=local"],
        "set num_workers to 1, or launcher to ray",
        [["scaling.num_workers=1"], ["scaling.launcher=ray"]],
    ),
    (
        [*TILES, "model.image_aspect_ratio=pad"],
        "set it to square, or remove the pinpoints",
        [["model.image_aspect_ratio=square"], ["model.image_grid_pinpoints=null"]],
    ),
    (
        [*TILES, "model.template=llava_med_v0"],
        "use another template, or remove image_grid_pinpoints",
        [["model.template=vicuna_v1"], ["model.image_grid_pinpoints=null"]],
    ),
    ([*TILES, "data.store_images=pixels"], "set it to original", [["data.store_images=original"]]),
    (["scaling.num_workers=[2, 1]"], r"write (\[1, 2\])", [["scaling.num_workers={0}"]]),
    (["tracking.uri='http://[a'"], "correct it", [["tracking.uri=http://a"]]),
    (
        ["tracking.uri=http://me:secret@a"],
        "remove it and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the env",
        [["tracking.uri=http://a"]],
    ),
    (["stages.align.name=vqa"], "rename one", [["stages.vqa.name=other"]]),
    (
        ["stages.align.initial_weights=vqa"],
        "name an earlier one, or leave it out",
        [["stages.align.initial_weights=null"]],
    ),
    (
        ["stages.align.data=figures"],
        r"use one of: (\w+), (\w+)",
        [["stages.align.data={0}"], ["stages.align.data={1}"]],
    ),
    (
        [LORA, "engine.zero_stage=3"],
        "set zero_stage to 2, or quantize to none",
        [["engine.zero_stage=2"], ["stages.vqa.lora.quantize=none"]],
    ),
    (
        ["engine.zero_stage=0", "engine.offload_optimizer=cpu"],
        "set zero_stage to 1, 2 or 3, or offload_optimizer to none",
        [
            *([f"engine.zero_stage={stage}"] for stage in (1, 2, 3)),
            ["engine.offload_optimizer=none"],
        ],
    ),
    (
        ["engine.zero_stage=1", "engine.deepspeed={data_types: {grad_accum_dtype: bf16}}"],
        "^engine.deepspeed.data_types.grad_accum_dtype=bf16: .* set zero_stage to 2 or 3, or remov",
        [["engine.zero_stage=2"], ["engine.zero_stage=3"], ["engine.deepspeed.data_types=null"]],
    ),
    (
        [
            *("engine.zero_stage=0", "engine.precision=bf16"),
            "engine.deepspeed={data_types: {grad_accum_dtype: fp16}}",
        ],
        "^engine.deepspeed.data_types.grad_accum_dtype=fp16: .* adds up gradients in fp32 or in ",
        [
            *(["engine.zero_stage=2"], ["engine.zero_stage=3"]),
            ["engine.deepspeed.data_types=null"],
            ["engine.deepspeed.data_types.grad_accum_dtype=fp32"],
        ],
    ),
    (
        ["stages.align.engine.kernels={liger: true}"],
        "^stages.align.engine.kernels.liger=true: .* set use_gpu to true, or liger to false",
        [["scaling.use_gpu=true"], ["stages.align.engine.kernels.liger=false"]],
    ),
    (
        ["engine.precision=bf16", "engine.kernels.varlen=true"],
        "^engine.kernels.varlen=true: .* set use_gpu to true, or varlen to false",
        [["scaling.use_gpu=true"], ["engine.kernels.varlen=false"]],
    ),
    (
        [*ON_GPU, "stages.align.engine.kernels={varlen: true}", "engine.precision=fp32"],
        "model.attn_implementation=sdpa and engine.precision=fp32; set them to sdpa and bf16, or ",
        [["engine.precision=bf16"], ["stages.align.engine.kernels.varlen=false"]],
    ),
    (
        [*ON_GPU, "engine.kernels.varlen=true", "model.attn_implementation=eager"],
        "model.attn_implementation=eager and engine.precision=bf16; set them to sdpa and bf16, or ",
        [["model.attn_implementation=sdpa"], ["engine.kernels.varlen=false"]],
    ),
    (
        ["stages.align.engine.kernels={compile: true}", "engine.zero_stage=3"],
        "as engine.zero_stage=3 does; set zero_stage to 2, or compile to false",
        [["engine.zero_stage=2"], ["stages.align.engine.kernels.compile=false"]],
    ),
    (
        ["engine.kernels.compile=true", "stages.align.engine.zero_stage=3"],
        "as stages.align.engine.zero_stage=3 does; set zero_stage to 2, or compile to false",
        [["stages.align.engine.zero_stage=2"], ["engine.kernels.compile=false"]],
    ),
    (
        [*ON_GPU, "engine.kernels.varlen=true", "stages.align.engine.precision=fp32"],
        "model.attn_implementation=sdpa and stages.align.engine.precision=fp32; set them to sdpa",
        [["stages.align.engine.precision=bf16"], ["engine.kernels.varlen=false"]],
    ),
    (
        ["stages.align.optimizer.name=adamw_8bit", "engine.zero_stage=3"],
        "set them to 2 or less and none, or use adamw",
        [["engine.zero_stage=2"], ["stages.align.optimizer.name=adamw"]],
    ),
    (
        ["stages.align.optimizer.name=adamw_8bit", "engine.offload_optimizer=cpu"],
        "set them to 2 or less and none, or use adamw",
        [["engine.offload_optimizer=none"], ["stages.align.optimizer.name=adamw"]],
    ),
    (
        ["stages.align.optimizer.name=adamw_8bit", "scaling.num_workers=[1, 2]"],
        "set one number of workers, zero_stage to 0, or use adamw",
        [["scaling.num_workers=2"], ["engine.zero_stage=0"], ["stages.align.optimizer.name=adamw"]],
    ),
    (
        ["scaling.num_workers=64"],
        r"micro_batch_size = (\d+); use at most that many workers",
        [["scaling.num_workers={0}"]],
    ),
    (
        ["stages.align.global_batch_size=6", "scaling.num_workers=4"],
        r"use (\d+) or (\d+), or (\d+) or (\d+) workers",
        [
            ["stages.align.global_batch_size={0}"],
            ["stages.align.global_batch_size={1}"],
            ["scaling.num_workers={2}", "stages.*.global_batch_size=12"],
            ["scaling.num_workers={3}", "stages.*.global_batch_size=12"],
        ],
    ),
    (
        ["stages.align.max_tokens=128"],
        r"data\.max_length=(\d+).*raise the first or lower the second",
        [["stages.align.max_tokens={0}"], ["data.max_length=128"]],
    ),
    (
        [f"{PART}={{language_model: {{lr: 1}}}}"],
        "remove it, or add language_model to trainable",
        [[f"{PART}={{}}"], ["stages.align.trainable=[projector, language_model]"]],
    ),
    (
        ["stages.align.lora={}"],
        "name both, or remove lora",
        [["stages.align.trainable=[projector, language_model]"], ["stages.align.lora=null"]],
    ),
    (
        ["stages.align.micro_batch_size=2"],
        "set it to 1 and raise max_tokens instead",
        [["stages.align.micro_batch_size=1", "stages.align.max_tokens=768"]],
    ),
    (
        ["stages.align.packing=false"],
        "remove it or set it to null, or set packing to true",
        [["stages.align.max_tokens=null"], ["stages.align.packing=true"]],
    ),
    (
        [
            *("stages.align.packing=false", "stages.align.max_tokens=null"),
            *("stages.align.micro_batch_size=4", "stages.align.global_batch_size=10"),
            "scaling.num_workers=1",
        ],
        r"use (\d+) or (\d+)",
        [["stages.align.global_batch_size={0}"], ["stages.align.global_batch_size={1}"]],
    ),
    (
        ["model.vision_tower={config: {hidden_size: 8}}"],
        r"name the weights, or give config: \{model_type: \.\.\.\}",
        [
            ["model.vision_tower={weights: some/tower}"],
            ["model.vision_tower={config: {model_type: vit}}"],
        ],
    ),
    (
        ["model.vision_tower.config.model_type=resnet"],
        r"use one of: (\w+), (\w+)",
        [
            ["model.vision_tower.config.model_type={0}"],
            ["model.vision_tower.config.model_type={1}"],
        ],
    ),
    (
        ["model.thinking=mask"],
        "set template: tokenizer, or remove thinking",
        [["model.template=tokenizer"], ["model.thinking=train"]],
    ),
    (
        ["model.weights=llava"],
        "remove it, or vision_tower and language_model",
        [["model.weights=null"], ["model.vision_tower=null", "model.language_model=null"]],
    ),
    (
        ["model.language_model=null"],
        "set it, or set weights to load a model whole",
        [
            ["model.language_model={weights: some/model}"],
            ["model.weights=llava", "model.vision_tower=null"],
        ],
    ),
    (["corpus.pairs={min_words: 9, max_words: 8}"], "lower it", [["corpus.pairs.min_words=8"]]),
    (
        [DIALOGUES],
        "set prices.input and prices.output, or remove it",
        [
            ["corpus.dialogues.endpoint.prices={input: 1, output: 2}"],
            ["corpus.dialogues.endpoint.max_cost=null"],
        ],
    ),
    (
        ["corpus.harvest={published_from: 2020-01-02, published_to: 2020-01-01}"],
        "exchange them",
        [["corpus.harvest.published_from=2020-01-01", "corpus.harvest.published_to=2020-01-02"]],
    ),
    (
        ["corpus.harvest={query: lung, articles: numbers.txt}"],
        "remove one",
        [["corpus.harvest.query=null"], ["corpus.harvest.articles=null"]],
    ),
    (
        [SCANS],
        "set it to the list's SHA-256",
        [[f"data.datasets.scans.read.attested_sha256={'0a' * 32}"]],
    ),
    *(
        ([f"engine.deepspeed={{{key}: {value}}}"], f"set {named} instead", [[f"{mine}"]])
        for key, value, named, mine in (
            (
                "train_batch_size",
                8,
                r"stages\.\*\.global_batch_size",
                "stages.*.global_batch_size=8",
            ),
            ("gradient_clipping", 1, r"stages\.\*\.max_grad_norm", "stages.*.max_grad_norm=2"),
            ("bf16", "{}", r"engine\.precision", "engine.precision=bf16"),
            ("optimizer", "{}", r"stages\.\*\.optimizer", "stages.*.optimizer={lr: 1}"),
            ("scheduler", "{}", r"stages\.\*\.schedule", "stages.*.schedule={name: linear}"),
            ("zero_optimization", "{stage: 3}", r"engine\.zero_stage", "engine.zero_stage=3"),
        )
    ),
]


def demo(*overrides: str):
    """The demo config, in which `stages.*` names every stage."""
    config = load_config(ROOT / "ray_jobs" / "configs" / "demo.yaml")
    names = [stage.name for stage in config.stages]
    return override_config(
        config,
        [
            override.replace("stages.*.", f"stages.{name}.")
            for override in overrides
            for name in (names if "stages.*." in override else names[:1])
        ],
    )


def refusal(wrong: list[str]) -> str:
    with pytest.raises(ConfigError) as caught:
        demo(*wrong)
    return str(caught.value)


@pytest.mark.parametrize(("wrong", "advice", "cures"), CASES, ids=lambda case: str(case)[:60])
def test_a_config_accepts_the_advice_it_is_given(
    wrong: list[str], advice: str, cures: list[list[str]]
) -> None:
    found = re.search(advice, refusal(wrong))
    assert found, refusal(wrong)
    # What is derived is not set at all; everything else stays wrong until it is mended.
    kept = [] if "instead" in advice and "deepspeed" in wrong[0] else wrong
    for cure in cures:
        words = [each.format(*found.groups()) if found.groups() else each for each in cure]
        demo(*kept, *words)


@pytest.mark.parametrize(
    ("wrong", "advice", "cures"),
    [
        (
            ["open_access=true", "host=0.0.0.0"],
            "remove it, or set host to 127.0.0.1",
            [["open_access=false"], ["host=127.0.0.1"]],
        ),
        (
            ["log_content=true"],
            "set audit_log or tracking_uri",
            [["audit_log=a.jsonl"], ["tracking_uri=http://a"]],
        ),
        (["tracking_uri=http://me:secret@a"], "remove it and set", [["tracking_uri=http://a"]]),
    ],
    ids=lambda case: str(case)[:60],
)
def test_a_service_accepts_the_advice_it_is_given(
    wrong: list[str], advice: str, cures: list[list[str]]
) -> None:
    with pytest.raises(ConfigError, match=advice):
        load_section("--config", None, Serving, wrong)
    for cure in cures:
        load_section("--config", None, Serving, [*wrong, *cure])


def templates() -> list[str]:
    """Every message that a section of the config raises, as a pattern."""
    found = []
    for section in SECTIONS:
        tree = ast.parse((CONFIG / f"{section}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "ValueError":
                text = node.args[0]
                parts = text.values if isinstance(text, ast.JoinedStr) else [text]
                found.append(
                    "".join(
                        re.escape(part.value) if isinstance(part, ast.Constant) else ".+?"
                        for part in parts
                    )
                )
    return found


def test_every_message_of_a_section_has_its_advice_tried() -> None:
    said = [refusal(wrong) for wrong, _, _ in CASES]
    untried = [each for each in templates() if not any(re.search(each, text) for text in said)]
    assert len(templates()) > 20
    assert untried == []
