// The overview: how the instances do, what is refused, and which keys stand out.

import { Chart } from "./charts.js";
import { api, bar, keyLink, percent, run } from "./operator.js";
import { refusals } from "./reasons.js";
import { ask, element, facts, many, number, refill, tableOf, times, title, unavailable, wait } from "./shared.js";
import { dense, failed, limited, otherwise } from "./usage.js";

const $ = (id) => document.getElementById(id);

/** groups are what becomes of requests, shown apart: as an outcome of decisions, and of a point of usage. */
const groups = [
  { label: "Admitted", colour: "--chart-1", of: ["allowed"], count: (p) => p.admitted },
  { label: "Over a limit (429)", colour: "--chart-2", of: ["limited"], count: limited },
  { label: "Refused otherwise", colour: "--chart-3", of: ["too_large", "unauthenticated", "forbidden", "unrecognised"], count: (p) => otherwise(p) - failed(p) },
  { label: "Failed", colour: "--bad-fill", of: ["failed"], count: failed },
];
const every = 2; // seconds between samples
const shown = 300; // seconds of samples

let samples = JSON.parse(sessionStorage.getItem("rates") ?? "[]"); // [Unix seconds, rate of each group]
const charts = {};

const rate = (n) => number(n >= 10 ? Math.round(n) : Math.round(100 * n) / 100);
const milliseconds = (ms) => (ms === null ? "–" : `${number(ms >= 10 ? Math.round(ms) : ms)} ms`);
const sum = (rates, outcomes = Object.keys(rates)) => outcomes.reduce((all, o) => all + (rates[o] ?? 0), 0);

/** drawLive adds a sample to those of the last minutes, which outlive the page, and draws them. */
function drawLive({ now, sum: { rates } }) {
  const at = now - (now % every);
  samples = samples.filter(([t]) => t > at - shown && t < at);
  samples.push([at, ...groups.map((g) => sum(rates, g.of))]);
  sessionStorage.setItem("rates", JSON.stringify(samples));
  const byTime = new Map(samples.map(([t, ...values]) => [t, values]));
  const starts = Array.from({ length: shown / every }, (_, i) => at - shown + every * (i + 1));
  charts.live ??= new Chart($("live-chart"), groups);
  charts.live.draw({ step: "live", starts, counts: groups.map((_, g) => starts.map((s) => byTime.get(s)?.[g] ?? null)) });
  $("live-chart").setAttribute("aria-label", `Decisions per second, now ${groups.map((g) => `${g.label.toLowerCase()} ${rate(sum(rates, g.of))}`).join(", ")}`);
}

/** drawMinutes draws the requests of all keys by minute. */
function drawMinutes(series) {
  const { starts, points } = dense(series, series.points, "minute");
  const counts = groups.map(({ count }) => points.map((p) => (p ? count(p) : 0)));
  charts.minute ??= new Chart($("minute-chart"), groups);
  charts.minute.draw({ step: "minute", starts, counts });
  $("minute-chart").setAttribute("aria-label", `Requests per minute in the last 3 hours: ${number(series.totals.admitted)} admitted of ${number(series.totals.requests)}`);
}

function figures({ sum: s }) {
  const all = sum(s.rates);
  const share = (n) => (all > 0 ? `${percent(n / all)} of all` : "");
  facts($("figures"), [
    ["Decisions", `${rate(all)} /s`, many(s.instances, "instance")],
    ...groups.map((g) => [g.label, `${rate(sum(s.rates, g.of))} /s`, share(sum(s.rates, g.of))]),
    ["Decided within", milliseconds(s.p99_ms), s.p99_ms === null ? "" : `99 % of them; half in ${milliseconds(s.p50_ms)}`],
    ["Store", store(s)],
  ]);
}

/** away says that the store does not answer: what stands there is from before, or nothing. */
function away(trouble) {
  facts($("figures"), [...["Decisions", ...groups.map((g) => g.label), "Decided within"].map((name) => [name, "–"]), ["Store", mark("full", "■", "Does not answer")]]);
  $("figures").classList.add("sure");
  for (const cell of $("instances").querySelectorAll(`td[data-label="Store"]`)) cell.replaceChildren("Not known");
  const body = document.querySelector("#now .body");
  if (!body.hidden) return;
  document.querySelector("#now .loading").hidden = true;
  body.hidden = false;
  body.querySelector(".charts").hidden = true;
  $("instances").replaceChildren(element("p", { className: "empty" }, unavailable(trouble)));
}

