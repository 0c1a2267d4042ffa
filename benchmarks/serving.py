"""The service beside a plain `generate` loop: tokens a second at 1, 8 and 32 clients, and a soak.

The model has random weights and never ends an answer, so every answer has the same length. The
service runs in a process of its own. Each client asks one question with an image after another.
The soak sends broken requests among the good ones: none of the good ones may be lost, and the
memory of the service must not grow.
"""

import argparse
import asyncio
import base64
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from PIL import Image
from report import finish, gate

TOKEN = "a-token-of-the-benchmark"
SMOLLM2_135M = (
    "{model_type: llama, hidden_size: 576, intermediate_size: 1536, num_hidden_layers: 30, "
    "num_attention_heads: 9, num_key_value_heads: 3, vocab_size: 49152, "
    "max_position_embeddings: 8192, tie_word_embeddings: true}"
)
DEMO = Path(__file__).parents[1] / "ray_jobs" / "configs" / "demo.yaml"


def make_export(folder: str, language_model: str | None) -> None:
    """Write an export of random weights: the demo's model, or another language model in it."""
    import torch

    from llavamed.config.load import load_config
    from llavamed.model.export import write_export
    from llavamed.model.llava import build_model
    from llavamed.processor.build import build_processor
    from llavamed.processor.encode import get_template, template_hash
    from llavamed.storage.location import locate
    from llavamed.storage.manifest import ExportManifest, write

    other = [f"model.language_model.config={language_model}"] if language_model else []
    config = load_config(DEMO, other)
    processor = build_processor(config.model, iter(["USER: What is shown? ASSISTANT: A lesion."]))
    model = build_model(config.model, processor, seed=0, precision="fp32")
    with torch.no_grad():  # the largest logit of random weights is above that of the end token
        model.get_output_embeddings().weight[processor.tokenizer.eos_token_id] = 0
    place, template = locate(folder), get_template(config.model.template)
    write_export(place, model, model.state_dict(), processor)
    facts: dict[str, Any] = dict.fromkeys(("fingerprint", "stage"), "random")
    facts |= {key: {} for key in ("datasets", "step_seconds", "parts")}
    facts["settings"] = {
        "seed": 0,
        "model": {},
        "engine": {},
        "stages": {},
        "data": {"datasets": {}},
    }
    facts |= dict.fromkeys(("steps", "num_tokens"), 0)
    numbers = ("loss_first", "loss_last", "tokens_per_second", "seconds", "logits_difference")
    facts |= dict.fromkeys(numbers, 0.0)
    facts["template"] = config.model.template
    facts["template_hash"] = template_hash(template, processor.tokenizer)
    write(place, ExportManifest(**facts))


def picture() -> bytes:
    """A picture of noise as PNG."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def plain_loop(export: str, num_tokens: int, num_answers: int) -> float:
    """Tokens a second of transformers' `generate`, one question after another."""
    import torch

    from llavamed.model.generation import Prompt
    from llavamed.processor.images import to_pixels
    from llavamed.processor.turns import Turn
    from llavamed.serve.export import open_export
    from llavamed.storage.location import locate

    generator = open_export(locate(export), device="cpu")
    pixels = to_pixels(picture(), generator.images)
    encoded = generator.encode(Prompt([Turn("user", "<image>\nWhat is shown?")], [pixels]))
    start = time.perf_counter()
    for _ in range(num_answers):
        generator._model.generate(
            input_ids=torch.tensor([encoded.input_ids]),
            pixel_values=encoded.pixel_values,
            do_sample=False,
            min_new_tokens=num_tokens,
            max_new_tokens=num_tokens,
        )
    return num_answers * num_tokens / (time.perf_counter() - start)


