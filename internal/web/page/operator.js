// What the operators' pages share: where the data is, and how keys are named.

import { element, live, times, zoneSwitch } from "./shared.js";

export const api = "/admin/v1";

/** keyLink leads to the page of a key. A named key shows its ID below. */
export function keyLink(id, name) {
  const link = element("a", { href: `/dashboard/keys/${encodeURIComponent(id)}` }, name || id);
  return name ? element("span", { className: "key" }, link, element("small", {}, id)) : link;
}

/** stateMark writes whether a key works, not by colour alone. */
export function stateMark(state) {
  const marks = { active: ["good", "●"], revoked: ["full", "■"], expired: ["near", "▲"], disabled: ["near", "▲"] };
  const [className, sign] = marks[state];
  return element("span", { className }, element("span", { className: "mark" }, element("span", { "aria-hidden": "true" }, sign + " "), state));
}

/** moment writes a time of the API, or what there is in its place. */
export function moment(text, none) {
  if (!text) return none;
  const seconds = Date.parse(text) / 1000;
  return element("span", { className: "moment" }, `${times.day(seconds)}, ${times.minute(seconds)}`);
}

/** bar draws a share from 0 to 1. */
export function bar(share) {
  const fill = element("div");
  fill.style.width = `${Math.min(100 * share, 100)}%`;
  return element("div", { className: "meter", "aria-hidden": "true" }, fill);
}

/** percent writes a share. */
export const percent = (share) => `${share > 0 && share < 0.01 ? "under 1" : Math.floor(100 * share)} %`;

/** run starts the Live of each section: [section's id, task, seconds]. */
export function run(...parts) {
  const lives = Object.fromEntries(parts.map(([id, task, every]) => [id, live(document.getElementById(id), task, every)]));
  zoneSwitch(document.getElementById("zone"), () => Object.values(lives).forEach((l) => l.started && l.now()));
  Object.values(lives).forEach((l) => l.start());
  return lives;
}
