// What was refused in the last hour: by which limit, and of which tier, resource and
// priority.

import { api, bar, percent } from "./operator.js";
import { ask, element, number, priorities, tableOf } from "./shared.js";
import { reasonName } from "./usage.js";

const labels = {
  resource: (name) => name,
  tier: (name) => name,
  priority: (number) => (priorities[number] ? `${number} ${priorities[number]}` : number),
};

/** byReason counts refused requests by what refused them. */
function byReason({ totals }) {
  return Object.entries(totals.refused).map(([reason, n]) => ({ name: reasonName(reason), refused: n, of: totals.requests }));
}

/** byLabel counts them by the labels of a series. */
function byLabel(series) {
  const counts = new Map();
  for (const p of series.points) {
    const c = counts.get(p.label) ?? { name: labels[series.of](p.label), refused: 0, of: 0 };
    c.refused += p.requests - p.admitted;
    c.of += p.requests;
    counts.set(p.label, c);
  }
  return [...counts.values()];
}

function card(heading, note, counts) {
  const rows = counts.filter((c) => c.refused > 0).sort((a, b) => b.refused - a.refused);
  const body = rows.length === 0
    ? element("p", { className: "muted" }, "Nothing.")
    : tableOf(note, [heading.replace("By ", "").replace(/^./, (c) => c.toUpperCase()), ">Refused", ">Share", ""],
      rows.map((c) => [c.name, number(c.refused), percent(c.refused / c.of), bar(c.refused / c.of)]));
  return element("section", { className: "card" }, element("h3", {}, heading), body);
}

/** refusals fetches and shows them. */
export async function refusals(current) {
  const series = (of) => ask(`${api}/fleet/usage?step=minute&of=${of}`);
  const [resource, tier, priority] = await Promise.all(["resource", "tier", "priority"].map(series));
  if (!current()) return;
  document.getElementById("refusals").replaceChildren(
    card("By limit", "Share of all requests.", byReason(resource)),
    card("By tier", "Share of the tier's requests.", byLabel(tier)),
    card("By resource", "Share of the resource's requests.", byLabel(resource)),
    card("By priority", "Share of the priority's requests.", byLabel(priority)));
}
