"""OpenAI's SDK: it waits out a short limit by itself; a daily limit fails at once."""

from __future__ import annotations

import sys

import openai

import demo

# Of a limit that ends within a minute the 429 has the exact wait in headers that
# the SDK obeys. Of any other it says: x-should-retry: false.
client = openai.OpenAI(base_url=f"{demo.URL}/v1", api_key=demo.API_KEY)


def chat() -> str:
    """Ask once; the SDK tries again by itself, twice unless max_retries is set."""
    try:
        completion = client.chat.completions.create(
            model="mock-1", messages=[{"role": "user", "content": "Hi"}]
        )
    except openai.RateLimitError as error:
        headers = error.response.headers
        limit, wait = headers.get("x-ratelimit-limited-by"), headers.get("retry-after")
        print(f"{error.code}: {limit} ends in {wait} seconds", file=sys.stderr)
        raise
    return completion.choices[0].message.content or ""


if __name__ == "__main__":
    demo.ask_often(chat)
