"""Retrying as the API asks for, within a deadline; copy what you need.

A 429 says how long to wait, and a 503 that TierGate sends does, too. Waiting just
that long is faster than guessing, and where the wait does not fit into the time
that the caller has, the call fails at once and says when the limit ends.
"""

from __future__ import annotations

import email.utils
import random
import time
import urllib.error
import urllib.request
from email.message import Message

import demo

RETRIED = {429, 503}  # the request was not carried out


class CallFailed(Exception):
    """The API refused a call, and waiting does not help or takes too long."""


def call(request: urllib.request.Request, deadline: float = 90.0) -> bytes:
    """Send a request, retrying for at most deadline seconds; return the body."""
    end = time.monotonic() + deadline
    attempt = 0
    while True:
        try:
            timeout = max(end - time.monotonic(), 0.1)
            with urllib.request.urlopen(request, timeout=timeout) as response:
                return bytes(response.read())
        except urllib.error.HTTPError as error:
            with error:
                body = error.read().decode(errors="replace")
            wait = wait_for(error.code, error.headers, attempt)
            if wait is None or time.monotonic() + wait > end:
                raise CallFailed(explain(error.code, error.headers, body)) from None
            time.sleep(wait)
            attempt += 1


def wait_for(status: int, headers: Message, attempt: int) -> float | None:
    """Return how many seconds to wait until the next try; None: do not retry."""
    should_retry = headers.get("x-should-retry")
    if should_retry == "false" or (should_retry != "true" and status not in RETRIED):
        return None
    wait = stated_wait(headers)
    if wait is None:  # exponential back-off with jitter: 0.5 to 1 s, 1 to 2 s, ...
        return min(2.0**attempt, 30.0) * random.uniform(0.5, 1)
    # A little more, so that not all clients come back in the same moment.
    return wait + random.uniform(0, 0.5)


def stated_wait(headers: Message) -> float | None:
    """Return the wait that the headers state, in seconds; None: they state none."""
    for name, in_a_second in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            wait = int(headers[name]) / in_a_second
        except (TypeError, ValueError, OverflowError):
            continue  # missing, or no number
        if wait > 0:
            return wait
    try:  # proxies may write a date
        date = email.utils.parsedate_to_datetime(headers["retry-after"])
    except (TypeError, ValueError):
        return None
    wait = date.timestamp() - time.time()
    return wait if wait > 0 else None


def explain(status: int, headers: Message, body: str) -> str:
    """Return what went wrong, for people: which limit, and until when."""
    limit = headers["x-ratelimit-limited-by"]
    if limit is None:  # no refusal by TierGate
        return f"HTTP {status}: {body}"
    end = time.gmtime(int(headers["x-ratelimit-reset"]))
    return f"{limit} used up until {time.strftime('%Y-%m-%d %H:%M:%S', end)} UTC"


if __name__ == "__main__":
    demo.ask_often(lambda: demo.chat_answer(call(demo.chat_request())))
