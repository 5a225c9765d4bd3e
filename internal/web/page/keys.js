// The list of keys: filters, pages, and what each key is.

import { api, keyLink, moment, run, stateMark } from "./operator.js";
import { ask, element, number, refill, tableOf, times } from "./shared.js";

const $ = (id) => document.getElementById(id);
const size = 50; // keys on a page

/** places are where each page up to the one that is seen begins: after which ID. */
let places = [""];
let following = ""; // where the next one does

/** lastUsed says when a key was; undefined: that could not be read. */
function lastUsed(text) {
  if (text === undefined) return "Not known";
  return moment(text, "Never");
}

function rows(keys) {
  return keys.map((k) => [
    keyLink(k.id, k.name), k.owner || "–", k.tier, stateMark(k.state),
    element("span", {}, k.source, ...(k.hidden ? [element("small", { className: "why" }, "hidden by a key of the file")] : [])),
    moment(k.created, "–"), lastUsed(k.last_used),
  ]);
}

/** secret: whether a key is searched for in place of what it is called. It has no place in an address. */
const secret = () => $("q").value.toLowerCase().includes("tg_live_");

const filtered = () => Object.fromEntries([...new FormData($("filter"))].filter(([name, value]) => value && !(name === "q" && secret())));

/** remember puts into the address what leads to the list that is seen. What nobody is called is left out: it may be a key. */
function remember({ q, ...others }, found) {
  const text = new URLSearchParams(q && found ? { q, ...others } : others).toString();
  history.replaceState(null, "", location.pathname + (text && `?${text}`) + location.hash);
}

async function keys(current) {
  const filter = filtered();
  const { keys: found, next = "" } = await ask(`${api}/keys?${new URLSearchParams({ ...filter, limit: size, after: places.at(-1) })}`);
  if (!current()) return;
  remember(filter, found.length > 0);
  following = next;
  const list = found.length > 0
    ? tableOf(`By ID. Times in ${times.zone()}.`, ["Key", "Owner", "Tier", "State", "Source", "Created", "Last used"], rows(found))
    : element("p", { className: "empty" }, Object.keys(filter).length > 0 ? "No key is like that." : "There are no keys yet. Make one: tiergate keys create --tier TIER");
  refill($("list"), list);
  const first = size * (places.length - 1);
  $("place").textContent = found.length > 0 ? `${number(first + 1)} to ${number(first + found.length)}${next ? "" : ", the last"}` : "";
  const at = document.activeElement;
  $("previous").disabled = places.length === 1;
  $("next").disabled = !next;
  if (at.disabled) (at === $("next") ? $("previous") : $("next")).focus({ preventScroll: true });
}

/** tiers offers those of the configuration, and the one that is asked for. */
async function tiers(chosen) {
  const { tiers: all } = await ask(`${api}/tiers`).catch(() => ({ tiers: [] }));
  const names = new Set([...all.map((t) => t.name), ...(chosen ? [chosen] : [])]);
  $("tier").append(...[...names].map((name) => element("option", { value: name }, name)));
  $("tier").value = chosen;
}

function refilter() {
  places = [""];
  $("q").setCustomValidity(secret() ? "That looks like a key. Search for its ID, its name or its owner: a secret has no place in an address." : "");
  if (secret()) {
    $("q").reportValidity();
    return;
  }
  lives.keys.now();
}

function turn(change) {
  change();
  following = ""; // not known before the page is there
  lives.keys.now();
  scrollTo(0, 0);
}

const asked = new URLSearchParams(location.search);
$("q").value = asked.get("q") ?? "";
$("state").value = asked.get("state") ?? "";
if ($("state").selectedIndex < 0) $("state").value = "";
await tiers(asked.get("tier") ?? "");
const lives = run(["keys", keys, 5]);

let typing;
$("q").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(refilter, 250);
});
$("filter").addEventListener("change", refilter);
$("filter").addEventListener("submit", (event) => {
  event.preventDefault();
  refilter();
});
$("next").addEventListener("click", () => following && turn(() => places.push(following)));
$("previous").addEventListener("click", () => turn(() => places.pop()));
