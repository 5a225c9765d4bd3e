package main

import (
	"bytes"
	"context"
	"debug/buildinfo"
	_ "embed"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"text/template"
	"time"

	"github.com/tiergate/tiergate/internal/devstack"
	"golang.org/x/sys/unix"
)

//go:embed report.md
var reportText string

// A goal is a ratio that TierGate is to keep.
type goal struct {
	Text     string
	Bound    string
	Measured string
	Met      string
}

// manyToFew is what a request may cost with many keys in use, as a ratio to what it costs with few, whose counts
// are in the caches of the processor.
const manyToFew = 1.25

// goals compares what was measured with what is wanted of it.
func (r results) goals() []goal {
	var all []goal
	at := func(most bool, bound float64, text string, measured float64, ok bool) {
		if !ok {
			return
		}
		g := goal{Text: text, Bound: fmt.Sprintf("at least %.3g", bound), Measured: fmt.Sprintf("%.2f", measured), Met: "**not met**"}
		if most {
			g.Bound = fmt.Sprintf("at most %.3g", bound)
		}
		if most == (measured <= bound) || measured == bound {
			g.Met = "met"
		}
		all = append(all, g)
	}
	against := func(most bool, bound float64, text, name, other string, f figure) {
		v, ok := r.ratio(name, other, f)
		at(most, bound, text, v, ok)
	}
	server := func(bound float64, name string) {
		v, ok := r.within(name, serverCPU, cannedCPU)
		at(true, bound, "CPU of the server, "+name+" : canned answer", v, ok)
	}
	for _, p := range []protocol{check, rls} {
		of := ", redis, " + string(p)
		bound := map[protocol]float64{check: 1.0, rls: 1.2}[p]
		for _, kind := range []string{"requests", "tokens"} {
			server(bound, kind+of)
		}
		compared := rateLimitCase(p).name
		against(false, 3, "requests/s, requests"+of+" : "+compared, "requests"+of, compared, perSecond)
		for _, kind := range []string{"requests", "tokens settled"} {
			bound := map[string]float64{"requests": 1.3, "tokens settled": 3}[kind]
			for _, floor := range []figure{floorIn32, floorHere} {
				v, ok := r.within(kind+of, redisCPU, floor)
				at(true, bound, "CPU of Redis, "+kind+of+" : "+string(floor), v, ok)
			}
		}
		refused, ok := r.median("refused"+of, commands)
		at(true, 0.05, "Redis commands of a refused request, "+string(p), refused, ok)
	}
	for _, p := range []protocol{check, rls} {
		for _, kind := range []string{"requests", "tokens"} {
			server(0.8, kind+", memory, "+string(p))
		}
	}
	against(true, manyToFew, "CPU of the server, "+manyName+" : "+fewName, manyName, fewName, serverCPU)
	bytes, ok := r.median(manyName, perKey)
	at(true, 300, "bytes of memory of a key in use, memory", bytes, ok)
	short, ok := r.median(manyName, gcShort)
	at(false, 99, "percent of the collector's pauses below 1 ms (SCHED_BATCH), "+manyName, short, ok)
	for _, chain := range chains() {
		for _, f := range []figure{p50, p99} {
			against(true, 1.5, fmt.Sprintf("%s through Envoy, %s, %s : with the canned answer", f, chain, halfBusy), through(chain, "redis", halfBusy), through(chain, "canned", halfBusy), f)
		}
	}
	return all
}

// A line is one of a table: a name and its cells.
type line struct {
	Name  string
	Cells []string
}

// lines are the medians of cases. A cell is empty where nothing was measured.
func (r results) lines(names []string, columns []column) []line {
	var all []line
	for _, name := range names {
		if len(r[name]) == 0 {
			continue
		}
		l := line{Name: name}
		for _, c := range columns {
			cell := ""
			if v, ok := c.of(name); ok {
				cell = fmt.Sprintf("%.*f", c.decimals, v)
			}
			l.Cells = append(l.Cells, cell)
		}
		all = append(all, l)
	}
	return all
}

