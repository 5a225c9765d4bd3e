package usage

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// A Store keeps batches.
type Store interface {
	// Add adds a batch, all of it, and once, however often it is handed the last batch
	// of an instance. After an error, any part of it may have been added.
	Add(ctx context.Context, b Batch) error
}

// Run hands a batch to the store in every interval, until ctx is done, and then once
// more; what is told later is lost, so end it last. A batch that fails is handed over
// again, before anything later. The error says how many requests were lost in the end.
func (r *Recorder) Run(ctx context.Context, store Store) error {
	tick := time.NewTicker(r.options.Interval)
	defer tick.Stop()
	h := handover{recorder: r, store: store}
	for {
		select {
		case <-tick.C:
			h.pass(ctx)
		case <-ctx.Done():
			return h.last(context.WithoutCancel(ctx))
		}
	}
}

// A handover is what Run has in hand.
type handover struct {
	recorder *Recorder
	store    Store
	waiting  *Batch // has been handed over, with an error; nil: none
	failing  bool   // OnError knows of it
}

// pass adds what waits, and then what was gathered since.
func (h *handover) pass(ctx context.Context) {
	h.give(ctx)
	if h.waiting == nil {
		h.take()
		h.give(ctx)
	}
}

// take makes what was gathered the batch that waits.
func (h *handover) take() {
	if b := h.recorder.Flush(); len(b.Accounts) > 0 {
		h.waiting = &b
	}
}

// give adds the batch that waits, if there is one.
func (h *handover) give(ctx context.Context) {
	if h.waiting == nil {
		return
	}
	if h.recorder.options.Now().Sub(h.waiting.Made) >= BatchKept {
		h.drop() // the store may not know it any more, and would add it twice
		return
	}
	err := h.store.Add(ctx, *h.waiting)
	if err == nil {
		h.waiting = nil
	}
	if (err != nil) != h.failing && ctx.Err() == nil {
		h.failing = err != nil
		h.recorder.options.OnError(err)
	}
}

func (h *handover) drop() int64 {
	if h.waiting == nil {
		return 0
	}
	n := h.waiting.Requests()
	h.recorder.dropped.Add(n)
	h.waiting = nil
	return n
}

// last adds all there is, in the time that is left for it.
func (h *handover) last(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, h.recorder.options.LastWait)
	defer cancel()
	h.pass(ctx)
	lost := h.drop()
	h.take()
	if lost += h.drop(); lost > 0 {
		return fmt.Errorf("hand over the usage at the end: the store did not take all of it: up to %d requests are missing in what it shows", lost)
	}
	return nil
}

// Flush returns what was gathered since the last Flush, and forgets it. The series of
// the fleet are worked out here.
func (r *Recorder) Flush() Batch {
	b := Batch{ID: rand.Text(), Instance: r.options.Instance, Made: r.options.Now()}
	var drained [shardCount]map[string]*gathered
	n := 3 // the fleet's series
	for i := range r.shards {
		drained[i] = r.drain(&r.shards[i])
		n += len(drained[i])
	}
	b.Accounts = make([]Account, 0, n)
	fleet := fleetCells{}
	for _, accounts := range drained {
		for name, g := range accounts {
			b.Accounts = append(b.Accounts, g.account(name))
			fleet.add(g)
		}
	}
	b.Accounts = append(b.Accounts, fleet.accounts()...)
	for i := range b.Accounts {
		b.Accounts[i].sort()
	}
	slices.SortFunc(b.Accounts, func(x, y Account) int { return strings.Compare(x.ID, y.ID) })
	return b
}

// drain empties a shard.
func (r *Recorder) drain(s *recorderShard) map[string]*gathered {
	s.mu.Lock()
	accounts := s.accounts
	s.accounts = make(map[string]*gathered, len(accounts))
	s.mu.Unlock()
	n := 0
	for _, a := range accounts {
		n += 1 + len(a.more)
	}
	r.cells.Add(int64(-n))
	return accounts
}

// account puts into words what was gathered.
func (a *gathered) account(name string) Account {
	account := Account{ID: name, LimitRequests: a.standing.requests, LimitTokens: a.standing.tokens}
	if a.last != 0 {
		account.Last = time.Unix(0, a.last).UTC()
	}
	for c := range a.cells {
		account.at(c.minute, cmp.Or(c.resource, quota.DefaultResource)).Add(c.counts())
	}
	if a.standing.share >= NearShare {
		account.Near = Near{Account: name, Limit: a.standing.near.Name(), Share: a.standing.share}
	}
	first := max(a.refused-mostRefusals, 0)
	for i := first; i < a.refused; i++ {
		f := a.refusals[i%mostRefusals]
		account.Refusals = append(account.Refusals, Refusal{
			At: f.at, Resource: f.resource, Limit: f.limit.Name(), Used: f.used, Max: f.limit.Max,
			Asked: f.asked, Wait: f.wait, TooLarge: f.tooLarge,
		})
	}
	return account
}

// fleetCells are the cells of the fleet's series.
type fleetCells map[fleetCell]*Counts

type fleetCell struct {
	series, label string
	minute        int64
}

func (f fleetCells) add(a *gathered) {
	for c := range a.cells {
		tier, priority := cmp.Or(c.tier, Unknown), Unknown
		if c.priority != 0 {
			priority = c.priority.Number()
		}
		for _, k := range [...]fleetCell{
			{FleetByResource, cmp.Or(c.resource, quota.DefaultResource), c.minute}, {FleetByTier, tier, c.minute}, {FleetByPriority, priority, c.minute},
		} {
			if f[k] == nil {
				f[k] = &Counts{}
			}
			f[k].Add(c.counts())
		}
	}
}

// accounts returns the series, each as an account.
func (f fleetCells) accounts() []Account {
	byID := map[string]*Account{}
	for k, counts := range f {
		if byID[k.series] == nil {
			byID[k.series] = &Account{ID: k.series}
		}
		byID[k.series].Cells = append(byID[k.series].Cells, Cell{Minute: k.minute, Label: k.label, Counts: *counts})
	}
	accounts := make([]Account, 0, len(byID))
	for _, a := range byID {
		accounts = append(accounts, *a)
	}
	return accounts
}
