package store

import (
	"slices"

	"github.com/tiergate/tiergate/internal/quota"
)

// settlementKind stands where the number of an order's plan would.
const settlementKind = 0

// onlyRaise stands where a settlement's share of refunds would.
const onlyRaise = -1

// nothingKept stands where it would be said how long the reservations of a plan are kept.
const nothingKept = -1

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
	keys = make([]string, 0, 2*len(together))
	args = plans.appendTo(append(make([]any, 0, 2+16*len(plans.orders)+5*len(together)), kinds))
	for _, o := range together {
		if o.order == nil {
			keys, args = appendSettlement(keys, args, prefix, o.settlement)
		} else {
			keys, args = appendOrder(keys, args, prefix, o.order)
		}
	}
	return keys, args
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
	return a.Kept() == b.Kept() && a.Keep == b.Keep && slices.EqualFunc(a.Charges, b.Charges, samePlanned)
}

func samePlanned(a, b quota.Charge) bool {
	return a.Limit.Window == b.Limit.Window && a.Limit.Max == b.Limit.Max && a.Limit.Metric == b.Limit.Metric &&
		(a.Cost == b.Cost || costsItsOwn(a)) && a.Counter == b.Counter
}

// costsItsOwn reports whether the cost of a charge differs from order to order: that in tokens.
func costsItsOwn(c quota.Charge) bool { return c.Limit.Metric != quota.Requests }

func (p *plans) appendTo(args []any) []any {
	args = append(args, len(p.orders))
	for _, o := range p.orders {
		var keep int64 = nothingKept
		if o.Kept() {
			keep = o.Keep.Milliseconds()
		}
		args = append(args, keep, len(o.Charges))
		for _, c := range o.Charges {
			args = append(args, c.Counter, int64(c.Limit.Window), c.Limit.Max)
			if costsItsOwn(c) {
				args = append(args, ownCost)
			} else {
				args = append(args, c.Cost)
			}
		}
	}
	return args
}

func appendOrder(keys []string, args []any, prefix string, o *quota.Order) ([]string, []any) {
	keys = append(keys, countsKey(prefix, o.Account))
	if o.Kept() {
		keys = append(keys, reservationKey(prefix, o.Account, o.Request))
		args = append(args, o.Secret)
	}
	for _, c := range o.Charges {
		if costsItsOwn(c) {
			args = append(args, c.Cost)
		}
	}
	return keys, args
}

func appendSettlement(keys []string, args []any, prefix string, s *quota.Settlement) ([]string, []any) {
	share := s.RefundShare
	if share == 0 && s.OnlyRaise {
		share = onlyRaise
	}
	return append(keys, countsKey(prefix, s.Account), reservationKey(prefix, s.Account, s.Request)),
		append(args, s.Secret, share, s.Used.Tokens, s.Used.InputTokens, s.Used.OutputTokens)
}
