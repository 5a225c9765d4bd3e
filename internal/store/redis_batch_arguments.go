package store

import (
	"strconv"

	"github.com/tiergate/tiergate/internal/quota"
)

// settlementKind stands where the number of an order's plan would.
const settlementKind = 0

// onlyRaise stands where a settlement's share of refunds would.
const onlyRaise = -1

// void stands there where the order is undone.
const void = -2

// nothingKept stands where it would be said how long the reservations of a plan are kept.
const nothingKept = -1

// noSecret stands where a reservation would have its secret: it is kept for repeats only.
const noSecret = "-"

// ownCost stands where the cost of a plan's charge would: each order has its own.
const ownCost = "?"

// batchArguments are what batch.lua is called with.
func batchArguments(prefix string, together []*operation) (keys []string, args []any) {
	var plans plans
	kinds := make([]byte, len(together))
	for i, o := range together {
		kinds[i] = settlementKind
		if o.order != nil {
			kinds[i] = byte(plans.number(o.order)) //nolint:gosec // not above mostTogether
		}
	}
	names := keyNames{prefix: prefix, ends: make([]int, 0, 2*len(together))}
	args = plans.appendTo(append(make([]any, 0, 2+len(plans.orders)+5*len(together)), kinds))
	for _, o := range together {
		if o.order == nil {
			args = appendSettlement(args, &names, o.settlement)
		} else {
			args = appendOrder(args, &names, o.order)
		}
	}
	return names.keys(), args
}

// keyNames are the names of a batch's keys in one piece.
type keyNames struct {
	prefix string
	text   []byte
	ends   []int // of each
}

// add adds a key of an account: all of it but the prefix and the account.
func (n *keyNames) add(account, kind, name string) {
	n.text = append(append(append(n.text, n.prefix...), ":{"...), account...)
	n.text = append(append(n.text, kind...), name...)
	n.ends = append(n.ends, len(n.text))
}

// keys returns them, one by one.
func (n *keyNames) keys() []string {
	text, from := string(n.text), 0
	all := make([]string, len(n.ends))
	for i, end := range n.ends {
		all[i], from = text[from:end], end
	}
	return all
}

// plans are the plans of a batch's orders: what is the same for most of them. Each is told
// by the first order that has it.
type plans struct{ orders []*quota.Order }

// mostCompared is how many plans an order is compared with.
const mostCompared = 8

// number returns the number of an order's plan, from 1. There are mostTogether at the most.
func (p *plans) number(o *quota.Order) int {
	for i := max(0, len(p.orders)-mostCompared); i < len(p.orders); i++ {
		if samePlan(p.orders[i], o) {
			return i + 1
		}
	}
	p.orders = append(p.orders, o)
	return len(p.orders)
}

func samePlan(a, b *quota.Order) bool {
	return keepMillis(a) == keepMillis(b) && sameCharges(a.Charges, b.Charges)
}

// keepMillis is how long an order's reservation is kept for its settlement, in ms; 0: it is kept
// for repeats only.
func keepMillis(o *quota.Order) int64 {
	switch {
	case !o.Kept():
		return nothingKept
	case o.Undoable:
		return max(o.Keep, quota.RepeatWindow).Milliseconds()
	default:
		return o.Keep.Milliseconds()
	}
}

// sameCharges compares charges where they are: to copy them costs more.
func sameCharges(a, b []quota.Charge) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !samePlanned(&a[i], &b[i]) {
			return false
		}
	}
	return true
}

func samePlanned(a, b *quota.Charge) bool {
	return a.Limit.Window == b.Limit.Window && a.Limit.Max == b.Limit.Max && a.Limit.Metric == b.Limit.Metric &&
		(a.Cost == b.Cost || costsItsOwn(a)) && a.Counter == b.Counter
}

// costsItsOwn reports whether the cost of a charge differs from order to order: that in tokens.
func costsItsOwn(c *quota.Charge) bool { return c.Limit.Metric != quota.Requests }

// appendTo adds how many plans there are, and a text for each.
func (p *plans) appendTo(args []any) []any {
	args = append(args, len(p.orders))
	for _, o := range p.orders {
		text := append(strconv.AppendInt(make([]byte, 0, 16+64*len(o.Charges)), keepMillis(o), 10), ';')
		for i := range o.Charges {
			c := &o.Charges[i]
			text = append(append(text, c.Counter...), ',')
			text = append(strconv.AppendInt(text, int64(c.Limit.Window), 10), ',')
			text = append(strconv.AppendInt(text, c.Limit.Max, 10), ',')
			if costsItsOwn(c) {
				text = append(text, ownCost...)
			} else {
				text = strconv.AppendInt(text, c.Cost, 10)
			}
			text = append(text, ';')
		}
		args = append(args, text)
	}
	return args
}

// appendOrder adds what an order has besides its plan: pointers, for a text or a number in
// an interface is copied to the heap.
func appendOrder(args []any, names *keyNames, o *quota.Order) []any {
	names.add(o.Account, countsKind, "")
	if o.Kept() {
		names.add(o.Account, reservationKind, o.Request)
	}
	if keepMillis(o) > 0 {
		args = append(args, &o.Secret)
	}
	for i := range o.Charges {
		if c := &o.Charges[i]; costsItsOwn(c) {
			args = append(args, &c.Cost)
		}
	}
	return args
}

func appendSettlement(args []any, names *keyNames, s *quota.Settlement) []any {
	share := s.RefundShare
	switch {
	case s.Void:
		share = void
	case share == 0 && s.OnlyRaise:
		share = onlyRaise
	}
	names.add(s.Account, countsKind, "")
	names.add(s.Account, reservationKind, s.Request)
	return append(args, &s.Secret, share, &s.Used.Tokens, &s.Used.InputTokens, &s.Used.OutputTokens)
}
