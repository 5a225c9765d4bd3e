// The view of what a key has used: totals, charts, and the same as a table.

import { Chart, stepName, steps } from "./charts.js";
import { ask, element, facts, many, number, times, title } from "./shared.js";

const $ = (id) => document.getElementById(id);
const spans = { minute: "the last 3 hours", hour: "the last 8 days", day: "the last 400 days" };

/** others are the reasons of refusals that are no limit's: their names, and what the holder of the key should know. */
const others = {
  forbidden: ["No leave for the resource (403)"],
  too_large: ["Too large for the limit (413)"],
  failed: ["Could not be checked (503)", "not your fault; try again"],
  other: ["Other reasons"],
};

/** reasonName names what refused a request, for people. */
export const reasonName = (reason) => others[reason]?.[0] ?? title(reason);

/** othersOf counts the refusals of points that are no limit's: the reasons that there were, with their counts. */
export const othersOf = (points) => Object.keys(others)
  .map((reason) => [reason, points.reduce((sum, p) => sum + (p.refused[reason] ?? 0), 0)])
  .filter(([, n]) => n > 0);

/** othersText says in words how many of each there were, to the holder of the key if they are its own. */
export const othersText = (counts, own) => counts.map(([reason, n]) => `${number(n)} × ${others[reason].slice(0, own ? 2 : 1).join(": ")}`);

const requestBars = [{ label: "Admitted", colour: "--chart-1" }, { label: "Over a limit (429)", colour: "--chart-2" }, { label: "Refused otherwise", colour: "--chart-3" }];
const tokenBars = [{ label: "Input", colour: "--chart-4" }, { label: "Output", colour: "--chart-5" }];
const charts = {};

/** chart returns the chart of a name, made when it is first wanted, with its heading and notes. */
function chart(name, bars, line) {
  if (!charts[name]) {
    const made = { heading: element("h3"), note: element("p", { className: "muted small" }), picture: element("div", { role: "img" }) };
    made.figure = element("figure", { className: "card chart" }, element("figcaption", {}, made.heading, made.note), made.picture);
    $("charts").append(made.figure);
    made.chart = new Chart(made.picture, bars, line);
    charts[name] = made;
  }
  return charts[name];
}

/** limited is how many requests of a point limits have refused; otherwise, how many something else. */
export const limited = (p) => Object.entries(p.refused).reduce((sum, [reason, n]) => sum + (reason in others ? 0 : n), 0);
export const otherwise = (p) => p.requests - p.admitted - limited(p);

/** failed is how many of those otherwise refused could not be checked. */
export const failed = (p) => p.refused.failed ?? 0;

/** least is how many steps a chart shows where there is nothing before them. */
const least = { minute: 30, hour: 48, day: 30 };

/** dense gives each step of an answer a point, undefined where there is none, from where there is something. */
export function dense(all, points, step) {
  const from = Math.max(all.from, Math.min(all.points[0]?.start ?? all.to, all.to - least[step] * steps[step]));
  const byStart = new Map(points.map((p) => [p.start, p]));
  const starts = [];
  for (let s = from; s < all.to; s += steps[step]) starts.push(s);
  return { starts, points: starts.map((s) => byStart.get(s)) };
}

/** limitsOf says the limit per minute at each step: where it is not known, that of the step before, or of the first. */
function limitsOf(all, starts, metric) {
  const known = new Map(all.points.map((p) => [p.start, p.limits]));
  let last = all.points.find((p) => p.limits?.[metric])?.limits[metric] ?? null;
  return starts.map((s) => (last = known.has(s) ? known.get(s)[metric] : last));
}

/** fill draws one chart and says in words what it shows. */
function fill(name, bars, { heading, step, starts, counts, limits, words }) {
  const c = chart(name, bars, "Limit per minute");
  c.figure.hidden = false;
  c.heading.textContent = heading;
  const { limit, lined } = c.chart.draw({ step, starts, counts, limits });
  if (!limits) c.note.textContent = "";
  else if (limit === 0) c.note.textContent = "No limit per minute.";
  else c.note.textContent = `Limit: ${number(limit)} per minute${lined ? ", the dashed line" : ", far above what is shown"}`;
  c.picture.setAttribute("aria-label", `${heading}: ${words}. The table below has the numbers.`);
}

