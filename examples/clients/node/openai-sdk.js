/** OpenAI's SDK: it waits out a short limit by itself; a daily limit fails at once. */

import OpenAI from "openai";

import { apiKey, askOften, baseURL } from "./demo.js";

// Of a limit that ends within a minute the 429 has the exact wait in headers that
// the SDK obeys. Of any other it says x-should-retry: false; without it the SDK
// would sleep for as long as the 429 says, be it for hours.
const client = new OpenAI({ baseURL: `${baseURL}/v1`, apiKey });

/** Ask once; the SDK tries again by itself, twice unless maxRetries is set. */
async function chat() {
  try {
    const completion = await client.chat.completions.create({
      model: "mock-1",
      messages: [{ role: "user", content: "Hi" }],
    });
    return completion.choices[0].message.content ?? "";
  } catch (error) {
    if (error instanceof OpenAI.RateLimitError) {
      const limit = error.headers.get("x-ratelimit-limited-by");
      console.error(`${error.code}: ${limit} ends in ${error.headers.get("retry-after")} seconds`);
    }
    throw error;
  }
}

await askOften(chat);
