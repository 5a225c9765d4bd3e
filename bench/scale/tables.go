package main

import (
	"fmt"
	"strings"
	"time"
)

// Tables returns the tables of docs/scaling.md.
func Tables() string {
	return strings.Join([]string{fleets(), walls(), uneven(), writing()}, "\n")
}

// table puts rows into Markdown.
func table(heads []string, rows [][]string) string {
	var b strings.Builder
	line := func(cells []string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	line(heads)
	line(strings.Split(strings.Repeat("---,", len(heads)-1)+"---", ","))
	for _, row := range rows {
		line(row)
	}
	return b.String()
}

func limitsOn(tokens bool) string {
	if tokens {
		return "tokens too"
	}
	return "requests"
}

func number(n float64) string {
	s := fmt.Sprintf("%.0f", n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// rounded has two digits that count.
func rounded(n float64) string {
	unit := 1.0
	for n/unit >= 100 {
		unit *= 10
	}
	return number(float64(int64(n/unit+0.5)) * unit)
}

func percent(share float64) string { return fmt.Sprintf("%.0f %%", 100*share) }

func ms(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond)) }

func bytes(n float64) string {
	if n < 1e9 {
		return fmt.Sprintf("%.0f MB", n/1e6)
	}
	return fmt.Sprintf("%.1f GB", n/1e9)
}

// fleets are what three rates need.
func fleets() string {
	var rows [][]string
	for _, c := range []struct {
		rate     float64
		interval time.Duration
		cores    int
	}{{1e4, usageInterval, 4}, {1e5, usageInterval, 4}, {1e6, usageInterval, 4}, {1e6, usageLonger, 4}, {1e6, usageLonger, 16}} {
		for _, tokens := range []bool{false, true} {
			f := fleet(c.rate, tokens, 1, c.interval)
			f.Cores = c.cores
			f, r, fits := f.Fit()
			instances := fmt.Sprintf("%d of %d cores", f.Instances(), f.Cores)
			row := []string{
				number(c.rate), limitsOn(tokens), seconds(c.interval), instances, number(float64(f.Servers)), fmt.Sprintf("%.1f", r.Batch),
				percent(r.Busy), percent(r.Usage), ms(r.P50), ms(r.P99), number(float64(f.Instances() * connections)), bytes(f.Memory()),
			}
			if !fits {
				copy(row[4:10], []string{number(float64(f.Servers)) + " are too few", "–", "–", "–", "–", "–"})
			}
			rows = append(rows, row)
		}
	}
	return table([]string{
		"Requests/s", "Limits on", "Usage each", "Instances", "Redis servers", "Batch", "Busy", "with usage", "p50", "p99", "Connections", "Memory",
	}, rows)
}

// wallServers are how many servers the walls are of.
func wallServers() []int { return []int{1, 3, 6, 12, 24} }

// walls are how far so many servers reach.
func walls() string {
	heads := []string{"Redis servers"}
	for _, limits := range []string{"Requests", "Tokens too"} {
		heads = append(heads, limits+", no usage", "every "+seconds(usageLonger), "every "+seconds(usageInterval))
	}
	var rows [][]string
	for _, servers := range wallServers() {
		row := []string{number(float64(servers))}
		for _, tokens := range []bool{false, true} {
			for _, interval := range []time.Duration{0, usageLonger, usageInterval} {
				row = append(row, wall(func(rate float64) Fleet { return fleet(rate, tokens, servers, interval) }))
			}
		}
		rows = append(rows, row)
	}
	return table(heads, rows)
}

// wall is a rate that is looked for with fewer requests.
func wall(of func(rate float64) Fleet) string {
	const requests = 8_000
	return rounded(Wall(func(rate float64) Fleet {
		f := of(rate)
		f.Requests = requests
		return f
	}))
}

// uneven is what an uneven load leaves of a Cluster, without usage. There are 100,000 keys.
func uneven() string {
	const keys = 100_000
	var rows [][]string
	for _, load := range []struct {
		name string
		zipf float64
		keys int
	}{{"all keys alike", 0, keys}, {"Zipf, 0.8", 0.8, keys}, {"Zipf, 1.0", 1, keys}, {"Zipf, 1.2", 1.2, keys}, {"one key alone", 0, 1}} {
		row := []string{load.name, percent(Busiest(load.keys, 1, load.zipf, 1).Hottest)}
		for _, servers := range wallServers() {
			row = append(row, wall(func(rate float64) Fleet {
				return Fleet{Rate: rate, Keys: load.keys, Zipf: load.zipf, Servers: servers, Cores: 4}
			}))
		}
		rows = append(rows, row)
	}
	heads := []string{"Requests", "Of the hottest key"}
	for _, servers := range wallServers() {
		heads = append(heads, plural(servers))
	}
	return table(heads, rows)
}

func plural(servers int) string {
	if servers == 1 {
		return "1 server"
	}
	return fmt.Sprintf("%d servers", servers)
}

// writing is how many servers usage alone keeps busy, at a million requests a second.
func writing() string {
	const rate = 1e6
	var rows [][]string
	for _, keys := range []int{10_000, 100_000, 1_000_000} {
		for _, interval := range []time.Duration{usageInterval, usageLonger} {
			f := Fleet{Rate: rate, Keys: keys, Cores: 4, Interval: interval}
			rows = append(rows, []string{
				number(float64(keys)), seconds(interval), rounded(f.Written()),
				fmt.Sprintf("%.1f", f.Written()*costs(false, true).Usage.Seconds()), percent(f.Written() * rankCost.Seconds()),
			})
		}
	}
	return table([]string{"Keys", "Usage each", "Keys written/s", "Servers full of it", "Of one server, for ranks"}, rows)
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.0f s", d.Seconds()) }
