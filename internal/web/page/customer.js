// The dashboard of the holder of a key: how it stands now. The other views are in
// usage.js and refused.js.

import { ask, element, facts, Live, number, times, title, views, wait, zoneSwitch } from "./shared.js";
import { refused } from "./refused.js";
import { usage } from "./usage.js";

const $ = (id) => document.getElementById(id);
const priorities = { 1: "Low", 2: "Normal", 3: "High", 4: "Critical" };
const states = { good: ["●", "OK"], near: ["▲", "Nearly used up"], full: ["■", "Used up"], none: ["∞", "Unlimited"] };

/** cards are the limits on the page, by name. */
const cards = new Map();
let ahead = 0; // by how many seconds the server's clock is ahead of ours

const seconds = () => Date.now() / 1000 + ahead;

function stateOf(limit) {
  if (limit.limit === null) return "none";
  if (limit.used >= limit.limit) return "full";
  return limit.used >= 0.8 * limit.limit ? "near" : "good";
}

function makeCard(limit) {
  const part = (tag, className = "") => element(tag, { className });
  const card = { box: part("article"), mark: part("span", "mark"), count: part("p", "count"), fill: part("div"), left: part("span"), reset: part("span") };
  const only = [limit.resource && `only ${limit.resource}`, limit.priority && `only priority ${limit.priority} ${priorities[limit.priority]}`].filter(Boolean);
  card.meter = element("div", { className: "meter", role: "meter", "aria-label": title(limit.name), "aria-valuemin": "0" }, card.fill);
  card.box.append(
    element("header", {}, element("h4", {}, title(`${limit.metric}_per_${limit.per}`)), card.mark),
    ...only.map((text) => element("span", { className: "tag" }, text)),
    card.count, card.meter, element("footer", { className: "muted small numbers" }, card.left, card.reset));
  return card;
}

function fillCard(card, limit) {
  const state = stateOf(limit);
  if (card.state && card.state !== state && state !== "none") {
    $("announcement").textContent = `${title(limit.name)}: ${states[state][1].toLowerCase()}.`;
  }
  Object.assign(card, { state, resets: limit.reset });
  card.box.className = `card limit ${state}`;
  card.mark.replaceChildren(element("span", { "aria-hidden": "true" }, states[state][0] + " "), states[state][1]);
  card.meter.hidden = state === "none";
  if (state === "none") {
    card.count.replaceChildren(element("strong", {}, number(limit.used)), ` used this ${limit.per}`);
    card.left.textContent = "No limit: this is only counted.";
    return;
  }
  const share = limit.limit === 0 ? 100 : Math.floor((100 * limit.used) / limit.limit);
  const percent = share === 0 && limit.used > 0 ? "under 1" : number(share);
  card.count.replaceChildren(element("strong", {}, number(limit.used)), ` of ${number(limit.limit)} used`, ` (${percent} %)`);
  card.meter.setAttribute("aria-valuemax", Math.max(limit.limit, limit.used));
  card.meter.setAttribute("aria-valuenow", limit.used);
  card.meter.setAttribute("aria-valuetext", `${number(limit.used)} of ${number(limit.limit)}, ${states[state][1].toLowerCase()}`);
  card.fill.style.width = `${Math.min(share, 100)}%`;
  card.left.textContent = `${number(limit.remaining)} left`;
}

/** tick counts down to the end of each limit's window. */
function tick() {
  for (const card of cards.values()) {
    const left = card.resets - seconds();
    card.reset.textContent = left <= 0 ? "Resets now" : `Resets in ${wait(left)}${left >= 120 ? `, ${times.both(card.resets)} ${times.zone()}` : ""}`;
  }
}

async function now(current) {
  const view = await ask("/dashboard/api/limits");
  if (!current()) return;
  ahead = view.now - Math.floor(Date.now() / 1000);
  facts($("account"), [
    ["API key", view.name || view.key_id, view.name && view.key_id],
    ["Tier", title(view.tier)],
    ["Priority", `${view.priority} ${priorities[view.priority]}`, view.priority === 4 ? "the highest" : "of 4; higher goes first"],
  ]);
  for (const [name, card] of cards) {
    if (!view.limits.some((l) => l.name === name)) {
      card.box.remove();
      cards.delete(name);
    }
  }
  for (const limit of view.limits) {
    if (!cards.has(limit.name)) cards.set(limit.name, makeCard(limit));
    fillCard(cards.get(limit.name), limit);
    $("limits").append(cards.get(limit.name).box);
  }
  tick();
}

/** live refreshes a view and says how that goes. */
function live(name, task, every) {
  const section = $("view-" + name);
  const fresh = section.querySelector(".fresh");
  const made = new Live(async (current) => {
    await task(current);
    if (current()) section.querySelector(".body").hidden = false;
  }, every, (trouble, next) => {
    if (trouble?.signedOut) {
      location.assign("/dashboard/signin?over");
      return;
    }
    section.querySelector(".loading").hidden = true;
    fresh.classList.toggle("stale", trouble !== null);
    if (!trouble) {
      fresh.hidden = false;
      fresh.textContent = `Live, updated ${times.clock(seconds())} ${times.zone()}`;
    }
    $("notice").hidden = trouble === null;
    if (trouble) {
      $("notice").querySelector("span").textContent = `${trouble.message} ${fresh.hidden ? "" : "What you see is old. "}Trying again in ${next} s.`;
      $("notice").querySelector("button").onclick = () => made.now();
    }
  });
  return made;
}

const lives = { now: live("now", now, 2), usage: live("usage", usage, 10), refused: live("refused", refused, 5) };
zoneSwitch($("zone"), () => Object.values(lives).filter((l) => l.started).forEach((l) => l.now()));
$("usage-controls").addEventListener("change", () => lives.usage.now());
$("usage-controls").addEventListener("submit", (event) => event.preventDefault());
setInterval(() => document.hidden || tick(), 1000);
views(lives);