function drawAll(all, points, step) {
  const { starts, points: dots } = dense(all, points, step);
  const of = (value) => dots.map((p) => (p ? value(p) : 0));
  const requests = limitsOf(all, starts, "requests");
  const tokens = limitsOf(all, starts, "tokens");
  const minutes = step === "minute";
  const total = (counts) => number(counts.reduce((a, b) => a + b, 0));
  const admitted = of((p) => p.admitted), over = of(limited), input = of((p) => p.input_tokens), output = of((p) => p.output_tokens);
  fill("requests", requestBars, {
    heading: `Requests per ${step}`, step, starts, counts: [admitted, over, of(otherwise)], limits: minutes ? requests : null,
    words: `${total(admitted)} admitted, ${total(over)} over a limit in ${spans[step]}`,
  });
  fill("tokens", tokenBars, {
    heading: `Tokens per ${step}`, step, starts, counts: [input, output], limits: minutes ? tokens : null,
    words: `${total(input)} in, ${total(output)} out in ${spans[step]}`,
  });
  for (const [name, colour, limits] of [["requests", "--chart-1", requests], ["tokens", "--chart-4", tokens]]) {
    const key = "peak " + name;
    if (minutes) {
      if (charts[key]) charts[key].figure.hidden = true;
      continue;
    }
    const peaks = of((p) => p.peak[name] ?? 0);
    fill(key, [{ label: "Busiest minute", colour }], {
      heading: `${title(name)} in the busiest minute of each ${step}`, step, starts, counts: [peaks], limits,
      words: `at most ${number(Math.max(0, ...peaks))} in one minute`,
    });
  }
}

function table(points, step) {
  const columns = [
    ["Requests", (p) => p.requests], ["Admitted", (p) => p.admitted], ["Over a limit (429)", limited], ["Refused otherwise", otherwise],
    ["Input tokens", (p) => p.input_tokens], ["Output tokens", (p) => p.output_tokens],
    ["Requests in the busiest minute", (p) => p.peak.requests ?? 0], ["Tokens in the busiest minute", (p) => p.peak.tokens ?? 0],
  ];
  const zone = step === "day" ? "UTC" : times.zone();
  return element("table", {},
    element("caption", {}, `By ${step}, the latest first. Steps without requests are left out. Times in ${zone}.`),
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, step[0].toUpperCase() + step.slice(1)), ...columns.map(([name]) => element("th", { scope: "col", className: "right" }, name)))),
    element("tbody", {}, ...points.toReversed().map((p) =>
      element("tr", {}, element("th", { scope: "row" }, stepName(p.start, step)), ...columns.map(([, value]) => element("td", { className: "right" }, number(value(p))))))));
}

/** reasons lists why requests were refused otherwise; "" where none was. */
function reasons(points, own) {
  const texts = othersText(othersOf(points), own);
  return texts.length > 0 && element("span", {}, ...texts.map((text) => element("span", { className: "line" }, text)));
}

function totals(points, own) {
  const sum = (value) => points.reduce((all, p) => all + value(p), 0);
  const requests = sum((p) => p.requests), over = sum(limited);
  const share = requests > 0 ? `${((100 * over) / requests).toFixed(1)} % of requests` : "";
  facts($("totals"), [
    ["Requests", number(requests)], ["Admitted", number(sum((p) => p.admitted))], ["Over a limit (429)", number(over), share],
    ["Refused otherwise", number(sum(otherwise)), reasons(points, own)], ["Input tokens", number(sum((p) => p.input_tokens))], ["Output tokens", number(sum((p) => p.output_tokens))],
  ]);
}

function empty(step, resource) {
  const box = $("no-usage");
  box.querySelector("h3").textContent = `No requests${resource ? ` for ${resource}` : ""} yet in ${spans[step]}`;
  const example = box.querySelector("pre");
  if (example) example.textContent = `curl ${location.origin}/v1/chat/completions \\
  -H "Authorization: Bearer YOUR_API_KEY" \\
  -H "Content-Type: application/json" \\
  -d '{"model": "MODEL", "messages": [{"role": "user", "content": "Hello"}]}'`;
}

/** resources offers those that were asked for, and keeps what is chosen. */
function resources(points) {
  const select = $("resource");
  const names = new Set(points.map((p) => p.resource));
  if (select.value) names.add(select.value);
  const have = [...select.options].slice(1).map((o) => o.value);
  const want = [...names].sort();
  if (have.join() === want.join()) return;
  const chosen = select.value;
  select.replaceChildren(element("option", { value: "" }, "All"), ...want.map((name) => element("option", { value: name }, name)));
  select.value = chosen;
}

/** usage fetches and shows the view, as its controls say, from an address of the API; own: to the holder of the key. */
export async function usage(current, from, { own = false } = {}) {
  const step = $("usage-controls").elements.step.value;
  const resource = $("resource").value;
  // From 0 is from the earliest that is kept.
  const address = `${from}?from=0&step=${step}`;
  const [all, each] = await Promise.all([ask(address), ask(address + "&by=resource")]);
  if (!current()) return;
  resources(each.points);
  const points = resource ? each.points.filter((p) => p.resource === resource) : all.points;
  const nothing = points.length === 0;
  document.querySelector("#view-usage .body").hidden = false; // charts need their width
  empty(step, resource);
  $("no-usage").hidden = !nothing;
  $("charts").hidden = $("totals").hidden = $("usage-table").hidden = nothing;
  if (nothing) return;
  totals(points, own);
  drawAll(all, points, step);
  $("usage-table").querySelector("summary").textContent = `Show the numbers as a table (${many(points.length, step)})`;
  const scroll = $("usage-table").querySelector(".scroll");
  const left = scroll.scrollLeft;
  scroll.replaceChildren(table(points, step));
  scroll.scrollLeft = left;
}