/** store says for how many instances the store answers. */
function store({ instances, failing }) {
  if (instances === 0) return "–";
  if (failing === 0) return mark("good", "●", "Answers");
  return mark("full", "■", failing === instances ? "Does not answer" : `Fails for ${failing} of ${instances}`);
}

const mark = (className, sign, text) => element("span", { className }, element("span", { className: "mark" }, element("span", { "aria-hidden": "true" }, sign + " "), text));

let failing = 0; // instances, the last time

function announce({ failing: n }) {
  if (n !== failing) $("announcement").textContent = n > 0 ? `The store fails for ${many(n, "instance")}.` : "The store answers again.";
  failing = n;
}

function instances({ now, instances: all }) {
  if (all.length === 0) return element("p", { className: "empty" }, "No instance has told of itself in the last 30 seconds.");
  return tableOf(`${many(all.length, "instance")} told of ${all.length === 1 ? "itself" : "themselves"} in the last 30 seconds.`,
    ["Instance", "Version", "Runs for", ">Decisions/s", ">Median", ">99 %", ">Keys", "Store", "Seen"],
    all.map((i) => [
      i.id, i.version || "–", element("span", { title: `since ${times.both(i.started)} ${times.zone()}` }, wait(now - i.started)), rate(sum(i.rates)),
      milliseconds(i.p50_ms), milliseconds(i.p99_ms), number(i.keys),
      i.store_error ? element("span", {}, mark("full", "■", "Fails"), element("small", { className: "why" }, i.store_error)) : mark("good", "●", "Answers"),
      `${wait(Math.max(0, now - i.seen))} ago`,
    ]));
}

let minutesAt = 0; // when the minutes were last asked for, in milliseconds

/** fetched asks for the instances, and now and then for the minutes. */
function fetched() {
  const stale = Date.now() - minutesAt > 10_000;
  return Promise.all([ask(`${api}/instances`), stale && ask(`${api}/fleet/usage?step=minute&from=0`)]);
}

async function now(current) {
  const [list, minutes] = await fetched().catch((trouble) => {
    if (trouble.away && current()) away(trouble);
    throw trouble;
  });
  if (!current()) return;
  document.querySelector("#now .body").hidden = false; // charts need their width
  document.querySelector("#now .charts").hidden = false;
  $("figures").classList.remove("sure");
  figures(list);
  announce(list.sum);
  drawLive(list);
  $("instances").replaceChildren(instances(list));
  if (!minutes) return;
  minutesAt = Date.now();
  drawMinutes(minutes);
}

function topTable({ keys, by }) {
  if (keys.length === 0) return element("p", { className: "empty" }, by === "refused" ? "Nothing was refused." : "Nothing was used.");
  const names = { requests: "Requests", tokens: "Tokens", refused: "Refused" };
  return tableOf("By full hours: the one under way and those before it.", ["Key", "Owner", "Tier", `>${names[by]}`, ""],
    keys.map((k) => [keyLink(k.key_id, k.name), k.owner || "–", k.tier || "–", number(k.count), bar(k.count / keys[0].count)]));
}

function nearTable({ keys }) {
  if (keys.length === 0) return element("p", { className: "empty" }, "No key has come near a limit in the last two minutes.");
  return tableOf("In the last two minutes; the limit of which a key has used most.", ["Key", "Tier", "Limit", ">Used"],
    keys.map((k) => [keyLink(k.key_id, k.name), k.tier || "–", title(k.limit), mark(k.share >= 1 ? "full" : "near", k.share >= 1 ? "■" : "▲", percent(k.share))]));
}

async function standing(current) {
  const { by, hours } = $("top-controls").elements;
  const [top, near] = await Promise.all([ask(`${api}/top?by=${by.value}&hours=${hours.value}&limit=10`), ask(`${api}/near`)]);
  if (!current()) return;
  refill($("top"), topTable(top));
  refill($("near"), nearTable(near));
}

const lives = run(["now", now, every], ["refused", refusals, 5], ["standing", standing, 5]);
$("top-controls").addEventListener("change", () => lives.standing.now());
$("top-controls").addEventListener("submit", (event) => event.preventDefault());