// A column is a figure of each case.
type column struct {
	decimals int
	of       func(name string) (float64, bool)
}

func (r results) column(f figure, decimals int) column {
	return column{decimals, func(name string) (float64, bool) { return r.median(name, f) }}
}

func (r results) cases() []line {
	names := []string{cannedAnswer(check).name, cannedAnswer(rls).name}
	for _, c := range cases() {
		names = append(names, c.name)
	}
	return r.lines(names, []column{
		r.column(perSecond, 0), r.column(serverCPU, 1),
		{2, func(name string) (float64, bool) { return r.within(name, serverCPU, cannedCPU) }},
		r.column(redisCPU, 1), r.column(commands, 2),
		r.column(batchSize, 1), r.column(floorIn32, 1), r.column(floorHere, 1), r.column(p50, 2), r.column(p99, 2), r.column(loadCPU, 1),
	})
}

// keptRate is which part of its rate the script floor must keep.
const keptRate = 0.9

// slow are the cases in which the script floor did not keep its rate.
func (r results) slow() []string {
	var all []string
	for _, c := range cases() {
		if kept, ok := r.median(c.name, floorKept); ok && kept < keptRate {
			all = append(all, fmt.Sprintf("%s (%.0f %%)", c.name, 100*kept))
		}
	}
	return all
}

func (r results) many() []line {
	return r.lines([]string{fewName, manyName}, []column{
		r.column(perSecond, 0), r.column(serverCPU, 1), r.column(p50, 2), r.column(p99, 2),
		r.column(perKey, 0), r.column(gcPauses, 0), r.column(gcShort, 1), r.column(loadTime, 1),
	})
}

func (r results) fronts() []line {
	var names []string
	cannedOf := map[string]string{}
	for _, chain := range chains() {
		for _, l := range []level{halfBusy, halfRate} {
			canned, decided := through(chain, "canned", l), through(chain, "redis", l)
			names = append(names, canned, decided)
			cannedOf[decided] = canned
		}
	}
	against := func(f figure) column {
		return column{2, func(name string) (float64, bool) { return r.ratio(name, cannedOf[name], f) }}
	}
	return r.lines(names, []column{
		r.column(perSecond, 0), r.column(busy, 0), r.column(p50, 2), against(p50), r.column(p99, 2), against(p99),
	})
}

// notHalf are the results at the level halfBusy in which TierGate had the processors far
// less or far more than half busy.
func (r results) notHalf() []string {
	const far = 10 // %
	var all []string
	for _, chain := range chains() {
		name := through(chain, "redis", halfBusy)
		if have, ok := r.median(name, busy); ok && math.Abs(have-100*half) > far {
			all = append(all, fmt.Sprintf("%s (%.0f %%)", name, have))
		}
	}
	return all
}

// A flushCost is what a flush of usage costs for a key that had requests, and what that
// is for each request, of each case with Redis, where all keys have some in each interval.
type flushCost struct {
	RedisCPU, Commands, ServerCPU string
	Cases                         []line
}

// flush returns nil where it was not measured.
func (r results) flush(keys int) *flushCost {
	redis, ok := r.median(flushName, redisCPU)
	if !ok {
		return nil
	}
	commands, _ := r.median(flushName, commands)
	server, _ := r.median(flushName, serverCPU)
	c := &flushCost{RedisCPU: fmt.Sprintf("%.1f", redis), Commands: fmt.Sprintf("%.1f", commands), ServerCPU: fmt.Sprintf("%.1f", server)}
	share := func(of float64) column {
		return column{2, func(name string) (float64, bool) {
			rate, ok := r.median(name, perSecond)
			return of * float64(keys) / (rate * shippedInterval.Seconds()), ok
		}}
	}
	var names []string
	for _, each := range cases() {
		if each.target == "redis" {
			names = append(names, each.name)
		}
	}
	c.Cases = r.lines(names, []column{share(redis), share(commands), share(server)})
	return c
}

