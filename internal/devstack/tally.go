package devstack

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
)

// A tally counts answers. It is safe for concurrent use.
type tally struct {
	began time.Time

	mu         sync.Mutex
	byCustomer map[string]map[int]int // customer → status → answers
	left       int                    // answers that were left before their end
}

func newTally(began time.Time) *tally {
	return &tally{began: began, byCustomer: map[string]map[int]int{}}
}

func (t *tally) add(customer string, a answer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byCustomer[customer] == nil {
		t.byCustomer[customer] = map[int]int{}
	}
	t.byCustomer[customer][a.status]++
	if a.left {
		t.left++
	}
}

// columns are the statuses that a summary has a column for.
func columns() []int {
	return []int{http.StatusOK, http.StatusTooManyRequests, http.StatusRequestEntityTooLarge}
}

// line says how far the traffic is.
func (t *tally) line(now time.Time) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := t.sum()
	after := now.Sub(t.began)
	return fmt.Sprintf("%4.0fs %6d answers, %.1f a second:%s", after.Seconds(), total(all), float64(total(all))/after.Seconds(), listed(all))
}

// summarize writes a table of all answers by customer, if there are any.
func (t *tally) summarize(w io.Writer, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := t.sum()
	if len(all) == 0 {
		return
	}
	fmt.Fprintf(w, "\n%d answers in %s:\n\n", total(all), now.Sub(t.began).Round(100*time.Millisecond))
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(table, "key\trequests\t")
	for _, status := range columns() {
		fmt.Fprintf(table, "%d\t", status)
	}
	fmt.Fprintln(table, "other\t")
	for _, c := range customers() {
		row(table, c.name, t.byCustomer[c.name])
	}
	row(table, "all", all)
	_ = table.Flush() // as with all output here, nobody to tell
	for _, status := range columns() {
		delete(all, status)
	}
	fmt.Fprintf(w, "\nOther:%s. 401: no key that works; 500: the mock was asked to fail.\n", listed(all))
	fmt.Fprintf(w, "Streams that the client left before their end: %d.\n", t.left)
}

func row(w io.Writer, name string, byStatus map[int]int) {
	other := total(byStatus)
	fmt.Fprintf(w, "%s\t%d\t", name, other)
	for _, status := range columns() {
		fmt.Fprintf(w, "%d\t", byStatus[status])
		other -= byStatus[status]
	}
	fmt.Fprintf(w, "%d\t\n", other)
}

// sum returns the answers of all customers by status.
func (t *tally) sum() map[int]int {
	all := map[int]int{}
	for _, byStatus := range t.byCustomer {
		for status, n := range byStatus {
			all[status] += n
		}
	}
	return all
}

func total(byStatus map[int]int) int {
	n := 0
	for _, answers := range byStatus {
		n += answers
	}
	return n
}

// listed returns the statuses in order, each with how many there are.
func listed(byStatus map[int]int) string {
	var text strings.Builder
	for _, status := range slices.Sorted(maps.Keys(byStatus)) {
		fmt.Fprintf(&text, " %d×%d", byStatus[status], status)
	}
	return text.String()
}
