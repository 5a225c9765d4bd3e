// What every dashboard does: write numbers and times, ask the server, refresh itself,
// and show one view at a time.

const grouped = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const number = (n) => grouped.format(n);
export const compact = (n) => short.format(n);

/** many names a number of things: "1 request", "2,000 requests". */
export const many = (n, one, more = one + "s") => `${number(n)} ${n === 1 ? one : more}`;

/** element makes an HTML element of properties and children. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** facts fills a description list: pairs of a term and what it is, perhaps with a note. */
export function facts(list, rows) {
  list.replaceChildren(...rows.map(([term, text, note]) =>
    element("div", {}, element("dt", {}, term), element("dd", {}, text, ...(note ? [element("small", {}, note)] : [])))));
}

/**
 * refill replaces what a box shows. A link in it that has the focus is replaced by the
 * same of what is new.
 */
export function refill(box, ...content) {
  const focused = box.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  box.replaceChildren(...content);
  if (focused) box.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}

export const priorities = { 1: "Low", 2: "Normal", 3: "High", 4: "Critical" };

/**
 * tableOf makes a table, which phones lay out as cards if it is in a ".stack"; the roles
 * keep it a table to those who hear it. Columns are names, with a ">" before those of
 * numbers; a row has a text or an element for each.
 */
export function tableOf(caption, columns, rows) {
  const name = (c) => c.replace(/^>/, "");
  const kind = (c) => (c.startsWith(">") ? "right" : "");
  return element("table", { role: "table" },
    element("caption", {}, caption),
    element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, ...columns.map((c) => element("th", { role: "columnheader", scope: "col", className: kind(c) }, name(c))))),
    element("tbody", { role: "rowgroup" }, ...rows.map((cells) =>
      element("tr", { role: "row" }, ...cells.map((cell, i) => element("td", { role: "cell", "data-label": name(columns[i]), className: kind(columns[i]) }, cell))))));
}

/** A limit's name for people: "Requests per minute". */
export function title(name) {
  const words = name.replaceAll("_", " ");
  return words[0].toUpperCase() + words.slice(1);
}

/** Times, of Unix seconds, in UTC or as the reader's clock shows them. */
export const times = {
  local: false,
  format(seconds, options) {
    return new Intl.DateTimeFormat("en-GB", { ...options, ...(this.local ? {} : { timeZone: "UTC" }) }).format(seconds * 1000);
  },
  clock(seconds) { return this.format(seconds, { hour: "2-digit", minute: "2-digit", second: "2-digit" }); },
  minute(seconds) { return this.format(seconds, { hour: "2-digit", minute: "2-digit" }); },
  date(seconds) { return this.format(seconds, { day: "numeric", month: "short" }); },
  day(seconds) { return this.format(seconds, { day: "numeric", month: "short", year: "numeric" }); },
  both(seconds) { return `${this.date(seconds)}, ${this.clock(seconds)}`; },
  /** The name of the zone that times are in. */
  zone() {
    if (!this.local) return "UTC";
    return new Intl.DateTimeFormat("en-GB", { timeZoneName: "short" }).formatToParts(new Date()).find((p) => p.type === "timeZoneName").value;
  },
};

/** zoneSwitch lets a select choose the zone, remembers it, and tells when it changes. */
export function zoneSwitch(select, changed) {
  times.local = localStorage.getItem("zone") === "local";
  select.value = times.local ? "local" : "utc";
  select.addEventListener("change", () => {
    times.local = select.value === "local";
    localStorage.setItem("zone", select.value);
    changed();
  });
}

