package envoyapi

import (
	"errors"

	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/tiergate/tiergate/internal/quota"
)

// count reads how many hits the call takes. A descriptor's own hits_addend goes
// before that of the call, which is 1 where it is 0; 0 of a descriptor looks and
// takes nothing. Where descriptors differ, the largest holds: they describe one
// request.
func count(q *inquiry, s *RateLimitSettings, r *rlsv3.RateLimitRequest) error {
	byDefault := uint64(max(r.GetHitsAddend(), 1))
	said := r.GetHitsAddend() > 0
	most, negative := uint64(0), 0
	for _, d := range r.GetDescriptors() {
		n := byDefault
		if d.GetHitsAddend() != nil {
			n, said = d.GetHitsAddend().GetValue(), true
		}
		most = max(most, n)
		if d.GetIsNegativeHits() {
			negative++
		}
		if o := d.GetLimit(); o != nil && s.LimitOverride {
			l, err := override(o, s.HitsMetric)
			if err != nil {
				return err
			}
			q.limit(l)
		}
	}
	if len(r.GetDescriptors()) == 0 {
		most = byDefault
	}
	switch {
	case negative == 0:
	case !s.NegativeHits:
		return errors.New("is_negative_hits is not accepted here: set ratelimit.negative_hits")
	case negative != len(r.GetDescriptors()):
		return errors.New("some descriptors have is_negative_hits and some have not: one call is one request")
	}
	q.credit, q.look = negative > 0, most == 0
	q.take(most, said, s.HitsMetric)
	return nil
}

// limit notes a descriptor's limit. Where several have one of the same window, the least holds.
func (q *inquiry) limit(l quota.Limit) {
	for i, other := range q.limits {
		if other.Window == l.Window {
			q.limits[i].Max = min(other.Max, l.Max)
			return
		}
	}
	q.limits = append(q.limits, l)
}

// take notes how many hits are taken or given back, and whether the call says so.
func (q *inquiry) take(hits uint64, said bool, metric quota.Metric) {
	q.hits = int64(min(max(hits, 1), uint64(quota.MaxCost))) //nolint:gosec // not above MaxCost
	if q.credit {
		q.tokens = 0
	}
	if metric == quota.Tokens && said && !q.look {
		q.tokens, q.hits = q.hits, 1
		if q.credit {
			q.hits = 0
		}
	}
}

// override reads a descriptor's limit, which stands in for the tier's.
func override(o *ratelimitv3.RateLimitDescriptor_RateLimitOverride, metric quota.Metric) (quota.Limit, error) {
	windows := map[typev3.RateLimitUnit]quota.Window{
		typev3.RateLimitUnit_SECOND: quota.Second, typev3.RateLimitUnit_MINUTE: quota.Minute, typev3.RateLimitUnit_HOUR: quota.Hour,
		typev3.RateLimitUnit_DAY: quota.Day, typev3.RateLimitUnit_MONTH: quota.Month,
	}
	window, ok := windows[o.GetUnit()]
	if !ok {
		return quota.Limit{}, errors.New("the limit of a descriptor has the unit " + o.GetUnit().String() + ": want SECOND, MINUTE, HOUR, DAY or MONTH")
	}
	return quota.Limit{Metric: metric, Window: window, Max: int64(o.GetRequestsPerUnit())}, nil
}