// report writes what was measured, where, and with what.
func (t *table) report(ctx context.Context, r results) (string, error) {
	versions, err := t.versions(ctx)
	if err != nil {
		return "", err
	}
	machine, err := machine()
	if err != nil {
		return "", err
	}
	parsed, err := template.New("report").Parse(reportText)
	if err != nil {
		return "", fmt.Errorf("read the report's template: %w", err)
	}
	var text bytes.Buffer
	err = parsed.Execute(&text, map[string]any{
		"Date": time.Now().UTC().Format("2 January 2006"), "Machine": machine, "Versions": versions,
		"Rounds": t.rounds, "Turns": turns, "Duration": t.spread.duration, "InFlight": t.spread.inFlight, "Connections": t.spread.connections,
		"Keys": t.keys, "Zipf": t.spread.zipf, "Goals": r.goals(), "Cases": r.cases(), "Slow": r.slow(), "Fronts": r.fronts(), "NotHalf": r.notHalf(), "Flush": r.flush(t.keys), "Many": r.many(), "ManyKeys": t.manyKeys,
	})
	if err != nil {
		return "", fmt.Errorf("write the report: %w", err)
	}
	return text.String(), nil
}

// versions are those of what was measured.
func (t *table) versions(ctx context.Context) (string, error) {
	info, err := buildinfo.ReadFile(t.tiergate)
	if err != nil {
		return "", fmt.Errorf("read how %s was built: %w", t.tiergate, err)
	}
	commit := ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			commit = " of commit " + s.Value[:min(len(s.Value), 12)]
		case s.Key == "vcs.modified" && s.Value == "true":
			commit += " with changes"
		}
	}
	compared, err := buildinfo.ReadFile(t.ratelimit)
	if err != nil {
		return "", fmt.Errorf("read how %s was built: %w", t.ratelimit, err)
	}
	redis, err := exec.CommandContext(ctx, "redis-server", "--version").Output()
	if err != nil {
		return "", fmt.Errorf("ask Redis for its version: %w", err)
	}
	version := ""
	for word := range strings.FieldsSeq(string(redis)) {
		if v, ok := strings.CutPrefix(word, "v="); ok {
			version = "; Redis " + v
		}
	}
	const grpc = "google.golang.org/grpc"
	return fmt.Sprintf("TierGate%s, %s, grpc-go %s; envoyproxy/ratelimit %s, grpc-go %s%s, Envoy %s", commit, info.GoVersion, dependency(info, grpc),
		dependency(compared, "github.com/envoyproxy/ratelimit"), dependency(compared, grpc), version, devstack.EnvoyVersion), nil
}

// dependency returns the version of a module that a program was built of.
func dependency(program *buildinfo.BuildInfo, module string) string {
	for _, d := range append(program.Deps, &program.Main) {
		if d.Path == module {
			return d.Version
		}
	}
	return "of no known version"
}

// machine describes this one.
func machine() (string, error) {
	content, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", fmt.Errorf("read what processor this is: %w", err)
	}
	model := runtime.GOARCH
	for l := range strings.Lines(string(content)) {
		if name, value, ok := strings.Cut(l, ":"); ok && strings.TrimSpace(name) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	var system unix.Utsname
	var memory unix.Sysinfo_t
	if err := errors.Join(unix.Uname(&system), unix.Sysinfo(&memory)); err != nil {
		return "", fmt.Errorf("ask what machine this is: %w", err)
	}
	gib := float64(memory.Totalram) * float64(memory.Unit) / (1 << 30)
	return fmt.Sprintf("%d cores of %s, %.0f GiB of memory, Linux %s", runtime.NumCPU(), model, gib, unix.ByteSliceToString(system.Release[:])), nil
}
