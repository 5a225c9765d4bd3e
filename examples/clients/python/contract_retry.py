"""The retry code of the API's documentation, applied to a chat call.

It knows nothing of Retry-After: it waits 1, 2, 4, 8 and 16 seconds, each with up
to one second more, and gives up after five tries and 31 to 36 seconds. So a short
wait is waited for, if longer than needed. A daily limit is not told from a short
one and fails only at the end; retry.py does better.
"""

from __future__ import annotations

import random
import time
import urllib.error
import urllib.request

import demo


def call_with_retry(fn, max_retries=5):
    for attempt in range(max_retries):
        try:
            return fn()
        except Exception as e:
            if "rate_limit" not in str(e):
                raise
            wait = (2 ** attempt) + random.uniform(0, 1)
            time.sleep(wait)
    raise Exception("Max retries exceeded")


def chat() -> str:
    """Ask once. An error has the API's answer in its text, as the retry needs."""
    try:
        with urllib.request.urlopen(demo.chat_request(), timeout=60) as response:
            return demo.chat_answer(response.read())
    except urllib.error.HTTPError as error:
        with error:
            raise RuntimeError(f"{error}: {error.read().decode()}") from None


if __name__ == "__main__":
    demo.ask_often(lambda: call_with_retry(chat))
