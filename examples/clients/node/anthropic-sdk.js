/** Anthropic's SDK: it waits out a short limit by itself; a daily one fails at once. */

import Anthropic from "@anthropic-ai/sdk";

import { apiKey, askOften, baseURL } from "./demo.js";

// The SDK sends the key as x-api-key. It sleeps for as long as a 429 says, be it
// for hours, unless the 429 says x-should-retry: false. TierGate's does where the
// wait is longer than a minute.
const client = new Anthropic({ baseURL, apiKey });

/** Ask once; the SDK tries again by itself, twice unless maxRetries is set. */
async function chat() {
  try {
    const message = await client.messages.create({
      model: "mock-1",
      max_tokens: 100,
      messages: [{ role: "user", content: "Hi" }],
    });
    return message.content.map((block) => (block.type === "text" ? block.text : "")).join("");
  } catch (error) {
    if (error instanceof Anthropic.RateLimitError) {
      const limit = error.headers.get("x-ratelimit-limited-by");
      console.error(`${limit} ends in ${error.headers.get("retry-after")} seconds`);
    }
    throw error;
  }
}

await askOften(chat);
