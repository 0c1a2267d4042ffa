from pathlib import Path

import pytest

from llavamed.config.load import load_config
from llavamed.errors import ConfigError

DEMO = Path(__file__).parents[2] / "ray_jobs" / "configs" / "demo.yaml"


def message(*overrides, file=DEMO):
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides)
    return str(caught.value)


MISTAKES = {
    "settings of a part that does not train": (
        "stages.align.optimizer.parts.language_model.lr=1e-5",
        "stages.align.optimizer.parts.language_model: does not train in this stage, whose "
        "trainable is [projector]; remove it, or add language_model to trainable",
    ),
    "adapters of a part that does not train": (
        "stages.align.lora.r=8",
        "stages.align.trainable=[projector]: lora trains the language model's adapters and the "
        "projector; name both, or remove lora",
    ),
    "a bound that every loss exceeds": (
        "stages.align.max_loss_ratio=1",
        "stages.align.max_loss_ratio=1: must be greater than 1; correct it",
    ),
    "a number for a date": (
        "corpus.harvest.published_from=2015",
        "corpus.harvest.published_from=2015: must be a date such as 2015-01-31; correct it",
    ),
    "no day for a date": (
        "corpus.harvest.published_from=2015-02-31",
        'corpus.harvest.published_from="2015-02-31": must be a date such as 2015-01-31; correct it',
    ),
    "unknown key with a neighbour": (
        "stages.align.optimiser.lr=1",
        "stages.align.optimiser: unknown key; did you mean 'optimizer'?",
    ),
    "unknown key without": (
        "engine.offload=cpu_memory",
        "engine.offload: unknown key; use one of: zero_stage, precision, offload_optimizer, "
        "deepspeed, kernels",
    ),
    "unknown key of a source": (
        "data.datasets.captions.read.num_image=3",
        "data.datasets.captions.read.num_image: unknown key; did you mean 'num_images'?",
    ),
    "key of another form of source": (
        "data.datasets.captions.read={source: llava_json, path: a, image_folder: b, num_images: 1}",
        "data.datasets.captions.read.num_images: unknown key; use one of: source, path, "
        "image_folder, licence",
    ),
    "missing key": (
        "data.datasets.more.max_bad_fraction=0",
        "data.datasets.more.read: must be set; add it to the file or as "
        "data.datasets.more.read=VALUE",
    ),
    "source without its kind": (
        "data.datasets.captions.read={path: a}",
        "data.datasets.captions.read.source: must be set; add it to the file or as "
        "data.datasets.captions.read.source=VALUE",
    ),
    "source of unknown kind": (
        "data.datasets.captions.read.source=csv",
        "data.datasets.captions.read.source=\"csv\": must be one of 'phantoms', 'llava_json', "
        "'scans', 'vqa_rad', 'slake', 'path_vqa', 'pmc_vqa', 'parquet', 'webdataset'; correct it",
    ),
    "name with a capital": (
        "name=Demo",
        "name=\"Demo\": must be of a-z, 0-9, '_' and '-' (a run's name also of '.'), begin and "
        "end with a letter or digit, and have at most 63 characters; correct it",
    ),
    "dataset's name with a space": (
        "data.datasets.my set={read: {source: vqa_rad, path: a}}",
        "data.datasets.my set: must be of a-z, 0-9, '_' and '-' (a run's name also of '.'), begin "
        "and end with a letter or digit, and have at most 63 characters; correct it",
    ),
    "stage's name with a dot, which overrides could not spell": (
        "stages.align.name=align.1",
        "stages.align.1.name=\"align.1\": must be of a-z, 0-9, '_' and '-' (a run's name also of "
        "'.'), begin and end with a letter or digit, and have at most 63 characters; correct it",
    ),
    "password in the server's address": (
        "tracking.uri=http://me:secret@mlflow:5000",
        "tracking.uri: holds a password, and a config is shown and stored; remove it and set "
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment",
    ),
    "word for a number": (
        "stages.align.optimizer.lr=fast",
        'stages.align.optimizer.lr="fast": must be a valid number, unable to parse string as a '
        "number; correct it",
    ),
    "number out of bounds": (
        "stages.align.optimizer.lr=-1",
        "stages.align.optimizer.lr=-1: must be greater than 0; correct it",
    ),
    "unknown template": (
        "model.template=vicuna",
        "model.template=\"vicuna\": must be 'vicuna_v1', 'mistral_instruct', 'llava_med_v0', "
        "'llava_med_vicuna_v1_1', 'llama_2', 'plain' or 'tokenizer'; correct it",
    ),
    "unknown tower": (
        "model.vision_tower.config.model_type=clap_vision",
        "model.vision_tower.config.model_type=clap_vision: is not a known image encoder; "
        "use one of: clip_vision_model, siglip_vision_model, vit, dinov2, dinov2_with_registers, "
        "dinov3_vit",
    ),
    "key that lies one level down": (
        "stages.align.lr=1e-3",
        "stages.align.lr: unknown key; did you mean 'optimizer.lr'?",
    ),
    "key of a section, at the root": (
        "zero_stage=3",
        "zero_stage: unknown key; did you mean 'engine.zero_stage'?",
    ),
    "key of every stage, at the root": (
        "packing=false",
        "packing: unknown key; did you mean 'stages.*.packing'?",
    ),
    "key of the source": (
        "data.datasets.captions.num_images=3",
        "data.datasets.captions.num_images: unknown key; did you mean 'read.num_images'?",
    ),
    "every Nth layer of a negative N": (
        "stages.align.gradient_checkpointing=-1",
        "stages.align.gradient_checkpointing=-1: must be greater than or equal to 2; correct it",
    ),
    "every Nth layer of a fraction": (
        "stages.align.gradient_checkpointing=2.5",
        "stages.align.gradient_checkpointing=2.5: must be a valid integer, got a number with a "
        "fractional part; correct it",
    ),
    "some layers in words": (
        "stages.align.gradient_checkpointing=half",
        'stages.align.gradient_checkpointing="half": must be a valid boolean, unable to interpret '
        "input; correct it",
    ),
    "a dataset that is named like a form of a field": (
        "data.datasets.several={}",
        "data.datasets.several.read: must be set; add it to the file or as "
        "data.datasets.several.read=VALUE",
    ),
    "key that lies one level up": (
        "stages.align.optimizer.max_grad_norm=2",
        "stages.align.optimizer.max_grad_norm: unknown key; did you mean "
        "'stages.align.max_grad_norm'?",
    ),
    "key that is misspelt one level down": (
        "stages.align.zero_stge=1",
        "stages.align.zero_stge: unknown key; did you mean 'engine.zero_stage'?",
    ),
    "negative seed": ("seed=-1", "seed=-1: must be greater than or equal to 0; correct it"),
    "seed beyond numpy": (
        "seed=4294967296",
        "seed=4294967296: must be less than 4294967296; correct it",
    ),
    "seed of a source": (
        "data.datasets.captions.read.seed=-1",
        "data.datasets.captions.read.seed=-1: must be greater than or equal to 0; correct it",
    ),
    "moment that never decays": (
        "stages.align.optimizer.betas=[0.9, 1]",
        "stages.align.optimizer.betas.1=1: must be less than 1; correct it",
    ),
    "infinite rate": (
        "stages.align.optimizer.lr=.inf",
        "stages.align.optimizer.lr=inf: must be a finite number; correct it",
    ),
    "infinite rate as text": (
        "stages.align.optimizer.lr='inf'",
        'stages.align.optimizer.lr="inf": must be a finite number; correct it',
    ),
    "GPU among the resources": (
        "scaling.resources_per_worker={CPU: 1, GPU: 1}",
        "scaling.resources_per_worker.GPU=1: a worker has one GPU or none; remove it and set "
        "scaling.use_gpu to true",
    ),
    "resource in lower case": (
        "scaling.resources_per_worker={cpu: 1}",
        "scaling.resources_per_worker.cpu=1: Ray spells this resource 'CPU'; write it that way",
    ),
    "resource in finer steps than Ray's": (
        "scaling.resources_per_worker={CPU: 0.00001}",
        "scaling.resources_per_worker.CPU=1e-05: Ray counts in steps of 0.0001; use 0.0001",
    ),
    "type of a GPU that is not asked for": (
        "scaling.accelerator_type=A100",
        "scaling.accelerator_type=A100: names a GPU, but use_gpu=false asks for none; set use_gpu "
        "to true, or remove it",
    ),
    "DeepSpeed key with a typo": (
        "engine.deepspeed.zero_optimisation.overlap_comm=true",
        "engine.deepspeed.zero_optimisation: unknown key; did you mean 'zero_optimization'?",
    ),
    "nested DeepSpeed key with a typo": (
        "engine.deepspeed.zero_optimization.reduce_bucket_sise=1",
        "engine.deepspeed.zero_optimization.reduce_bucket_sise: unknown key; did you mean "
        "'reduce_bucket_size'?",
    ),
    "DeepSpeed key of a wrong type": (
        "engine.deepspeed.zero_optimization.reduce_bucket_size=big",
        'engine.deepspeed.zero_optimization.reduce_bucket_size="big": must be a valid integer, '
        "unable to parse string as an integer; correct it",
    ),
    "DeepSpeed key of a stage that is derived": (
        "stages.align.engine.deepspeed.gradient_clipping=1",
        "stages.align.engine.deepspeed.gradient_clipping: is derived; set stages.*.max_grad_norm "
        "instead",
    ),
    "offload without ZeRO": (
        "stages.align.engine={zero_stage: 0, offload_optimizer: cpu}",
        "stages.align.engine.offload_optimizer=cpu: has no effect with "
        "stages.align.engine.zero_stage=0, which partitions nothing; set zero_stage to 1, 2 or 3, "
        "or offload_optimizer to none",
    ),
    "length of packs without packing": (
        "stages.align.packing=false",
        "stages.align.max_tokens=384: has no effect with packing=false, where a forward pass holds "
        "micro_batch_size=1 samples; remove it or set it to null, or set packing to true",
    ),
    "address that is none": (
        "tracking.uri='http://['",
        "tracking.uri: is not a valid URI (Invalid IPv6 URL); correct it",
    ),
    "half a character": ('name="\\ud800"', 'name="\\ud800": has control characters; remove them'),
    "control character": (
        'storage="a\\0b"',
        'storage="a\\u0000b": has control characters; remove them',
    ),
    "number beyond 64 bits": (
        "seed=99999999999999999999",
        "seed: the number does not fit 64 bits; use a smaller one",
    ),
    "fraction of a worker": (
        "scaling.num_workers=1.5",
        "scaling.num_workers=1.5: must be a valid integer, got a number with a fractional part; "
        "correct it",
    ),
    "least workers above the most": (
        "scaling.num_workers=[4, 2]",
        "scaling.num_workers=[4, 2]: the least is more than the most; write [2, 4]",
    ),
    "more workers than there is work": (
        "scaling.num_workers=[2, 64]",
        "scaling.num_workers=64: is more than the forward passes per step that stage align "
        "distributes, global_batch_size / micro_batch_size = 4; use at most that many workers",
    ),
    "a dataset's passes": (
        "stages.align.data={captions: 0}",
        "stages.align.data.captions=0: must be greater than 0; correct it",
    ),
    "unknown choice": (
        "engine.precision=fp16",
        "engine.precision=\"fp16\": must be 'bf16' or 'fp32'; correct it",
    ),
    "list for a mapping": (
        "stages.align.data=[captions, dialogues]",
        "stages.align.data=[...]: must be a mapping such as {NAME: VALUE}; correct it",
    ),
    "value for a section": ("model=llava", 'model="llava": must be a mapping; correct it'),
    "value for a list": (
        "stages.align.trainable=projector",
        'stages.align.trainable="projector": must be a list; correct it',
    ),
    "empty list": ("stages=[]", "stages=[]: must have at least 1 item, not 0; correct it"),
    "list too short": (
        "stages.align.optimizer.betas=[0.9]",
        "stages.align.optimizer.betas=[...]: has too few items; add the others",
    ),
    "unknown stage": (
        "stages.alin.optimizer.lr=1",
        "stages.alin: no stage has this name; use one of: align, instruct, vqa",
    ),
    "stage as a whole": (
        "stages.align={}",
        "stages.align: a stage is not replaced alone; set the fields of a stage one by one, and "
        "any other list as a whole",
    ),
    "item of a list": (
        "stages.align.trainable.0=projector",
        "stages.align.trainable.0: an item of a list is not replaced alone; set the fields of a "
        "stage one by one, and any other list as a whole",
    ),
    "key below a value": ("name.first=a", "name: has no keys below it; set it as a whole"),
    "no equals sign": (
        "seed",
        "seed: an override is key=value; e.g. stages.align.optimizer.lr=1e-3",
    ),
    "no key": ("=3", "=3: an override is key=value; e.g. stages.align.optimizer.lr=1e-3"),
    "value that is no YAML": ("storage=[", "storage: the value is not valid YAML; quote it"),
    "two of a name": (
        "stages.align.name=instruct",
        "stages: name=instruct is used 2 times; rename one",
    ),
    "packed rows": (
        "stages.align.micro_batch_size=2",
        "stages.align.micro_batch_size=2: with packing a forward pass takes one pack; set it to 1 "
        "and raise max_tokens instead",
    ),
    "batch that workers cannot share": (
        "stages.align.global_batch_size=3",
        "stages.align.global_batch_size=3 is not a multiple of micro_batch_size x "
        "scaling.num_workers = 1 x 2 = 2; use 2 or 4, or 1 or 3 workers",
    ),
    "packs shorter than a sample": (
        "stages.align.max_tokens=128",
        "stages.align.max_tokens=128 is less than data.max_length=256: the longest sample would "
        "fit no pack; raise the first or lower the second",
    ),
    "unknown data": (
        "stages.align.data=figures",
        "stages.align.data=figures is not in data.datasets; use one of: captions, dialogues, "
        "questions, test-questions",
    ),
    "unknown data of an evaluation": (
        "stages.vqa.evaluation.data=exam",
        "stages.vqa.evaluation.data=exam is not in data.datasets; use one of: captions, dialogues, "
        "questions, test-questions",
    ),
    "unknown data of the majority": (
        "stages.vqa.evaluation.majority_from=exam",
        "stages.vqa.evaluation.majority_from=exam is not in data.datasets; use one of: captions, "
        "dialogues, questions, test-questions",
    ),
    "weights of a later stage": (
        "stages.align.initial_weights=vqa",
        "stages.align.initial_weights=vqa: is not an earlier stage, so it has no weights yet; "
        "name an earlier one, or leave it out",
    ),
    "whole model and parts": (
        "model.weights=llava",
        "model.weights=llava: a model is loaded whole or made of parts, never both; remove it, or "
        "vision_tower and language_model",
    ),
    "one part alone": (
        "model.language_model=null",
        "model.language_model=null: a model is made of both vision_tower and language_model; set "
        "it, or set weights to load a model whole",
    ),
    "random part without a shape": (
        "model.vision_tower={config: {hidden_size: 8}}",
        "model.vision_tower.weights=null needs config.model_type: random weights need a shape; "
        "name the weights, or give config: {model_type: ...}",
    ),
}


