"""Anthropic's SDK: it waits out a short limit by itself; a daily one fails at once."""

from __future__ import annotations

import sys

import anthropic

import demo

# The SDK sends the key as x-api-key. It sleeps for as long as a 429 says, be it
# for hours, unless the 429 says x-should-retry: false. TierGate's does where the
# wait is longer than a minute.
client = anthropic.Anthropic(base_url=demo.URL, api_key=demo.API_KEY)


def chat() -> str:
    """Ask once; the SDK tries again by itself, twice unless max_retries is set."""
    try:
        message = client.messages.create(
            model="mock-1", max_tokens=100, messages=[{"role": "user", "content": "Hi"}]
        )
    except anthropic.RateLimitError as error:
        headers = error.response.headers
        limit, wait = headers.get("x-ratelimit-limited-by"), headers.get("retry-after")
        print(f"{limit} ends in {wait} seconds", file=sys.stderr)
        raise
    return "".join(block.text for block in message.content if block.type == "text")


if __name__ == "__main__":
    demo.ask_often(chat)
