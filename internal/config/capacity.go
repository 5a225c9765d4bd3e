package config

import (
	"fmt"
	"maps"
	"slices"

	"github.com/tiergate/tiergate/internal/quota"
)

// pools checks what the backend can take of each resource.
func (c *checker) pools(sections map[string]poolSection, resources []quota.Resource) map[string]*quota.Pool {
	pools := map[string]*quota.Pool{}
	for _, n := range slices.Sorted(maps.Keys(sections)) {
		at, s := "capacity."+n, sections[n]
		if !known(resources, n) {
			c.fault(at, "unknown resource %q: add it to resources", n)
		}
		if len(s.Limits) == 0 {
			c.fault(at+".limits", "empty: want the most that the backend takes in a window")
		}
		shares := c.shares(at+".shares", s.Shares)
		var limits []quota.Limit
		for i, w := range s.Limits {
			at := fmt.Sprintf("%s.limits[%d]", at, i)
			l, ok := limit(c.fault, at, limitSection{Metric: w.Metric, Per: w.Per, Max: w.Max}, nil)
			for _, other := range limits {
				if ok && l.Metric == other.Metric && l.Window == other.Window {
					c.fault(at, "a second limit %s: remove one of them", l.Name())
				}
			}
			if ok {
				c.leavesRoom(at+".max", l.Max, shares)
				limits = append(limits, l)
			}
		}
		pools[n] = quota.NewPool(n, limits, shares)
	}
	return pools
}

// leavesRoom checks that a priority which has a share of a maximum may use some of it. The
// lowest that has one tells: the others have as much or more.
func (c *checker) leavesRoom(at string, most int64, shares quota.Shares) {
	for _, p := range quota.Priorities() {
		if shares[p] == 0 {
			continue
		}
		if most > 0 && quota.Share(most, shares[p]) == 0 {
			c.fault(at, "the share of %s, %v of %d, is nothing: raise it, over a longer window, or say in shares that %s has 0", p, part(shares[p]), most, p)
		}
		return
	}
}

// shares checks how much of a pool each priority may use.
func (c *checker) shares(at string, s sharesSection) quota.Shares {
	shares := quota.UsualShares()
	written := map[quota.Priority]*float64{quota.Low: s.Low, quota.Normal: s.Normal, quota.High: s.High, quota.Critical: s.Critical}
	for _, p := range quota.Priorities() {
		if share := written[p]; share != nil {
			shares[p] = c.thousandths(at+"."+p.String(), *share)
		}
		if lower := p - 1; lower >= quota.Low && shares[lower] <= quota.Whole && shares[p] < shares[lower] {
			c.fault(at, "%v for %s is less than %v for %s: the lower priority is to be shed first, so raise the first or lower the second",
				part(shares[p]), p, part(shares[lower]), lower)
		}
	}
	return shares
}

// part is a share as it is written.
func part(thousandths int64) float64 { return float64(thousandths) / quota.Whole }
