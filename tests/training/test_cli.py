import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from llavamed.cli import main as cli
from llavamed.cli.options import load_run
from llavamed.config.load import load_config
from llavamed.errors import ConfigError, StorageError
from llavamed.model.cost.speeds import Setting
from llavamed.run.plan import plan_run
from llavamed.storage.manifest import Measurement

CONFIGS = Path(__file__).parents[2] / "ray_jobs" / "configs"
DEMO = str(CONFIGS / "demo.yaml")
V1, V15 = str(CONFIGS / "llava-med-v1.yaml"), str(CONFIGS / "llava-med-v1.5.yaml")


@pytest.fixture
def run(monkeypatch, llavamed):
    """Run a command line; gives its exit code, output, and errors without its first messages."""
    monkeypatch.delenv("LLAVAMED_CONFIG", raising=False)

    def call(*words):
        code, out, err = llavamed(*words)
        return code, out, re.sub(r"(?m)^\S+ \S+ INFO (?:config|checking places).*\n", "", err)

    return call


@pytest.fixture
def unreachable(monkeypatch):
    """No object storage: nothing listens where the environment leads."""
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }.items():
        monkeypatch.setenv(name, value)


def test_config_prints_yaml_that_loads_again(run, tmp_path):
    code, out, err = run("config", "--config", DEMO, "stages.align.optimizer.lr=5e-4")
    assert (code, err) == (0, "")
    file = tmp_path / "run.yaml"
    file.write_text(out, encoding="utf-8")
    assert load_config(file) == load_config(DEMO, ["stages.align.optimizer.lr=5e-4"])
    assert yaml.safe_load(out)["engine"]["offload_optimizer"] == "none"


def test_config_prints_a_json_schema_that_describes_each_setting(run):
    code, out, _ = run("config", "--schema")
    assert code == 0
    schema = json.loads(out)
    jsonschema.Draft202012Validator.check_schema(schema)
    for section in [*schema["$defs"].values(), schema]:
        assert section["description"]
        for name, field in section["properties"].items():  # a section is described where it is
            assert {"description", "$ref", "const"} & field.keys(), f"{section['title']}.{name}"
    demo = yaml.safe_load(Path(DEMO).read_text(encoding="utf-8"))
    jsonschema.validate(demo, schema)
    with pytest.raises(jsonschema.ValidationError, match="'wrokers' was unexpected"):
        jsonschema.validate(demo | {"wrokers": 2}, schema)


def test_the_environment_names_the_config(run, monkeypatch):
    monkeypatch.setenv("LLAVAMED_CONFIG", DEMO)
    code, out, _ = run("config", "seed=7")
    assert code == 0
    assert yaml.safe_load(out)["seed"] == 7
    assert yaml.safe_load(run("config", "--config", V1)[1])["name"] == "llava-med-v1"


@pytest.mark.parametrize("command", ["config", "plan", "prepare", "train", "evaluate"])
def test_a_missing_config_is_asked_for(command, run):
    code, out, err = run(command)
    assert (code, out) == (2, "")
    assert err == (
        "error: --config: is missing; name the YAML file of the run, or set LLAVAMED_CONFIG\n"
    )


@pytest.mark.parametrize("command", ["config", "plan", "prepare", "train", "evaluate"])
def test_a_mistake_in_the_config_is_one_sentence_and_exit_code_2(command, run):
    code, _, err = run(command, "--config", DEMO, "stages.align.max_tokens=[64]")
    assert code == 2
    assert err == "error: stages.align.max_tokens=[...]: must be a valid integer; correct it\n"


def test_an_error_that_looks_like_markup_is_printed_as_it_is(run):
    code, _, err = run("config", "--config", "/[bold]run[/bold].yaml")
    assert code == 2
    assert "config=/[bold]run[/bold].yaml: cannot be read" in err


