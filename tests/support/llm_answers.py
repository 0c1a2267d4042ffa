"""Ask an endpoint, and return its answers in the order of the requests."""

import asyncio

from llavamed.config.endpoint import Endpoint
from llavamed.llm.client import EndpointClient, ask
from llavamed.llm.request import Message, Request


def question(text="Is it an effusion?", max_tokens=16, **options):
    return Request((Message("user", (text,)),), max_tokens, **options)


def answers(endpoint, cache, *requests, **settings):
    """The answers in the order of the requests."""

    async def work():
        place = Endpoint(url=endpoint.url, model="judge", **settings)
        async with EndpointClient(place, str(cache)) as client:
            found = {id(request): answer async for request, answer in ask(client, requests)}
        return [found[id(request)] for request in requests]

    return asyncio.run(work())
