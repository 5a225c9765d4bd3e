package config

import (
	"fmt"
	"maps"
	"slices"

	"github.com/tiergate/tiergate/internal/quota"
)

// tiers checks the tiers and prepares them for charging.
func (c *checker) tiers(f file, resources []quota.Resource) map[string]*quota.Plan {
	countBy, err := quota.ParseCountBy(f.CountBy)
	if err != nil {
		c.fault("count_by", "%v", err)
	}
	if len(f.Tiers) == 0 && !c.unread("tiers") {
		c.fault("tiers", "no tier: want at least one")
	}
	if f.OnStoreFailure == "" {
		c.fault("on_store_failure", "empty: want local, deny or allow")
	}
	onFailure := c.onFailure("on_store_failure", f.OnStoreFailure, quota.Local)
	plans := map[string]*quota.Plan{}
	for _, n := range slices.Sorted(maps.Keys(f.Tiers)) {
		at := "tiers." + n
		c.named(at, n)
		tier := quota.Tier{Name: n, Unlimited: f.Tiers[n].Unlimited}
		if tier.Priority, err = quota.ParsePriority(f.Tiers[n].Priority); err != nil {
			c.fault(at+".priority", "%v", err)
		}
		tier.OnFailure = c.onFailure(at+".on_store_failure", f.Tiers[n].OnStoreFailure, onFailure)
		valid := true
		for i, s := range f.Tiers[n].Limits {
			l, ok := limit(c.fault, fmt.Sprintf("%s.limits[%d]", at, i), s, resources)
			tier.Limits, valid = append(tier.Limits, l), valid && ok
		}
		if valid {
			c.tierFaults(at, tier)
		}
		plans[n] = quota.NewPlan(tier, countBy, resources)
	}
	return plans
}

func (c *checker) tierFaults(at string, tier quota.Tier) {
	for _, fault := range tier.Validate() {
		if fault.Index >= 0 {
			c.fault(fmt.Sprintf("%s.limits[%d]", at, fault.Index), "%v", fault.Err)
		} else {
			c.fault(at, "%v", fault.Err)
		}
	}
}

// onFailure reads what becomes of requests while the store is away; empty: as all.
func (c *checker) onFailure(at, s string, all quota.OnFailure) quota.OnFailure {
	if s == "" {
		return all
	}
	f, err := quota.ParseOnFailure(s)
	if err != nil {
		c.fault(at, "%v", err)
	}
	return f
}

// reportFunc takes a fault at a path.
type reportFunc func(path, format string, args ...any)

// limit checks one limit and reports what is wrong; ok says that nothing is.
func limit(report reportFunc, at string, s limitSection, resources []quota.Resource) (l quota.Limit, ok bool) {
	ok = true
	wrong := func(field string, problem any) {
		ok = false
		report(at+"."+field, "%v", problem)
	}
	var err error
	if l.Metric, err = quota.ParseMetric(s.Metric); err != nil {
		wrong("metric", err)
	}
	if l.Window, err = quota.ParseWindow(s.Per); err != nil {
		wrong("per", err)
	}
	if l.Window, err = l.Window.ParseAlgorithm(s.Algorithm); err != nil {
		wrong("algorithm", err)
	}
	if s.Max == nil {
		wrong("max", "missing: want the most that is admitted in a window; 0 refuses everything")
	} else if l.Max = int64(*s.Max); l.Max == quota.NoMax {
		wrong("max", fmt.Sprintf("%d is out of range: want 0 to %d", l.Max, quota.MaxMax))
	} else if err := l.Validate(); err != nil {
		wrong("max", err)
	}
	if l.Resource = s.Resource; l.Resource != "" && !known(resources, l.Resource) {
		wrong("resource", fmt.Sprintf("unknown resource %q: add it to resources", l.Resource))
	}
	if s.Priority != "" {
		if l.Priority, err = quota.ParsePriority(s.Priority); err != nil {
			wrong("priority", err)
		}
	}
	return l, ok
}

func known(resources []quota.Resource, name string) bool {
	return name == quota.DefaultResource ||
		slices.ContainsFunc(resources, func(r quota.Resource) bool { return r.Name == name })
}
