package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// A row is what was seen of one fault.
type row struct {
	fault  string
	during stretch
	errors int // that clients saw from the beginning of the fault on
	over   int // requests admitted above a limit, summed over windows
	lost   int // admitted requests that were not counted in the end
	doubt  int // counted requests that no client saw admitted
	tokens int // by which the tokens counted differ from those used
	normal time.Duration
	shared time.Duration
}

// none is what a row says where something was not measured.
const none = -1

// head names the columns.
func head() []string {
	return []string{
		"Fault", "Requests", "Degraded", "p50", "p99", "Slowest", "Longest gap", "Client errors",
		"Over the limit", "Counts lost", "Counted, not seen", "Tokens off", "Normal after", "Shared after",
	}
}

func (r row) cells() []string {
	d := r.during
	return []string{
		r.fault, amount(d.requests), amount(d.degraded), millis(d.p50), millis(d.p99), millis(d.longest), millis(d.gap), amount(r.errors),
		amount(r.over), amount(r.lost), amount(r.doubt), amount(r.tokens), millis(r.normal), millis(r.shared),
	}
}

func amount(n int) string {
	if n == none {
		return "–"
	}
	return strconv.Itoa(n)
}

func millis(d time.Duration) string {
	switch {
	case d == none:
		return "–"
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/1e6)
	case d < 10*time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// table lays rows of cells out in Markdown.
func table(rows ...[]string) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 1, ' ', 0)
	for i, cells := range rows {
		fmt.Fprintf(w, "| %s\t|\n", strings.Join(cells, "\t| "))
		if i == 0 {
			fmt.Fprintf(w, "|%s\n", strings.Repeat(" ---\t|", len(cells)))
		}
	}
	w.Flush()
	return b.String()
}

// phases is the table of what clients saw before, during and after a fault.
func phases(before, during, after stretch) string {
	rows := [][]string{{"", "Requests", "Degraded", "p50", "p99", "Slowest", "Longest gap", "Client errors"}}
	for _, p := range []struct {
		name string
		stretch
	}{{"before", before}, {"during", during}, {"after", after}} {
		rows = append(rows, []string{
			p.name, amount(p.requests), amount(p.degraded), millis(p.p50), millis(p.p99), millis(p.longest), millis(p.gap), amount(p.failed),
		})
	}
	return table(rows...)
}