def test_debug_shows_the_traceback():
    with pytest.raises(ConfigError, match="cannot be read"):
        cli.main(["config", "--config", "/nowhere.yaml", "--debug"])
    with pytest.raises(ConfigError, match="cannot be read"):
        cli.main(["--debug", "config", "--config", "/nowhere.yaml"])


def test_other_errors_have_exit_code_1(run, tmp_path):
    (tmp_path / "file").write_text("")
    words = ("train", "--config", DEMO, f"storage={tmp_path}/file")
    code, _, err = run(*words)
    assert code == 1
    assert err.startswith(f"error: {tmp_path}/file/demo")
    assert "Traceback" not in err
    with pytest.raises(StorageError):
        cli.main([*words, "--debug"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("prepare", "--dataset", "figures"), "dataset=figures: is not in data.datasets; use one"),
        (("evaluate", "--stage", "exam"), "stage=exam: there is none of this name; use one of: al"),
        (("evaluate", "--stage", "align"), "stages: no evaluation is set for align; add one"),
        (("evaluate", "--stage", "vqa"), "stage=vqa: is not trained yet; train it first"),
        (("export", "{}/model", "--stage", "exam"), "stage=exam: there is none of this name"),
        (("plan", "--gpu", "TPU"), "gpu=TPU: its speed is not known; use one of: A100-40G, A100"),
        (("plan", "--measured", "{}/it"), "measured={}/it: holds no measurements: FileNotFoundE"),
    ],
    ids=["dataset", "stage", "no evaluation", "not trained", "export", "gpu", "measured"],
)
def test_names_that_are_not_there_are_refused_before_anything_starts(
    words, sentence, run, tmp_path
):
    words = [word.format(tmp_path) for word in words]
    code, _, err = run(*words, "--config", DEMO, f"storage={tmp_path}")
    assert code == 2
    assert err.startswith(f"error: {sentence.format(tmp_path)}")
    assert list(tmp_path.iterdir()) == []


def test_plan_says_what_the_paper_s_run_costs_without_network_or_data(run, unreachable):
    code, out, err = run("plan", "--config", V1, "--gpu", "A100", "--num-gpus", "8")
    assert (code, err) == (0, "")
    assert "8 x A100 at 39% and 40% model-FLOPs utilization" in out
    assert "39% model-FLOPs utilization is taken from H200 (gpu-step-align-2: ours)" in out
    for number in ("600,000", "4,688", "2,814", "128.0"):
        assert number in out
    assert "All stages: " in out


def trained(cost):
    return sum(part.num_trained for part in cost.parts)


