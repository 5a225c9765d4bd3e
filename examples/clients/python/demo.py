"""What the examples share: where the API is, and asking it several times."""

from __future__ import annotations

import json
import os
import re
import sys
import time
import urllib.request
from collections.abc import Callable

URL = os.environ.get("TIERGATE_URL", "http://127.0.0.1:10000").rstrip("/")
API_KEY = os.environ.get("TIERGATE_API_KEY", "sk-demo-basic")


def chat_request() -> urllib.request.Request:
    """Return a chat request for urllib, for the examples that use no SDK."""
    body = {"model": "mock-1", "messages": [{"role": "user", "content": "Hi"}]}
    return urllib.request.Request(
        f"{URL}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={
            "Authorization": f"Bearer {API_KEY}",
            "Content-Type": "application/json",
        },
    )


def chat_answer(body: bytes) -> str:
    """Return the text in the JSON that answers a chat request."""
    return str(json.loads(body)["choices"][0]["message"]["content"])


def ask_often(ask: Callable[[], str]) -> None:
    """Ask as often as the command line says, 3 times by default.

    Each call is a line of JSON on standard output, with the time it took. The
    first error ends the program with status 1, a wrong command line with 2.
    """
    calls = sys.argv[1] if len(sys.argv) > 1 else "3"
    if not re.fullmatch("[1-9][0-9]*", calls):
        wanted = "want how many calls to make, a whole number of 1 or more"
        print(f'"{calls}": {wanted}', file=sys.stderr)
        sys.exit(2)
    for call in range(1, int(calls) + 1):
        line: dict[str, object] = {"call": call}
        began = time.monotonic()
        try:
            line["answer"] = ask()
        except Exception as error:
            line["error"], line["message"] = type(error).__name__, str(error)
        line["seconds"] = round(time.monotonic() - began, 3)
        print(json.dumps(line), flush=True)
        if "error" in line:
            sys.exit(1)