/** wait writes how long some seconds are: "42 s", "3 min 5 s", "2 h 10 min". */
export function wait(seconds) {
  const s = Math.max(0, Math.ceil(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 48 * 3600) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} days`;
}

/** Trouble is why the server has not answered as it should; away: its store does not answer. */
export class Trouble extends Error {
  constructor(text, { signedOut = false, status = 0, away = false } = {}) {
    super(text);
    Object.assign(this, { signedOut, status, away });
  }
}

/** ask gets JSON, or sends some and gets what comes of it, or throws a Trouble whose text is for people. */
export async function ask(address, { method = "GET", body } = {}) {
  let answer;
  try {
    const headers = { Accept: "application/json", ...(body ? { "Content-Type": "application/json" } : {}) };
    answer = await fetch(address, { method, headers, body: body && JSON.stringify(body), signal: AbortSignal.timeout(10_000) });
  } catch {
    throw new Trouble("The server cannot be reached.");
  }
  if (answer.ok) return answer.json();
  if (answer.status !== 401 && answer.headers.get("Content-Type") === "application/problem+json") {
    const { title, detail, status } = await answer.json();
    throw new Trouble(`${title}${detail && status < 500 ? `: ${detail}` : ""}.`, { status, away: status === 503 });
  }
  switch (answer.status) {
    case 401: throw new Trouble("You are signed out.", { signedOut: true });
    case 429: throw new Trouble("Too many pages are open at once.");
    case 503: throw new Trouble("The counts cannot be read at the moment.");
    default: throw new Trouble(`The server has answered with status ${answer.status}.`);
  }
}

/**
 * Live runs a task again and again while it is started and the page is seen. After
 * trouble it waits longer each time, up to 30 seconds.
 */
export class Live {
  /** told gets null when the task has worked, else the trouble and the seconds until the next try. */
  constructor(task, seconds, told) {
    Object.assign(this, { task, seconds, told, started: false, failures: 0, turn: 0 });
    document.addEventListener("visibilitychange", () => (document.hidden ? this.#pause() : this.started && this.now()));
  }

  start() {
    this.started = true;
    this.now();
  }

  stop() {
    this.started = false;
    this.#pause();
  }

  #pause() {
    this.turn++;
    clearTimeout(this.timer);
  }

  async now() {
    this.#pause();
    const turn = this.turn;
    let trouble = null;
    try {
      await this.task(() => turn === this.turn);
    } catch (error) {
      trouble = error;
      if (!(error instanceof Trouble)) {
        console.error(error);
        trouble = new Trouble("Something is wrong with this page.");
      }
    }
    if (turn !== this.turn) return;
    this.failures = trouble ? this.failures + 1 : 0;
    const seconds = trouble ? Math.min(30, this.seconds * 2 ** this.failures) : this.seconds;
    this.told(trouble, seconds);
    this.timer = setTimeout(() => this.now(), seconds * 1000);
  }
}

const troubles = new Map(); // by section

/** told shows the trouble of a section, or of another that still has some. */
function told(section, trouble) {
  troubles.delete(section);
  if (trouble) troubles.set(section, trouble);
  const [first] = troubles.values();
  const notice = document.getElementById("notice");
  notice.hidden = !first;
  if (!first) return;
  notice.querySelector("span").textContent = first.text;
  notice.querySelector("button").onclick = first.again;
}

/** unavailable says in the place of what there is not why that is so. */
export const unavailable = (trouble) => (trouble.away ? "Not available while the store does not answer." : "Not available at the moment.");

/**
 * live makes the Live of a section, and says how that goes: the part ".loading" is seen
 * until there is a ".body", ".fresh" says how new it is. A section that is not kept up to
 * date is ".old". now is the time, in Unix seconds.
 */
export function live(section, task, every, now = () => Date.now() / 1000) {
  const fresh = section.querySelector(".fresh");
  const loading = section.querySelector(".loading");
  let updated = 0; // when it was, in Unix seconds
  const made = new Live(async (current) => {
    await task(current);
    if (!current()) return;
    loading.hidden = true;
    section.querySelector(".body").hidden = false;
  }, every, (trouble, next) => {
    if (trouble?.signedOut) {
      location.assign("/dashboard/signin?over");
      return;
    }
    fresh.classList.toggle("stale", trouble !== null);
    section.classList.toggle("old", trouble !== null);
    if (trouble) loading.textContent = unavailable(trouble);
    else updated = now();
    fresh.hidden = updated === 0;
    fresh.textContent = `${trouble ? "Stopped at" : "Live, updated"} ${times.clock(updated)} ${times.zone()}`;
    told(section, trouble && { text: `${trouble.message} ${fresh.hidden ? "" : "What you see is old. "}Trying again in ${next} s.`, again: () => made.now() });
  });
  return made;
}

/**
 * views shows the section "view-x" of the address's "#x", keeps the navigation true, and
 * runs the Live of what is seen and no other.
 */
export function views(lives) {
  const names = Object.keys(lives);
  let name = names[0];
  const show = () => {
    const asked = location.hash.slice(1);
    if (asked !== "main") name = names.includes(asked) ? asked : names[0]; // that is the way to the content
    for (const other of names) {
      document.getElementById("view-" + other).hidden = other !== name;
      const link = document.querySelector(`.views a[href="#${other}"]`);
      if (other === name) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
      if (other !== name) lives[other].stop();
    }
    lives[name].start();
  };
  window.addEventListener("hashchange", show);
  show();
}
