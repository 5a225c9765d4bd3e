// Cards of limits: how much is used of each, and when it resets.

import { element, number, priorities, times, title, wait } from "./shared.js";

/** alone says that the limits are those of the server that has answered. */
const alone = element("p", { className: "notice", role: "status", hidden: true },
  "The servers count each for themselves at the moment: this is what one of them would admit, and the next answer may say something else.");

const states = { good: ["●", "OK"], near: ["▲", "Nearly used up"], full: ["■", "Used up"], none: ["∞", "Unlimited"] };

/** cards are the limits on the page, by name. */
const cards = new Map();
let ahead = 0; // by how many seconds the server's clock is ahead of ours

/** seconds is the server's time, in Unix seconds. */
export const seconds = () => Date.now() / 1000 + ahead;

function stateOf(limit) {
  if (limit.limit === null) return "none";
  if (limit.used >= limit.limit) return "full";
  return limit.used >= 0.8 * limit.limit ? "near" : "good";
}

function makeCard(limit) {
  const part = (tag, className = "") => element(tag, { className });
  const card = { box: part("article"), mark: part("span", "mark"), count: part("p", "count"), fill: part("div"), left: part("span"), reset: part("span") };
  const only = [limit.algorithm && `${limit.algorithm} ${limit.per}`, limit.resource && `only ${limit.resource}`, limit.priority && `only priority ${limit.priority} ${priorities[limit.priority]}`].filter(Boolean);
  card.meter = element("div", { className: "meter", role: "meter", "aria-label": title(limit.name), "aria-valuemin": "0" }, card.fill);
  card.box.append(
    element("header", {}, element("h3", {}, title(`${limit.metric}_per_${limit.per}`)), card.mark),
    ...only.map((text) => element("span", { className: "tag" }, text)),
    card.count, card.meter, element("footer", { className: "muted small numbers" }, card.left, card.reset));
  return card;
}

/** fillCard says how a limit stands; off: why the key cannot use it, or "". */
function fillCard(card, limit, off) {
  if (limit.limit === 0) off ||= "No room";
  const state = off ? "off" : stateOf(limit);
  const [sign, text] = states[state] ?? ["■", off];
  if (card.state && card.state !== state && state !== "none") {
    document.getElementById("announcement").textContent = `${title(limit.name)}: ${text.toLowerCase()}.`;
  }
  Object.assign(card, { state, resets: limit.reset, slides: limit.algorithm === "sliding", never: limit.limit === 0 });
  card.box.className = `card limit ${state}`;
  card.mark.replaceChildren(element("span", { "aria-hidden": "true" }, sign + " "), text);
  card.meter.hidden = limit.limit === null;
  if (limit.limit === null) {
    card.count.replaceChildren(element("strong", {}, number(limit.used)), ` used this ${limit.per}`);
    card.left.textContent = "No limit: this is only counted.";
    return;
  }
  const share = limit.limit === 0 ? 100 : Math.floor((100 * limit.used) / limit.limit);
  const percent = share === 0 && limit.used > 0 ? "under 1" : number(share);
  card.count.replaceChildren(element("strong", {}, number(limit.used)), ` of ${number(limit.limit)} used`, ` (${percent} %)`);
  card.meter.setAttribute("aria-valuemax", Math.max(limit.limit, limit.used));
  card.meter.setAttribute("aria-valuenow", limit.used);
  card.meter.setAttribute("aria-valuetext", `${number(limit.used)} of ${number(limit.limit)}, ${text.toLowerCase()}`);
  card.fill.style.width = `${Math.min(share, 100)}%`;
  card.left.textContent = off ? "" : `${number(limit.remaining)} left`;
}

/** tick counts down to the end of each limit's window. One that slides is not free then, one of 0 never. */
function tick() {
  for (const card of cards.values()) {
    if (card.never || card.slides) {
      card.reset.textContent = card.never ? "" : "Becomes free little by little";
      continue;
    }
    const left = card.resets - seconds();
    card.reset.textContent = left <= 0 ? "Resets now" : `Resets in ${wait(left)}${left >= 120 ? `, ${times.both(card.resets)} ${times.zone()}` : ""}`;
  }
}

/** showLimits fills a box with the cards of an answer to /limits; off: why the key cannot use them. */
export function showLimits(box, view, off = "") {
  if (!alone.isConnected) box.before(alone);
  alone.hidden = !view.degraded;
  ahead = view.now - Math.floor(Date.now() / 1000);
  for (const [name, card] of cards) {
    if (!view.limits.some((l) => l.name === name)) {
      card.box.remove();
      cards.delete(name);
    }
  }
  for (const limit of view.limits) {
    if (!cards.has(limit.name)) cards.set(limit.name, makeCard(limit));
    fillCard(cards.get(limit.name), limit, off);
    box.append(cards.get(limit.name).box);
  }
  tick();
}

setInterval(() => document.hidden || tick(), 1000);
