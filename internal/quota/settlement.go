package quota

import (
	"math"
)

// Unknown stands for a number of tokens that nobody has reported.
const Unknown int64 = -1

// Usage is how many tokens an upstream says a request has used; Unknown where it
// does not say.
type Usage struct {
	Input       int64 // of the prompt, those from a cache included
	CachedInput int64 // of these, those from a cache
	Output      int64
	Total       int64
}

// NoUsage is that of an answer that reports none.
func NoUsage() Usage { return Usage{Unknown, Unknown, Unknown, Unknown} }

// complete fills in what follows from the rest.
func (u Usage) complete() Usage {
	if u.Output == Unknown && u.Total != Unknown && u.Input != Unknown {
		u.Output = max(u.Total-u.Input, 0)
	}
	if u.Input == Unknown && u.Total != Unknown && u.Output != Unknown {
		u.Input = max(u.Total-u.Output, 0)
	}
	if u.Input != Unknown && u.Output != Unknown {
		u.Total = max(u.Total, u.Input+u.Output)
	}
	u.CachedInput = min(max(u.CachedInput, 0), max(u.Input, 0))
	return u
}

// Weights say what a token counts.
type Weights struct {
	Model       float64 // every token, by the model that was asked for
	CachedInput float64 // a cached token of the prompt, beside an uncached one; 0 leaves them out
}

// Cost returns what the usage costs, rounded up; Unknown where that does not
// follow from what was reported.
func (u Usage) Cost(w Weights) Cost {
	u = u.complete()
	saved := float64(u.CachedInput) * (1 - w.CachedInput)
	cost := func(tokens int64, less float64) int64 {
		if tokens == Unknown {
			return Unknown
		}
		return weigh(float64(tokens)-less, w.Model)
	}
	return Cost{Requests: 1, Tokens: cost(u.Total, saved), InputTokens: cost(u.Input, saved), OutputTokens: cost(u.Output, 0)}
}

// Weigh returns what tokens cost where one counts weight, rounded up.
func Weigh(tokens int64, weight float64) int64 { return weigh(float64(tokens), weight) }

func weigh(tokens, weight float64) int64 {
	return int64(min(max(math.Ceil(tokens*weight), 0), float64(MaxCost)))
}

// A Settlement says what a request that was charged by an Order really used.
type Settlement struct {
	Account, Request, Secret string // of the Order

	// Stranger: no key is known by whose ID Account could be. Where settlements wait that
	// nobody can verify yet, those of all such accounts share the room of one key.
	Stranger bool
	// Used replaces what was charged. Metrics that are Unknown keep the charge.
	Used Cost
	// OnlyRaise: the answer did not end as it should, so what was reported may be
	// too little; the charge may rise and not fall.
	OnlyRaise bool
	// Void undoes the order as if it had never been, whatever was used: in windows that are
	// open all is given back, and a repeat is none.
	Void bool
	// Pool is that of the request's resource, of which the rest of what it took is given back
	// or taken; nil: it has none.
	Pool *Pool
	// RefundShare is not 0 where the whole charge is given back, whatever was
	// used: as much of it as keeps what refunds give back in a window within this
	// share of the limit's maximum, in thousandths.
	RefundShare int64
	// Then is called once what became of a settlement is known whose outcome was Queued, unless
	// it is lost; nil: nobody asks.
	Then func(Outcome)
}

// An Outcome is what became of a Settlement.
type Outcome uint8

// The outcomes.
const (
	NotFound  Outcome = iota // no such reservation, or it has expired, or the secret is wrong: nothing changed
	Settled                  // the counters are corrected
	Duplicate                // it was settled before: nothing changed
	Queued                   // it waits until the counts can be reached
)

// String returns the outcome as metrics show it.
func (o Outcome) String() string {
	return [...]string{"not_found", "settled", "duplicate", "queued"}[o]
}
