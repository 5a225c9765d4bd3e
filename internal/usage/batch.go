package usage

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// What Counts.Refused calls the requests that no limit refused.
const (
	Forbidden = "forbidden" // the key may not use the resource
	TooLarge  = "too_large" // more than the whole of a limit
	Failed    = "failed"    // it could not be counted
	// OtherReasons takes the place of reasons beyond the bound; see Recorder.
	OtherReasons = "other"
)

// NearShare is the share of a limit from which an account is near it.
const NearShare = 0.8

// Unknown is the label of tokens whose tier or priority is not known, in the series
// of the fleet.
const Unknown = "unknown"

// BatchKept is how long a store must know the last batch of each instance, so that it
// is not added twice, and how long a Recorder goes on trying.
const BatchKept = 2 * time.Hour

// A Batch is what one instance has observed in an interval. A store adds it once,
// though it may be handed it again when the outcome of the first time is unknown.
type Batch struct {
	ID       string // a random one, of letters and digits
	Instance string // its batches are added one after another
	Made     time.Time
	Accounts []Account // by ID, each once, the fleet's series among them
}

// An Account is what a Batch says of one account, or of one series of the fleet.
type Account struct {
	ID    string
	Cells []Cell // by minute and label, each once

	// The limits per minute that were seen last; 0: none was known, or there was none.
	LimitRequests, LimitTokens int64

	Last     time.Time // when the last request was decided; zero: none was
	Near     Near      // the limit of which most was used; without a name below NearShare
	Refusals []Refusal // the latest, the oldest first
}

// A Cell is what the requests of an account for one resource came to in one minute.
type Cell struct {
	Minute int64  // since the Unix epoch
	Label  string // the resource; of the fleet's series, see Point.Resource
	Counts
}

// IsKey reports whether the account is that of a key, not a series of the fleet nor
// Other.
func (a *Account) IsKey() bool { return !strings.HasPrefix(a.ID, "~") }

// Totals returns the counts of all cells together.
func (a *Account) Totals() Counts {
	var c Counts
	for i := range a.Cells {
		c.Add(a.Cells[i].Counts)
	}
	return c
}

// Requests is how many requests the batch is about.
func (b *Batch) Requests() int64 {
	var n int64
	for i := range b.Accounts {
		if b.Accounts[i].ID == FleetByResource {
			n += b.Accounts[i].Totals().Requests()
		}
	}
	return n
}

// Add adds other counts to these.
func (c *Counts) Add(o Counts) {
	c.Admitted = Sum(c.Admitted, o.Admitted)
	c.InputTokens = Sum(c.InputTokens, o.InputTokens)
	c.OutputTokens = Sum(c.OutputTokens, o.OutputTokens)
	for reason, n := range o.Refused {
		if c.Refused == nil {
			c.Refused = map[string]int64{}
		}
		c.Refused[reason] = Sum(c.Refused[reason], n)
	}
}

// Sum adds counts, none of which is below 0, up to quota.MaxUsed.
func Sum(a, b int64) int64 { return min(a+b, quota.MaxUsed) }

// at returns the counts of a minute and a label, which may be new.
func (a *Account) at(minute int64, label string) *Counts {
	for i := len(a.Cells) - 1; i >= 0; i-- { // the latest are asked for most
		if c := &a.Cells[i]; c.Minute == minute && c.Label == label {
			return &c.Counts
		}
	}
	a.Cells = append(a.Cells, Cell{Minute: minute, Label: label})
	return &a.Cells[len(a.Cells)-1].Counts
}

func (a *Account) sort() {
	slices.SortFunc(a.Cells, func(x, y Cell) int {
		return cmp.Or(cmp.Compare(x.Minute, y.Minute), cmp.Compare(x.Label, y.Label))
	})
}
