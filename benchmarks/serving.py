"""The service at 1, 8 and 32 clients, beside a `generate` loop and `transformers serve`; a soak.

The model has random weights, and answers in visible characters without an end, so that every answer
has the same length and every token arrives as text. Each service runs in a process of its own, one
after the other. Each client asks one question with an image after another. The soak sends broken
requests among the good ones: none of the good ones may be lost, and the memory of the service must
not grow.

On two quiet cores it takes about four minutes; `--quick` takes one.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
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
    from llavamed.processor.templates import get_template, template_hash
    from llavamed.storage.location import locate
    from llavamed.storage.manifest import ExportManifest, write

    other = [f"model.language_model.config={language_model}"] if language_model else []
    config = load_config(DEMO, other)
    processor = build_processor(config.model, iter(["USER: What is shown? ASSISTANT: A lesion."]))
    model = build_model(config.model, processor, seed=0, precision="fp32")
    tokenizer = processor.tokenizer
    texts = [tokenizer.decode([number]) for number in range(len(tokenizer))]
    visible = [number for number, text in enumerate(texts) if text.isascii() and text.strip()]
    with torch.no_grad():  # the largest logit of random weights is above zero
        weight = model.get_output_embeddings().weight
        silent = torch.ones(len(weight), dtype=torch.bool)
        silent[visible] = False
        silent[tokenizer.all_special_ids] = True
        weight[silent] = 0
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
    """Return a picture of noise as PNG."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def plain_loop(export: str, num_tokens: int, num_answers: int) -> float:
    """Return the tokens a second of transformers' `generate`, one question after another."""
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