class Service:
    """A service in a process of its own."""

    def __init__(self, export: str) -> None:
        limits = "{requests_per_minute: 1000000}"
        command = [sys.executable, "-m", "llavamed", "serve", export, "port=0", f"limits={limits}"]
        self._process = subprocess.Popen(
            [*command, "max_batch_size=32", "max_waiting=64"],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"LLAVAMED_SERVE_TOKEN": TOKEN},
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().split()[1].rstrip("/")

    def resident_mebibytes(self) -> float:
        """Memory of the process."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8")
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024

    def stop(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait()


def body(num_tokens: int, *, is_broken: bool = False) -> dict[str, Any]:
    """A question with an image, or one whose image is broken."""
    data = b"no image" if is_broken else picture()
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "What is shown?"},
    ]
    messages = [{"role": "user", "content": content}]
    return {"model": "llavamed", "messages": messages, "max_tokens": num_tokens, "stream": True}


async def ask(session: aiohttp.ClientSession, url: str, asked: dict[str, Any]) -> tuple[int, float]:
    """Ask, read the whole stream, and return its status and the seconds to the first token."""
    start = time.perf_counter()
    first = 0.0
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with session.post(f"{url}/v1/chat/completions", json=asked, headers=headers) as answer:
        is_whole = answer.status != 200
        async for line in answer.content:
            first = first or time.perf_counter() - start
            is_whole |= line.strip() == b"data: [DONE]"
        return (answer.status if is_whole else 0), first


async def load(url: str, num_clients: int, num_requests: int, num_tokens: int) -> dict[str, Any]:
    """Requests and tokens a second of so many clients, and their seconds to the first token."""
    asked, left, firsts = body(num_tokens), iter(range(num_requests)), list[float]()

    async def client(session: aiohttp.ClientSession) -> None:
        for _ in left:
            status, first = await ask(session, url, asked)
            assert status == 200, status
            firsts.append(first)

    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        start = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(num_clients)))
        seconds = time.perf_counter() - start
    cuts = statistics.quantiles(firsts, n=100, method="inclusive")
    return {
        "requests_per_second": num_requests / seconds,
        "tokens_per_second": num_requests * num_tokens / seconds,
        "first_token_p50_seconds": cuts[49],
        "first_token_p99_seconds": cuts[98],
    }


async def soak(service: Service, num_requests: int) -> dict[str, Any]:
    """Send requests of which each hundredth is broken, and count what was not as it should be."""
    good, broken = body(4), body(4, is_broken=True)
    left, lost, memory = iter(range(num_requests)), 0, list[float]()

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal lost
        for number in left:
            is_broken = number % 100 == 7
            status, _ = await ask(session, service.url, broken if is_broken else good)
            lost += status != (400 if is_broken else 200)
            if number % max(1, num_requests // 20) == 0:
                memory.append(service.resident_mebibytes())

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(client(session) for _ in range(16)))
    settled = memory[len(memory) // 4]
    return {"requests": num_requests, "lost": lost, "memory": memory[-1] / settled}


def measure(name: str, language_model: str | None, *, quick: bool) -> dict[str, Any]:
    """Everything about one model."""
    num_tokens = 16 if quick else 64
    with tempfile.TemporaryDirectory() as folder:
        make_export(folder, language_model)
        plain = plain_loop(folder, num_tokens, 3 if quick else 8)
        service = Service(folder)
        try:
            asyncio.run(load(service.url, 2, 4, 4))  # warm
            clients = {
                number: asyncio.run(
                    load(service.url, number, (2 if quick else 4) * max(4, number), num_tokens)
                )
                for number in (1, 8, 32)
            }
            few = 300 if quick else 10_000
            endurance = asyncio.run(soak(service, few)) if language_model is None else None
        finally:
            service.stop()
    print(f"{name}: plain loop {plain:.1f} tokens/s")
    for number, found in clients.items():
        print(f"{name}: {number} clients", *(f"{key}={each:.3f}" for key, each in found.items()))
    if endurance is not None:
        print(f"{name}: soak", *(f"{key}={each:g}" for key, each in endurance.items()), flush=True)
    return {"plain_tokens_per_second": plain, "clients": clients, "soak": endurance}


def main() -> int:
    """Run it; 1 when a gate is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short answers, a short soak")
    parser.add_argument("--demo-only", action="store_true", help="leave the larger model out")
    given = parser.parse_args()
    models = {"demo": None} if given.demo_only else {"demo": None, "SmolLM2-135M": SMOLLM2_135M}
    found = {name: measure(name, each, quick=given.quick) for name, each in models.items()}
    gates = [
        gate(
            f"tokens/s of {number} clients / plain loop, {name}",
            each["clients"][number]["tokens_per_second"] / each["plain_tokens_per_second"],
            at_least=bound,
        )
        for name, each in found.items()
        # A token of the demo's model takes 2 ms, of which HTTP has its part.
        for number, bound in ((1, 0.6 if name == "demo" else 0.9), (8, 1.5))
    ]
    endured = found["demo"]["soak"]
    gates.append(gate(f"lost of {endured['requests']} requests", endured["lost"], at_most=0))
    gates.append(gate("memory at the end / after a quarter", endured["memory"], at_most=1.1))
    result = {"quick": given.quick, "models": found, "gates": gates}
    return finish("serving-quick" if given.quick else "serving", result)


if __name__ == "__main__":
    sys.exit(main())
