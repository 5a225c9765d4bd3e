package store

import (
	"encoding/binary"
	"math"
)

// accounts are the counters of some accounts. There is no pointer in them but to a few
// large pieces of memory, so the garbage collector has nothing to follow, however many
// accounts there are; and a request, whose account is in no cache of the processor, has few
// pieces of memory to wait for. They are not safe for concurrent use.
type accounts struct {
	locations map[uint64]location // by the account's hash
	colliding map[string]location // by account: those whose hash is another's, of which there are hardly ever any
	counters  []counter
	texts     []byte // the accounts, each after its length as a varint

	unused, unusedTexts int // counters and bytes of texts that no account has any more
}

// A location says where the counters of an account are.
type location struct {
	first, n, room uint32 // counters, and how many there is room for
	text           uint32 // where the account is in texts
}

func newAccounts() accounts { return accounts{locations: map[uint64]location{}} }

func (a *accounts) len() int { return len(a.locations) + len(a.colliding) }

// of returns the counters of an account, until the next put or sweep. They can be changed.
// With others, which append may add in their memory, put keeps them.
func (a *accounts) of(hash uint64, account string) []counter {
	if p, _, known := a.find(hash, account); known {
		return a.at(p)
	}
	return nil
}

func (a *accounts) at(p location) []counter { return a.counters[p.first:][:p.n:p.room] }

// find returns where an account is, and whether that stands among those that collide.
func (a *accounts) find(hash uint64, account string) (p location, collides, known bool) {
	p, known = a.locations[hash]
	if known {
		if from, to := a.span(p); string(a.texts[from:to]) == account {
			return p, false, true
		}
	}
	collides = known // it has the hash of another
	if len(a.colliding) > 0 {
		if q, known := a.colliding[account]; known {
			return q, true, true
		}
	}
	return location{}, collides, false
}

// span returns where the account of a location begins and ends in texts.
func (a *accounts) span(p location) (from, to int) {
	size, n := binary.Uvarint(a.texts[p.text:])
	from = int(p.text) + n
	return from, from + int(size) //nolint:gosec // within texts
}

// put keeps the counters of an account.
func (a *accounts) put(hash uint64, account string, counters []counter) {
	p, collides, known := a.find(hash, account)
	if !known {
		p.text = uint32(len(a.texts)) //nolint:gosec // a shard has thousands of accounts, each of tens of bytes
		a.texts = append(binary.AppendUvarint(a.texts, uint64(len(account))), account...)
	}
	p.n = uint32(len(counters)) //nolint:gosec // as many as an account has limits
	if p.n > p.room {
		a.unused += int(p.room)
		p.first, p.room = uint32(len(a.counters)), uint32(cap(counters)) //nolint:gosec // as above
		a.counters = append(a.counters, counters[:cap(counters)]...)
	} else {
		copy(a.counters[p.first:], counters)
	}
	a.set(hash, account, p, collides)
}

func (a *accounts) set(hash uint64, account string, p location, collides bool) {
	switch {
	case !collides:
		a.locations[hash] = p
	case a.colliding == nil:
		a.colliding = map[string]location{account: p}
	default:
		a.colliding[account] = p
	}
}

// all yields every account, in no order.
func (a *accounts) all(yield func(account string, counters []counter) bool) {
	texts := string(a.texts) // one piece of memory for all of them
	for _, p := range a.locations {
		from, to := a.span(p)
		if !yield(texts[from:to], a.at(p)) {
			return
		}
	}
	for account, p := range a.colliding {
		if !yield(account, a.at(p)) {
			return
		}
	}
}

// sweep removes the accounts all of whose counters have ended, in Unix ms. It returns when the
// first ends of the counters that have not: those beside them that have are void, and wait for
// their next window.
func (a *accounts) sweep(now int64) (soonest int64) {
	soonest = math.MaxInt64
	sweepLocations(a, a.locations, now, &soonest)
	sweepLocations(a, a.colliding, now, &soonest)
	if a.unused > len(a.counters)/4 {
		a.pack()
	}
	return soonest
}

func sweepLocations[K comparable](a *accounts, locations map[K]location, now int64, soonest *int64) {
	for key, p := range locations {
		if !a.open(p, now, soonest) {
			delete(locations, key)
			a.leave(p)
		}
	}
}

// leave notes that a location is no account's any more.
func (a *accounts) leave(p location) {
	_, to := a.span(p)
	a.unused += int(p.room)
	a.unusedTexts += to - int(p.text)
}

// open reports whether a counter of an account has not ended. It notes when the first of these ends.
func (a *accounts) open(p location, now int64, soonest *int64) bool {
	open := false
	for _, c := range a.at(p) {
		if c.end > now {
			open = true
			*soonest = min(*soonest, c.end)
		}
	}
	return open
}

// pack moves everything to memory in which nothing is unused.
func (a *accounts) pack() {
	b := accounts{
		locations: make(map[uint64]location, len(a.locations)), colliding: a.colliding,
		counters: make([]counter, 0, len(a.counters)-a.unused), texts: make([]byte, 0, len(a.texts)-a.unusedTexts),
	}
	move := func(p location) location {
		_, to := a.span(p)
		q := location{uint32(len(b.counters)), p.n, p.room, uint32(len(b.texts))} //nolint:gosec // less than it was
		b.counters = append(b.counters, a.counters[p.first:][:p.room]...)
		b.texts = append(b.texts, a.texts[p.text:to]...)
		return q
	}
	for hash, p := range a.locations {
		b.locations[hash] = move(p)
	}
	for account, p := range a.colliding {
		b.colliding[account] = move(p)
	}
	*a = b
}
