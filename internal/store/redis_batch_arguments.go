package store

import (
	"slices"

	"github.com/tiergate/tiergate/internal/quota"
)

// settlementWord stands where the plan of an order would.
const settlementWord = "s"

// onlyRaise stands where a settlement's share of refunds would.
const onlyRaise = -1

// batchArguments are what batch.lua is called with.
func batchArguments(prefix string, together []*operation) (keys []string, args []any) {
	var plans plans
	numbers := make([]int, len(together))
	for i, o := range together {
		if o.order != nil {
			numbers[i] = plans.number(o.order.Charges)
		}
	}
	keys = make([]string, 0, 2*len(together))
	args = plans.appendTo(make([]any, 0, 1+16*len(plans.plans)+7*len(together)))
	for i, o := range together {
		if o.order == nil {
			keys, args = appendSettlement(keys, args, prefix, o.settlement)
		} else {
			keys, args = appendOrder(keys, args, prefix, o.order, numbers[i])
		}
	}
	return keys, args
}

// plans are the charges of a batch's orders but for the costs: most orders have those of
// another.
type plans struct {
	plans [][]quota.Charge
}

// mostCompared is how many plans an order is compared with.
const mostCompared = 8

// number returns the number of a plan, from 1.
func (p *plans) number(charges []quota.Charge) int {
	for i := max(0, len(p.plans)-mostCompared); i < len(p.plans); i++ {
		if slices.EqualFunc(p.plans[i], charges, samePlan) {
			return i + 1
		}
	}
	p.plans = append(p.plans, charges)
	return len(p.plans)
}

func samePlan(a, b quota.Charge) bool {
	return a.Limit.Window == b.Limit.Window && a.Limit.Max == b.Limit.Max && a.Counter == b.Counter
}

func (p *plans) appendTo(args []any) []any {
	args = append(args, len(p.plans))
	for _, charges := range p.plans {
		args = append(args, len(charges))
		for _, c := range charges {
			args = append(args, c.Counter, int64(c.Limit.Window), c.Limit.Max)
		}
	}
	return args
}

func appendOrder(keys []string, args []any, prefix string, o *quota.Order, plan int) ([]string, []any) {
	keys = append(keys, countsKey(prefix, o.Account))
	args = append(args, plan)
	if o.Kept() {
		keys = append(keys, reservationKey(prefix, o.Account, o.Request))
		args = append(args, o.Secret, o.Keep.Milliseconds())
	} else {
		args = append(args, "")
	}
	for _, c := range o.Charges {
		args = append(args, c.Cost)
	}
	return keys, args
}

func appendSettlement(keys []string, args []any, prefix string, s *quota.Settlement) ([]string, []any) {
	share := s.RefundShare
	if share == 0 && s.OnlyRaise {
		share = onlyRaise
	}
	return append(keys, countsKey(prefix, s.Account), reservationKey(prefix, s.Account, s.Request)),
		append(args, settlementWord, s.Secret, share, s.Used.Tokens, s.Used.InputTokens, s.Used.OutputTokens)
}
