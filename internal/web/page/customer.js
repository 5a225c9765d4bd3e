// The dashboard of the holder of a key: how it stands now. The other views are in
// usage.js and refused.js.

import { seconds, showLimits } from "./limits.js";
import { ask, facts, live, priorities, title, views, zoneSwitch } from "./shared.js";
import { refused } from "./refused.js";
import { usage } from "./usage.js";

const $ = (id) => document.getElementById(id);

async function now(current) {
  const view = await ask("/dashboard/api/limits");
  if (!current()) return;
  facts($("account"), [
    ["API key", view.name || view.key_id, view.name && view.key_id],
    ["Tier", title(view.tier)],
    ...(view.resources ? [["Resources", view.resources.join(", "), "this key may use no others"]] : []),
    ["Priority", `${view.priority} ${priorities[view.priority]}`, view.priority === 4 ? "the highest" : "of 4; higher goes first"],
  ]);
  showLimits($("limits"), view);
}

const lives = {
  now: live($("view-now"), now, 2, seconds),
  usage: live($("view-usage"), (current) => usage(current, "/dashboard/api/usage", { own: true }), 10, seconds),
  refused: live($("view-refused"), refused, 5, seconds),
};
zoneSwitch($("zone"), () => Object.values(lives).filter((l) => l.started).forEach((l) => l.now()));
$("usage-controls").addEventListener("change", () => lives.usage.now());
$("usage-controls").addEventListener("submit", (event) => event.preventDefault());
views(lives);
