package store

import (
	"strings"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// maxPromises is how many reservations a batch takes along; the rest goes with the next.
const maxPromises = 100

// A batch is what one account is given back in one step. It keeps its name until it is
// known to have arrived, so that it counts once.
type batch struct {
	account  string
	id       string
	counts   []given
	promises []*promise
	first    time.Duration // when it was sent first; 0: not yet
	answers  int           // of Redis that were errors
}

// given is what is added to a counter in the window from start, Unix ms. It counts to end.
type given struct {
	name       string
	window     quota.Window
	start, end int64
	amount     int64
}

// givenNow is nothing yet, in the window that holds a moment.
func givenNow(counter string, w quota.Window, now time.Time) given {
	if w.Sliding() {
		around := spanOf(w, now)
		return given{counter, w, around.start, around.keep, 0}
	}
	start, end := w.Bounds(now)
	return given{counter, w, start.UnixMilli(), end.UnixMilli(), 0}
}

// owed returns the accounts that have something to give back.
func (l *ledger) owed() []string {
	var accounts []string
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.Lock()
		for account := range s.owing {
			accounts = append(accounts, account)
		}
		s.mu.Unlock()
	}
	return accounts
}

// batch returns what is to be given back to an account, the batch that is on its way
// first, or nil where there is nothing. id names a new one.
func (l *ledger) batch(account string, at time.Time, id func() string) *batch {
	s := l.shard(account)
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.accounts[account]
	if h == nil || !s.owing[account] {
		return nil
	}
	if h.giving != nil {
		return h.giving
	}
	now := s.clock(at).UnixMilli()
	b := &batch{account: account}
	for i := range h.tallies {
		t := &h.tallies[i]
		if t.own == nil || t.own.mine == 0 {
			continue
		}
		b.counts = append(b.counts, given{strings.TrimSuffix(t.name, beforeSuffix), t.own.window, t.start, t.end, t.own.mine})
		t.own.giving, t.own.mine = t.own.mine, 0
	}
	b.promises = h.open(now)
	h.more = len(b.promises) == maxPromises
	if len(b.counts)+len(b.promises) == 0 {
		l.quit(s, account)
		return nil
	}
	b.id = id()
	h.giving = b
	return b
}

// quit notes that an account has nothing to give back. The caller holds the lock.
func (l *ledger) quit(s *ledgerShard, account string) {
	if s.owing[account] {
		delete(s.owing, account)
		l.owing.Add(-1)
	}
}

// open returns promises that Redis does not know yet, as many as a batch takes, and marks
// them. Those that are settled are for repeats of what they were made for, and of the
// settlement.
func (h *holding) open(now int64) []*promise {
	var open []*promise
	for _, p := range h.promises {
		if p.place != here || p.expires <= now {
			continue
		}
		p.place = onItsWay
		if open = append(open, p); len(open) == maxPromises {
			break
		}
	}
	return open
}

// arrived notes that Redis has a batch, and what is used of its counters after that, at
// Redis' time of so many Unix ms: of each in order, -1 where its window had ended. Without
// used nothing is known of that.
func (l *ledger) arrived(b *batch, at int64, used []int64) {
	s := l.shard(b.account)
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.accounts[b.account]
	if h == nil || h.giving != b {
		return
	}
	h.giving = nil
	if !h.more {
		l.quit(s, b.account)
	}
	for i, g := range b.counts {
		t := h.find(g.name)
		if g.window.Sliding() {
			t = h.of(g.name, g.start)
		}
		if t != nil && t.start == g.start && t.own != nil {
			t.own.giving = 0
		}
		switch {
		case used == nil:
		case used[i] == addedBefore:
			if t != nil {
				t.seen = clamp(t.seen + g.amount)
			}
		case used[i] < 0:
			l.ended.Add(1)
		case at >= h.at || at < h.at-step:
			l.see(h, g, used[i], true)
		}
	}
	for _, p := range b.promises {
		p.leave()
	}
	if len(used) > 0 && (at > h.at || at < h.at-step) {
		h.at = at
	}
}