def test_a_range_of_workers_is_planned_for_the_fewest_and_the_slowest(tmp_path):
    def plan_for(*workers):
        value = workers[0] if len(workers) == 1 else list(workers)
        overrides = [f"data.directory={tmp_path}", f"scaling.num_workers={value}"]
        return plan_run(load_config(V1, overrides), accelerator="A100")[0]

    one, several, uneven = plan_for(2), plan_for(2, 8), plan_for(2, 6)
    assert several.memory == one.memory
    assert several.hours == pytest.approx(one.hours / 4)
    passes = 128 // load_config(V1).stages[0].micro_batch_size
    assert uneven.hours == pytest.approx(one.hours / (passes / 2) * -(-passes // 6))
    given = plan_run(
        load_config(V1, ["scaling.num_workers=[2, 8]"]), accelerator="A100", num_gpus=6
    )
    assert given[0].num_gpus == 6
    assert given[0].memory == one.memory


@pytest.mark.parametrize(
    ("file", "projector", "language_model"),
    # A linear projector has 1024 x 4096 weights and 4096 biases, the other 4096 x 4096 + 4096 more.
    [(V1, 4_198_400, 6_738_415_616), (V15, 20_979_712, 7_241_732_096)],
    ids=["v1", "v1.5"],
)
def test_the_paper_s_stages_train_what_they_should(file, projector, language_model, tmp_path):
    config = load_config(file, [f"data.directory={tmp_path}"])
    costs = plan_run(config, accelerator="A100", num_gpus=8)
    assert [cost.steps for cost in costs] == [4688, 2814, 720, 1155, 4635]
    assert trained(costs[0]) == projector
    assert {trained(cost) for cost in costs[1:]} == {projector + language_model}
    assert all(cost.is_declared for cost in costs)
    assert all(cost.memory.total < cost.gpu_memory for cost in costs)


def test_a_number_of_gpus_takes_the_place_of_workers_that_cannot_share_the_batch():
    overrides = ["scaling.num_workers=7"]
    assert load_run(str(V1), overrides, num_workers=8).scaling.num_workers == 8
    for num_workers, number in ((6, 6), (None, 7)):
        with pytest.raises(ConfigError, match=rf"global_batch_size=128 is not .* 8 x {number} = "):
            load_run(str(V1), overrides, num_workers=num_workers)


def test_a_plan_for_gpus_that_cannot_share_the_batch_is_refused(run, unreachable):
    code, _, err = run("plan", "--config", V1, "--num-gpus", "7")
    assert code == 2
    assert (
        "stages.align.global_batch_size=128 is not a multiple of micro_batch_size x scaling" in err
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["config", "--config", DEMO],
        ["plan", "--config", "/nowhere.yaml"],
        ["train", "--config", DEMO, "seed=x"],
        ["prepare", "--config", DEMO, "seed=x"],
        ["data", "decontaminate", "--help"],
        ["evaluate", "--config", DEMO, "seed=x"],
        ["export", "/tmp/none", "--config", "/nowhere.yaml"],
        ["data", "--help"],
        ["data", "inspect", "figures", "--config", "/nowhere.yaml"],
    ],
    ids=" ".join,
)
def test_help_and_mistakes_import_nothing_heavy(words):
    code = (
        "import sys\n"
        "from llavamed.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'transformers', 'deepspeed', 'mlflow', 'pyarrow', 'numpy'}\n"
        "sys.exit(', '.join(sorted(heavy & sys.modules.keys())) or None)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "LLAVAMED_CONFIG"}
    found = subprocess.run(
        [sys.executable, "-c", code, *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert found.returncode == 0, found.stderr


def test_a_declared_spread_and_what_is_measured_are_said(run, tmp_path):
    def plan(*overrides):
        return plan_run(load_config(V1, overrides), accelerator="A100")[0]

    key = "data.datasets.alignment.declared.text_tokens_spread"
    level, spread = plan(f"{key}=0"), plan(f"{key}=1")
    assert level.useful_tokens == pytest.approx(1.0)
    assert spread.useful_tokens < 0.7
    assert spread.num_tokens == level.num_tokens
    assert spread.flops > level.flops  # attention grows with the square of the lengths
    assert spread.hours / level.hours > 1.2
    config = load_config(V1, [])
    setting = Setting.of(config.stages[0], config.engine.kernels, "A100")
    found = Measurement(result="it", **vars(setting), mfu=0.51).model_dump(mode="json")
    file = tmp_path / "it.json"
    file.write_text(json.dumps({"measured": [found]}))
    code, out, _ = run("plan", "--config", V1, "--gpu", "A100", "--measured", str(file))
    assert code == 0
    assert "8 x A100 at 51% and 40% model-FLOPs utilization" in out
    assert "align: 51% model-FLOPs utilization is measured (it); memory is estimated" in out
    assert "instruct: 40% model-FLOPs utilization is assumed; memory is estimated" in out
    assert f"({key})" in "".join(out.split("\n"))
    assert "150 text tokens on average with a spread of 0.6" in " ".join(out.split())


def test_a_config_that_trains_in_one_process_is_planned_for_several_gpus(run, unreachable):
    local = "scaling={launcher: local, num_workers: 1}"
    code, out, _ = run("plan", "--config", V1, local, "--num-gpus", "8")
    assert code == 0
    assert "8 x A100" in out
