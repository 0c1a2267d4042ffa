"""Ask the service of the release one question, by its service name."""

import json
import os
from urllib.request import Request, urlopen

question = {"role": "user", "content": "What is an X-ray?"}
body = {"model": "llavamed", "messages": [question], "max_tokens": 8}
headers = {
    # It may hold several, and end with a line break, as the service takes them.
    "Authorization": f"Bearer {os.environ['LLAVAMED_SERVE_TOKEN'].replace(',', ' ').split()[0]}",
    "Content-Type": "application/json",
}
url = f"{os.environ['LLAVAMED_SERVE_URL']}/v1/chat/completions"
with urlopen(Request(url, json.dumps(body).encode(), headers), timeout=120) as response:
    answer = json.load(response)
assert answer["choices"][0]["message"]["role"] == "assistant", answer