@pytest.mark.parametrize(("override", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_with_its_cure(override, sentence):
    assert message(override) == sentence


def test_weights_beside_one_part_are_refused_too():
    found = message("model.weights=llava", "model.vision_tower=null")
    assert found.endswith("never both; remove it, or language_model")


def test_a_batch_must_hold_whole_micro_batches():
    found = message(
        *("stages.align.packing=false", "stages.align.max_tokens=null"),
        "stages.align.micro_batch_size=4",
        "stages.align.global_batch_size=6",
    )
    assert found == (
        "stages.align.global_batch_size=6 is not a multiple of micro_batch_size=4; use 4 or 8"
    )


def test_all_mistakes_are_named_at_once():
    found = message("seed=x", "max_failures=-1", "stages.vqa.dta=questions")
    assert [line.split("=")[0].split(":")[0] for line in found.splitlines()] == [
        "seed",
        "max_failures",
        "stages.vqa.dta",
    ]


@pytest.mark.parametrize(
    "override",
    [
        "tracking.password=hunter2",
        "tracking.experiment={password: hunter2}",
        "tracking={password: hunter2}",
        "storage.key=hunter2",
        "tracking.uri=[hunter2",
        "data.datasets.captions.read={source: llava_json, password: hunter2}",
        "model={vision_tower: {weights: a}, password: hunter2}",
    ],
)
def test_a_mistake_shows_nothing_of_what_a_section_holds(override):
    assert "hunter2" not in message(override)
