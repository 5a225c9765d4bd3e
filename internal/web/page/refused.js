// The view of the latest refused requests, and what to do about them.

import { ask, element, number, tableOf, times, title, wait } from "./shared.js";

const $ = (id) => document.getElementById(id);

/** kinds are the ways to be refused: which refusals are of it, and what helps. */
const kinds = [
  {
    heading: "Too large (413)", is: (r) => r.status === 413,
    help: ["The request asks for more than the whole limit, so trying it again never helps.", "Lower max_tokens, or send the input in smaller parts.", "A higher tier has a larger limit."],
  },
  {
    heading: "Limits per day and longer", is: (r) => /_per_(day|week|month|\d+h.*)$/.test(r.limit),
    help: ["Do not try again by yourself before the limit resets: Retry-After says when that is.", "Batch prompts and keep answers to the same question, to need fewer requests.", "If it happens often, a higher tier fits better."],
  },
  {
    heading: "Tokens", is: (r) => /tokens_per_/.test(r.limit),
    help: ["Wait for as long as Retry-After says, then try again.", "Set max_tokens close to what you need: it is reserved until the answer is complete.", "Send shorter prompts, and spread large ones over time."],
  },
  {
    heading: "Requests", is: () => true,
    help: ["Wait for as long as Retry-After says, then try again; wait longer after each failure, with some randomness.", "Batch several prompts into one request, and keep answers to the same question.", "Streaming counts as one request, however long the answer is.", "If it happens often, a higher tier fits better."],
  },
];

/** refusalTable lists refused requests. */
export const refusalTable = (refusals) => tableOf(
  `The latest requests answered with 429 or 413. Times in ${times.zone()}.`,
  ["Time", "Resource", "Limit", "Used then", "Asked for", "Fits"],
  refusals.map((r) => [
    times.both(r.at), r.resource, `${title(r.limit)} (${r.status})`, `${number(r.used)} of ${number(r.max)}`, number(r.asked),
    r.fits_at === null ? "Never: larger than the limit" : `${times.both(r.fits_at)}, ${wait(r.fits_at - r.at)} later`,
  ]));

/** refused fetches and shows the view. */
export async function refused(current) {
  const { refusals } = await ask("/dashboard/api/refusals");
  if (!current()) return;
  if (refusals.length === 0) {
    $("refusals").replaceChildren(element("p", { className: "empty" }, "No request has been refused lately."));
  } else {
    $("refusals").replaceChildren(refusalTable(refusals));
  }
  const met = new Set(refusals.map((r) => kinds.find((k) => k.is(r))));
  const shown = met.size > 0 ? kinds.filter((k) => met.has(k)) : kinds;
  $("advice").replaceChildren(...shown.toReversed().map((k) =>
    element("div", {}, element("h4", {}, k.heading), element("ul", {}, ...k.help.map((text) => element("li", {}, text))))));
}
