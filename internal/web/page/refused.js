// The view of the latest refused requests, and what to do about them.

import { ask, element, many, number, tableOf, times, title, wait } from "./shared.js";
import { othersOf, othersText } from "./usage.js";

const $ = (id) => document.getElementById(id);

/** kinds are the ways to be refused: which refusals are of it, and what helps. */
const kinds = [
  {
    heading: "Too large (413)", is: (r) => r.status === 413,
    help: ["The request asks for more than the whole limit, so trying it again never helps.", "Lower max_tokens, or send the input in smaller parts.", "A higher tier has a larger limit."],
  },
  {
    heading: "Limits of 0", is: (r) => r.fits_at === null,
    help: ["The key's tier leaves no room for this at all, so trying it again never helps.", "A higher tier may."],
  },
  {
    heading: "Capacity", is: (r) => r.limit === "capacity",
    help: ["All keys together use as much of this resource as there is, and requests of a higher priority go first. Your own limits are not charged.", "Wait for as long as Retry-After says, then try again; wait longer after each failure, with some randomness."],
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

/** runs joins refusals of the same limit and resource within a minute, the latest first. */
function runs(refusals) {
  const all = [];
  for (const r of refusals) {
    const run = all.find(({ last }) => last.limit === r.limit && last.resource === r.resource && last.status === r.status && last.at - r.at < 60);
    if (run) Object.assign(run, { count: run.count + 1, since: r.at, least: Math.min(run.least, r.asked), most: Math.max(run.most, r.asked) });
    else all.push({ last: r, count: 1, since: r.at, least: r.asked, most: r.asked });
  }
  return all;
}

/** when says when a run was. */
function when({ last, count, since }) {
  if (count === 1) return times.both(last.at);
  return `${number(count)} × ${times.both(since)}${since === last.at ? "" : `–${times.clock(last.at)}`}`;
}

/** used says what was used of the limit: of a 413 it is not known, of a pool not told. */
function used({ status, limit, used: n, max }) {
  return status === 413 || limit === "capacity" ? "–" : `${number(n)} of ${number(max)}`;
}

/** asked says what did not fit; of a pool that is not told. */
function asked({ last, least, most }) {
  if (last.limit === "capacity") return "–";
  return least === most ? number(least) : `${number(least)} to ${number(most)}`;
}

function fits({ at, limit, max, fits_at: seconds }) {
  if (seconds === null && limit === "capacity") return "Never";
  if (seconds === null) return `Never: the whole limit is ${number(max)}`;
  return `${times.both(seconds)}, ${wait(seconds - at)} later`;
}

/** refusalTable lists refused requests. */
function refusalTable(refusals) {
  const latest = refusals.length === 1 ? "The latest request" : `The latest ${number(refusals.length)} requests`;
  return tableOf(`${latest} answered with 429 or 413. Those of the same limit and resource within a minute are one row. Times in ${times.zone()}.`,
    ["Time", "Resource", "Limit", "Used then", "Asked for", "Fits"],
    runs(refusals).map((run) => [when(run), run.last.resource, `${title(run.last.limit)} (${run.last.status})`, used(run.last), asked(run), fits(run.last)]));
}

/**
 * refusalList is what to show of the latest refusals, and of the usage of the last hours,
 * which also has those that are not listed; own: to the holder of the key.
 */
export function refusalList(refusals, { points }, { own = false } = {}) {
  const counts = othersOf(points).filter(([reason]) => reason !== "too_large");
  const sum = counts.reduce((all, [, n]) => all + n, 0);
  const listed = refusals.length > 0 ? refusalTable(refusals) : element("p", {}, "No request got 429 or 413 lately.");
  if (sum === 0) return [listed];
  return [element("p", { className: "rest" }, `In the last 3 hours ${many(sum, "request was", "requests were")} refused for other reasons: ${othersText(counts, own).join(", ")}.`), listed];
}

/** refused fetches and shows the view. */
export async function refused(current) {
  const [{ refusals }, usage] = await Promise.all([ask("/dashboard/api/refusals"), ask("/dashboard/api/usage?step=minute&from=0")]);
  if (!current()) return;
  $("refusals").replaceChildren(...refusalList(refusals, usage, { own: true }));
  $("what-to-do").hidden = refusals.length === 0;
  const met = new Set(refusals.map((r) => kinds.find((k) => k.is(r))));
  $("advice").replaceChildren(...kinds.filter((k) => met.has(k)).toReversed().map((k) =>
    element("div", {}, element("h4", {}, k.heading), element("ul", {}, ...k.help.map((text) => element("li", {}, text))))));
}