class Server:
    """A service in a process of its own."""

    def __init__(self, name: str, command: list[str], port: int) -> None:
        environment = {"LLAVAMED_SERVE_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1"}
        self.model, self.url = name, f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | environment,
        )
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert self._process.poll() is None, f"{command[:3]} ended"
            time.sleep(0.2)

    def resident_mebibytes(self) -> float:
        """Return the memory of the process."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8")
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024

    def stop(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait()


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def our_service(export: str) -> Server:
    """Start `llavamed serve`."""
    port = free_port()
    settings = (f"port={port}", "limits={requests_per_minute: 1000000}")
    command = [sys.executable, "-m", "llavamed", "serve", export, *settings]
    return Server("llavamed", [*command, "max_batch_size=32", "max_waiting=64"], port)


def their_service(export: str) -> Server:
    """Start `transformers serve`, which answers requests with images one after another."""
    port = free_port()
    program = str(Path(sys.executable).with_name("transformers"))
    options = ("--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port))
    return Server(export, [program, "serve", export, *options], port)


def body(model: str, num_tokens: int, *, is_broken: bool = False) -> dict[str, Any]:
    """Return a request with an image, or with a broken one."""
    data = b"no image" if is_broken else picture()
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "What is shown?"},
    ]
    messages = [{"role": "user", "content": content}]
    return {"model": model, "messages": messages, "max_tokens": num_tokens, "stream": True}


async def ask(session: aiohttp.ClientSession, url: str, asked: dict[str, Any]) -> tuple[int, float]:
    """Ask, read the whole stream, and return its status and the seconds to the first token.

    The status is 0 if the answer has no end.
    """
    start = time.perf_counter()
    first, has_ended = 0.0, False
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with session.post(f"{url}/v1/chat/completions", json=asked, headers=headers) as answer:
        if answer.status != 200:
            return answer.status, 0.0
        async for line in answer.content:
            if not line.startswith(b"data: {"):  # nothing, a comment, or the end
                continue
            (choice,) = json.loads(line.removeprefix(b"data: "))["choices"]
            if choice["delta"].get("content"):
                first = first or time.perf_counter() - start
            has_ended |= choice.get("finish_reason") is not None
    return (200 if has_ended else 0), first or time.perf_counter() - start


async def load(
    server: Server, num_clients: int, num_requests: int, num_tokens: int
) -> dict[str, Any]:
    """Measure requests and tokens per second, and seconds to the first token, of some clients."""
    asked, left, firsts = body(server.model, num_tokens), iter(range(num_requests)), list[float]()

    async def client(session: aiohttp.ClientSession) -> None:
        for _ in left:
            status, first = await ask(session, server.url, asked)
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


async def soak(server: Server, num_requests: int) -> dict[str, Any]:
    """Send requests of which each hundredth is broken, and count what was not as it should be."""
    good, broken = body(server.model, 4), body(server.model, 4, is_broken=True)
    left, lost, memory = iter(range(num_requests)), 0, list[float]()
    start = time.perf_counter()

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal lost
        for number in left:
            is_broken = number % 100 == 7
            status, _ = await ask(session, server.url, broken if is_broken else good)
            lost += status != (400 if is_broken else 200)
            if number % max(1, num_requests // 20) == 0:
                memory.append(server.resident_mebibytes())

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(client(session) for _ in range(16)))
    settled = memory[len(memory) // 4]
    return {
        "requests": num_requests,
        "lost": lost,
        "seconds": time.perf_counter() - start,
        "mebibytes": memory[-1],
        "memory": memory[-1] / settled,
    }


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    num_tokens: int
    """Tokens of an answer."""
    num_alone: int
    """Answers of the plain loop."""
    num_requests: Mapping[int, int]
    """Requests by the number of clients."""
    num_endured: int = 0
    """Requests of the soak; none for 0."""


FULL = {
    "demo": Size(64, 32, {1: 64, 8: 128, 32: 256}, num_endured=10_000),
    "SmolLM2-135M": Size(16, 8, {1: 8, 8: 16, 32: 64}),
}
QUICK = {
    "demo": Size(16, 4, {1: 4, 8: 8, 32: 32}, num_endured=300),
    "SmolLM2-135M": Size(4, 2, {1: 2, 8: 8, 32: 32}),
}
LANGUAGE_MODELS = {"demo": None, "SmolLM2-135M": SMOLLM2_135M}


def measure(name: str, size: Size) -> dict[str, Any]:
    """Measure everything about one model."""
    found: dict[str, Any] = {"tokens": size.num_tokens}
    with tempfile.TemporaryDirectory() as folder:
        make_export(folder, LANGUAGE_MODELS[name])
        found["plain_tokens_per_second"] = plain_loop(folder, size.num_tokens, size.num_alone)
        print(f"{name}: plain loop, {found['plain_tokens_per_second']:.1f} tokens/s", flush=True)
        for service, start in (("ours", our_service), ("transformers_serve", their_service)):
            server = start(folder)
            try:
                asyncio.run(load(server, 2, 4, 4))  # warm
                found[service] = {
                    number: asyncio.run(load(server, number, num_requests, size.num_tokens))
                    for number, num_requests in size.num_requests.items()
                }
                show(f"{name}: {service}", found[service])
                if size.num_endured and service == "ours":
                    found["soak"] = asyncio.run(soak(server, size.num_endured))
                    show(name, {"soak": found["soak"]})
            finally:
                server.stop()
    return found


def show(title: str, found: Mapping[Any, Mapping[str, Any]]) -> None:
    """Print what was measured."""
    for key, numbers in found.items():
        what = f"{key} clients" if isinstance(key, int) else key
        print(f"{title}, {what}:", *(f"{name}={each:.4g}" for name, each in numbers.items()))
    sys.stdout.flush()


def main() -> int:
    """Run the benchmark, and return 1 if a gate is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short answers, a short soak")
    parser.add_argument("--demo-only", action="store_true", help="leave the larger model out")
    given = parser.parse_args()
    start = time.perf_counter()
    sizes = QUICK if given.quick else FULL
    names = ["demo"] if given.demo_only else list(sizes)
    found = {name: measure(name, sizes[name]) for name in names}
    gates = []
    for name, each in found.items():
        speed = {number: numbers["tokens_per_second"] for number, numbers in each["ours"].items()}
        # A token of the demo's model takes 2 ms, of which HTTP has its part.
        for number, bound in ((1, 0.6 if name == "demo" else 0.9), (8, 1.5)):
            ratio = speed[number] / each["plain_tokens_per_second"]
            gates.append(
                gate(f"tokens/s of {number} clients / plain loop, {name}", ratio, at_least=bound)
            )
        for number, theirs in each["transformers_serve"].items():
            ratio = speed[number] / theirs["tokens_per_second"]
            what = f"tokens/s of {number} clients / transformers serve, {name}"
            gates.append(gate(what, ratio, at_least=1.0 if number == 1 else 1.5))
    endured = found["demo"]["soak"]
    gates.append(gate(f"lost of {endured['requests']} requests", endured["lost"], at_most=0))
    gates.append(gate("memory at the end / after a quarter", endured["memory"], at_most=1.1))
    seconds = round(time.perf_counter() - start)
    result = {"quick": given.quick, "seconds": seconds, "models": found, "gates": gates}
    return finish("serving-quick" if given.quick else "serving", result)


if __name__ == "__main__":
    sys.exit(main())
