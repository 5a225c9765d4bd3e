// The page of a key: what it is, how it stands with its limits, what it has used, what of
// it was refused, and what was done to it.

import { showLimits } from "./limits.js";
import { api, moment, run, stateMark } from "./operator.js";
import { refusalList } from "./refused.js";
import { revoking } from "./revoke.js";
import { ask, element, facts, number, priorities, tableOf, times, title } from "./shared.js";
import { usage } from "./usage.js";

const $ = (id) => document.getElementById(id);
const id = decodeURIComponent(location.pathname.split("/").at(-1));
const address = `${api}/keys/${encodeURIComponent(id)}`;

const tags = (texts) => element("span", { className: "tags" }, ...texts.map((text) => element("span", { className: "tag" }, text)));

function describe(k) {
  const priority = k.priority ? `${k.priority} ${priorities[k.priority]}` : "The tier's";
  facts($("facts"), [
    ["State", stateMark(k.state), k.hidden ? "hidden by a key of the file" : ""],
    ["Tier", k.tier, k.no_tier ? "no such tier is configured: requests get 503" : ""], ["Owner", k.owner || "–"], ["Priority", priority],
    ["Created", moment(k.created, "Not known")], ["Expires", moment(k.expires, "Never")],
    ["Last used", k.last_used === undefined ? "Not known" : moment(k.last_used, "Never")],
    ["Source", k.source, k.revision ? `revision ${number(k.revision)}` : ""],
    ...(k.former_until ? [["Former secret works until", moment(k.former_until)]] : []),
    ...(k.former_pepper ? [["Pepper of that secret", k.former_pepper, k.no_former_pepper ? "not configured: the former secret gets 401" : ""]] : []),
    ...(k.pepper ? [["Pepper", k.pepper, k.no_pepper ? "not configured: the key gets 401" : ""]] : []), ...(k.demo ? [["Demo key", "Yes"]] : []),
  ]);
  const labels = Object.entries(k.labels ?? {}).map(([name, text]) => `${name}: ${text}`);
  facts($("more"), [
    ["ID", element("code", {}, k.id)],
    ["Resources", k.resources ? tags(k.resources) : "All"],
    ...(labels.length > 0 ? [["Labels", tags(labels)]] : []),
  ]);
  $("overrides").hidden = !k.overrides;
  if (k.overrides) $("overrides").replaceChildren(overrides(k.overrides));
}

/** overrides lists the limits that a key has instead of its tier's. */
const overrides = (all) => tableOf("Limits of its own, instead of its tier's or beside them.", ["Limit", ">At most", "Only for", "Until"],
  all.map((o) => [
    `${title(o.metric)} per ${o.per}${o.algorithm ? `, ${o.algorithm}` : ""}`, number(o.max),
    [o.resource, o.priority && `priority ${o.priority} ${priorities[o.priority]}`].filter(Boolean).join(", ") || "–", moment(o.until, "Without end"),
  ]));

/** changeable says why a key cannot be revoked here, or offers it. */
function changeable(k) {
  $("revoke").hidden = k.source === "file" || k.state === "revoked";
  if (k.source === "file") $("change").textContent = "This key is in the file of keys: change or revoke it there.";
  else if (k.state === "revoked") $("change").textContent = "This key is revoked, for good.";
  else $("change").textContent = "Change it with tiergate keys change, override and rotate.";
}

/** unknown says that there is no such key, and asks no more. */
function unknown() {
  Object.values(lives).forEach((l) => l.stop());
  $("of-key").hidden = true;
  $("notice").hidden = true;
  const says = document.querySelector("#record .loading");
  says.setAttribute("role", "status");
  says.textContent = "There is no key of this ID. The list of keys has all that there are.";
}

async function record(current) {
  let k;
  try {
    k = await ask(address);
  } catch (trouble) {
    if (trouble.status !== 404) throw trouble;
    unknown();
    return;
  }
  if (!current()) return;
  $("key-title").textContent = k.name || k.id;
  document.title = `${k.name || k.id} – TierGate operations`;
  describe(k);
  changeable(k);
  state = k.state;
  drawLimits();
}

let state = ""; // of the key; "": not known yet
let standing; // the latest answer to /limits

function drawLimits() {
  if (state && standing) showLimits($("limits"), standing, state === "active" ? "" : `Key ${state}`);
}

async function limits(current) {
  const view = await ask(`${address}/limits`);
  if (!current()) return;
  standing = view;
  drawLimits();
}

async function refused(current) {
  const [{ refusals }, used] = await Promise.all([ask(`${address}/refusals`), ask(`${address}/usage?step=minute&from=0`)]);
  if (!current()) return;
  $("refusals").replaceChildren(...refusalList(refusals, used));
}

async function audit(current) {
  const { events, next } = await ask(`${api}/audit?key=${encodeURIComponent(id)}&limit=50`);
  if (!current()) return;
  const caption = `The latest ${next ? "50 changes" : "changes"} first. Times in ${times.zone()}.`;
  $("events").replaceChildren(events.length > 0
    ? tableOf(caption, ["Time", "What", "By", "Detail"], events.map((e) => [times.both(Date.parse(e.at) / 1000), e.action, e.by, e.detail || "–"]))
    : element("p", { className: "empty" }, "Nothing, as far as the audit log goes back."));
}

const lives = run(["record", record, 5], ["limits-now", limits, 3], ["view-usage", (current) => usage(current, `${address}/usage`), 10], ["refused", refused, 5], ["audit", audit, 10]);
$("usage-controls").addEventListener("change", () => lives["view-usage"].now());
$("usage-controls").addEventListener("submit", (event) => event.preventDefault());
revoking(id, address, () => {
  lives.record.now();
  lives.audit.now();
});
