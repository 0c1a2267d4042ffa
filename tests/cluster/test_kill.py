"""Kill anything at any moment, start the same command again, get the same model.

Not among the tests of every day: `make test-kill` kills 20 times, in training, in a save, between
stages and in evaluation. LLAVAMED_KILL_SEED, which it
prints, repeats its choice of moments and victims.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from mlflow import MlflowClient
from transformers import LlavaForConditionalGeneration

from llavamed.storage.location import MANIFEST
from llavamed.storage.manifest import ScoresManifest
from tests.cluster.conftest import DEMO, SMALL

pytestmark = [pytest.mark.ray, pytest.mark.timeout(5400)]

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("LLAVAMED_KILLS", "0"))
SEED = int(os.environ.get("LLAVAMED_KILL_SEED", str(random.SystemRandom().randrange(1 << 30))))
STAGES = ("align", "instruct", "vqa")
STEPS = {"align": 30, "instruct": 40 * KILLS}
pytestmark.append(pytest.mark.skipif(not KILLS, reason="make test-kill runs it"))
VICTIMS = ("worker", "all workers", "driver", "raylet")
MOMENTS = {  # in the order in which a run comes to them, and who can be killed there
    "in training": VICTIMS,
    "in a save": VICTIMS,
    "between stages": ("driver", "raylet"),
    "in evaluation": ("answerer", "driver", "raylet"),
}


def choose_moments(chance: random.Random) -> list[tuple[str, str]]:
    """Moments and victims: the sharp moments for certain, what is left of the kills at random."""
    rest = chance.choices(["in training", "in a save"], k=max(0, KILLS - 4))
    moments = ["in a save", "between stages", *rest, "in evaluation", "in evaluation"][-KILLS:]
    return [(moment, chance.choice(MOMENTS[moment])) for moment in moments]


def has_come(moment: str, stages: Path) -> bool:
    """Whether a run is at that moment now, as its folders tell."""
    if moment == "in a save":
        saves = stages.glob("*/checkpoints/step-*")
        return any(not (save / MANIFEST).exists() for save in saves)
    folder = stages / "instruct" / "checkpoints"
    has_trained = {stage: (stages / stage / "export" / MANIFEST).exists() for stage in STAGES}
    if moment == "between stages":
        return has_trained["align"] and not folder.exists()
    if moment == "in evaluation":
        return (
            has_trained["vqa"]
            and not (stages / "vqa" / "evaluation" / ScoresManifest.FILE).exists()
        )
    return folder.exists() and not has_trained["instruct"]


def start(storage: Path, environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    overrides = [
        *SMALL,
        f"storage={storage}",
        "max_failures=100",
        "checkpoint.every_steps=5",
        *(f"stages.{stage}.max_steps={steps}" for stage, steps in STEPS.items()),
    ]
    command = [sys.executable, "ray_jobs/train.py", "--config", str(DEMO), *overrides]
    with log.open("ab") as sink:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=sink, stderr=sink)


def named(processes: list[psutil.Process], name: str) -> list[psutil.Process]:
    found = []
    for process in processes:
        try:
            if name in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill(driver: subprocess.Popen[bytes], victim: str) -> bool:
    """Kill a victim below the driver, if it is there by now."""
    below = psutil.Process(driver.pid).children(recursive=True)
    workers, answerers = named(below, "RayTrainWorker"), named(below, "Answerer")
    victims = {
        "worker": workers[:1],
        "all workers": workers,
        "answerer": answerers[:1],
        "driver": [psutil.Process(driver.pid)],
        "raylet": named(below, "raylet/raylet "),
    }[victim]
    for process in victims:
        process.kill()
    if victims and victim in ("driver", "raylet"):
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        for process in below:  # what the operating system of a lost machine would do
            try:
                process.kill()
                process.wait(timeout=20)
            except psutil.Error:
                continue
    return bool(victims)


def test_a_run_killed_again_and_again_ends_as_if_nothing_had_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        "RAY_ADDRESS": "local",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_worker_niceness": "0",
        "OMP_NUM_THREADS": "1",
    }
    print(f"LLAVAMED_KILL_SEED={SEED}")  # noqa: T201
    quiet, log = tmp_path / "quiet", tmp_path / "log.txt"
    assert start(quiet, environment, log).wait(timeout=900) == 0, log.read_text()
    chance = random.Random(SEED)
    moments = choose_moments(chance)
    print(*(f"{victim} {moment}" for moment, victim in moments), sep=", ")  # noqa: T201
    storage, num_kills = tmp_path / "killed", 0
    driver = start(storage, environment, log)
    while driver.poll() != 0:
        if driver.poll() is not None:
            driver = start(storage, environment, log)
        time.sleep(0.02)
        if num_kills == KILLS or not has_come(moments[num_kills][0], storage / "demo" / "stages"):
            continue
        moment, victim = moments[num_kills]
        if moment in ("in training", "in evaluation"):
            time.sleep(chance.uniform(0.5, 8.0))
        if driver.poll() is None and has_come(moment, storage / "demo" / "stages"):
            num_kills += kill(driver, victim)
    print(f"killed {num_kills} times")  # noqa: T201
    assert num_kills == KILLS, f"the run ended before {moments[num_kills:]}"
    for stage in STAGES:
        exports = [folder / "demo" / "stages" / stage / "export" for folder in (quiet, storage)]
        one, other = (
            LlavaForConditionalGeneration.from_pretrained(export).state_dict() for export in exports
        )
        assert all(torch.equal(one[name], other[name]) for name in one)
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    for stage, steps in STEPS.items():
        (run,) = client.search_runs(["1"], f"attributes.run_name = '{stage}'")
        losses = client.get_metric_history(run.info.run_id, "loss")
        assert [point.step for point in losses] == list(range(1, steps + 1))
