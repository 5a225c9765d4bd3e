/**
 * Retrying as the API asks for, within a deadline; copy what you need.
 *
 * A 429 says how long to wait, and a 503 that TierGate sends does, too. Waiting
 * just that long is faster than guessing, and where the wait does not fit into the
 * time that the caller has, the call fails at once and says when the limit ends.
 */

import { setTimeout as sleep } from "node:timers/promises";

import { apiKey, askOften, baseURL } from "./demo.js";

const RETRIED = new Set([429, 503]); // the request was not carried out

/** The API refused a call, and waiting does not help or takes too long. */
class CallFailed extends Error {}

/**
 * Send a request, retrying for at most deadline milliseconds; return the body.
 *
 * @param {string} url
 * @param {RequestInit} request its body is sent again, so it must be no stream
 */
async function call(url, request, deadline = 90_000) {
  const end = performance.now() + deadline;
  const signal = AbortSignal.timeout(deadline);
  for (let attempt = 0; ; attempt++) {
    const response = await fetch(url, { ...request, signal });
    const body = await response.text();
    if (response.ok) return body;
    const wait = waitFor(response, attempt);
    if (wait === undefined || performance.now() + wait > end) {
      throw new CallFailed(explain(response, body));
    }
    await sleep(wait);
  }
}

/**
 * Return how many milliseconds to wait until the next try; undefined: do not retry.
 *
 * @param {Response} response
 * @param {number} attempt
 */
function waitFor({ status, headers }, attempt) {
  const shouldRetry = headers.get("x-should-retry");
  if (shouldRetry === "false" || (shouldRetry !== "true" && !RETRIED.has(status))) return undefined;
  const wait = statedWait(headers);
  if (wait === undefined) {
    // Exponential back-off with jitter: 0.5 to 1 s, 1 to 2 s, ...
    return Math.min(1000 * 2 ** attempt, 30_000) * (0.5 + Math.random() / 2);
  }
  // A little more, so that not all clients come back in the same moment.
  return wait + Math.random() * 500;
}

/**
 * Return the wait that the headers state, in milliseconds; undefined: they state none.
 *
 * @param {Headers} headers
 */
function statedWait(headers) {
  const seconds = headers.get("retry-after");
  const waits = [
    wholeNumber(headers.get("retry-after-ms")),
    wholeNumber(seconds) * 1000,
    Date.parse(seconds) - Date.now(), // proxies may write a date
  ];
  return waits.find((wait) => wait > 0); // NaN is not
}

/** @param {string | null} text */
function wholeNumber(text) {
  return /^\d+$/.test(text) ? Number(text) : NaN;
}

/**
 * Return what went wrong, for people: which limit, and until when.
 *
 * @param {Response} response
 * @param {string} body
 */
function explain({ status, headers }, body) {
  const limit = headers.get("x-ratelimit-limited-by");
  if (limit === null) return `HTTP ${status}: ${body}`; // no refusal by TierGate
  const end = new Date(Number(headers.get("x-ratelimit-reset")) * 1000);
  return `${limit} used up until ${end.toISOString().replace("T", " ").slice(0, 19)} UTC`;
}

/** Ask once. */
async function chat() {
  const body = await call(`${baseURL}/v1/chat/completions`, {
    method: "POST",
    headers: { Authorization: `Bearer ${apiKey}`, "Content-Type": "application/json" },
    body: JSON.stringify({ model: "mock-1", messages: [{ role: "user", content: "Hi" }] }),
  });
  return JSON.parse(body).choices[0].message.content;
}

await askOften(chat);
