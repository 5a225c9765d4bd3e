// Charts of counts by time: stacked bars, and a limit as a line across them.

import { compact, number, times } from "./shared.js";

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** steps are the lengths of the steps, in seconds. Live is that of what is asked for again and again. */
export const steps = { live: 2, minute: 60, hour: 3600, day: 86_400 };

/** stepName writes the time of a step that begins at some Unix seconds. */
export function stepName(start, step) {
  if (step === "day") return new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric", timeZone: "UTC" }).format(start * 1000);
  return `${times.date(start)}, ${step === "live" ? times.clock(start) : times.minute(start)}`;
}

/** A Chart draws into a box. Its bars are {label, colour}; colours are CSS variables. */
export class Chart {
  constructor(box, bars, line) {
    Object.assign(this, { box, bars, line });
    new ResizeObserver(() => this.plot?.setSize(this.#size())).observe(this.box);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#rebuild());
  }

  /**
   * draw shows a count of each bar for each step that begins at one of starts, or null
   * where it is not known. limits has a number or null for each; without it there is no
   * line.
   */
  draw({ step, starts, counts, limits }) {
    const highest = Math.max(0, ...starts.map((_, i) => counts.reduce((sum, c) => sum + c[i], 0))); // null counts as 0
    const limit = Math.max(0, ...(limits ?? []).filter((l) => l !== null));
    // A limit far above would flatten the bars.
    const lined = limit > 0 && (highest === 0 || limit <= 12 * highest);
    this.data = { step, starts, counts, limits, lined, top: Math.max(highest, lined ? limit : 0, 1) * 1.08 };
    const shape = [step, lined, times.local].join();
    if (this.plot && this.shape === shape) this.plot.setData(this.#columns());
    else this.#rebuild();
    this.shape = shape;
    return { limit, lined };
  }

  /** The columns of uPlot: bars that stand on others are drawn first, as high as all of them. */
  #columns() {
    const { starts, counts, limits, lined } = this.data;
    const stacked = counts.map((_, b) => starts.map((_, i) => (counts[b][i] === null ? null : counts.slice(0, b + 1).reduce((sum, c) => sum + c[i], 0))));
    return [starts, ...stacked.reverse(), ...(lined ? [limits] : [])];
  }

  #size() {
    return { width: Math.max(this.box.clientWidth, 200), height: 220 };
  }

  #rebuild() {
    if (!this.data) return;
    this.plot?.destroy();
    this.plot = new uPlot(this.#options(), this.#columns(), this.box);
  }

  #options() {
    const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1, size: 4 }, font: "12px system-ui, sans-serif" };
    const { step } = this.data;
    const zoned = step !== "day" && times.local; // days are those of UTC
    return {
      ...this.#size(),
      tzDate: (seconds) => (zoned ? new Date(seconds * 1000) : uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC")),
      scales: {
        x: { range: () => [this.data.starts[0], this.data.starts.at(-1) + steps[step]] },
        y: { range: () => [0, this.data.top] },
      },
      axes: [
        { ...axis, space: 60, values: (_, splits) => splits.map((s, i) => this.#tick(s, splits[i - 1])) },
        { ...axis, size: 52, values: (_, splits) => splits.map((v) => (Number.isInteger(v) ? compact(v) : "")) },
      ],
      cursor: { drag: { x: false, y: false }, points: { show: false }, sync: { key: "time" }, y: false },
      series: this.#series(),
    };
  }

  #series() {
    const value = (index) => (_, __, ___, i) => (i == null || this.data.counts[index][i] === null ? "" : number(this.data.counts[index][i]));
    const bars = this.bars.map((bar, index) => ({
      label: bar.label, fill: colour(bar.colour), stroke: colour(bar.colour), width: 0, points: { show: false },
      paths: uPlot.paths.bars({ size: [0.85, 40], align: 1 }), value: value(index),
    }));
    const time = { label: "", value: (_, s) => (s == null ? "" : stepName(s, this.data.step)) };
    const line = {
      label: this.line, stroke: colour("--text"), width: 1.5, dash: [6, 4], points: { show: false }, spanGaps: true,
      paths: uPlot.paths.stepped({ align: 1 }), value: (_, v) => (v == null ? "" : number(v)),
    };
    return [time, ...bars.reverse(), ...(this.data.lined ? [line] : [])];
  }

  #tick(seconds, before) {
    const { step } = this.data;
    if (step === "day") return new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", timeZone: "UTC" }).format(seconds * 1000);
    const date = times.date(seconds);
    const other = before === undefined ? step === "hour" : times.date(before) !== date;
    return other ? `${times.minute(seconds)}\n${date}` : times.minute(seconds);
  }
}
