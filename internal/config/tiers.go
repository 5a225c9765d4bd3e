package config

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/tiergate/tiergate/internal/apikey"
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

// keys reads and checks the file of hashed keys.
func (c *checker) keys(file string) *apikey.Directory {
	if file == "" {
		c.fault("keys.file", "empty: want the file of hashed keys")
		return nil
	}
	file = c.loader.beside(file)
	content, err := c.loader.readFile(file)
	if err != nil {
		c.fault("keys.file", "%v", err)
		return nil
	}
	c.loader.config.KeysSum = sha256.Sum256(content)
	var written keysFile
	k := &keyChecker{document: decode(file, content, &written), above: c.document, reload: &c.loader.config.Reload}
	if k.readable {
		k.check(written.Keys)
	}
	c.below = append(c.below, k.sorted()...)
	return k.directory
}

// A keyChecker checks the file of hashed keys.
type keyChecker struct {
	*document

	above     *document // the configuration
	reload    *Reload
	directory *apikey.Directory
}

func (k *keyChecker) fault(path, format string, args ...any) {
	k.add(k.line(path), path, fmt.Sprintf(format, args...))
}

func (k *keyChecker) check(sections []keySection) {
	records := make([]apikey.Record, len(sections))
	for i, s := range sections {
		records[i] = k.record(fmt.Sprintf("keys[%d]", i), s)
	}
	if len(k.faults) > 0 {
		return
	}
	directory, faults := apikey.NewDirectory(records, k.reload.Peppers)
	for _, f := range faults {
		k.fault(fmt.Sprintf("keys[%d].%s", f.Index, f.Field), "%v", f.Err)
	}
	k.directory = directory
}

func (k *keyChecker) record(at string, s keySection) apikey.Record {
	r := apikey.Record{ID: s.ID, Name: s.Name, Revoked: s.Revoked, Demo: s.Demo, Resources: s.Resources}
	var err error
	if err = apikey.CheckID(s.ID); err != nil {
		k.fault(at+".id", "%v", err)
	}
	if err = apikey.CheckPublic(s.Name); err != nil {
		k.fault(at+".name", "%v", err)
	}
	if r.Hash, err = apikey.ParseHash(s.Hash); err != nil {
		k.fault(at+".hash", "%v", err)
	}
	if plan, ok := k.reload.Plans[s.Tier]; ok {
		r.Tier = plan.Tier.Name // one text for all keys of a tier
	} else if !k.faultyTier(s.Tier) {
		k.fault(at+".tier", "unknown tier %q: want one of the configuration's tiers", s.Tier)
	}
	if s.Priority != "" {
		if r.Priority, err = quota.ParsePriority(s.Priority); err != nil {
			k.fault(at+".priority", "%v", err)
		}
	}
	for i, resource := range s.Resources {
		if !known(k.reload.Resources, resource) {
			k.fault(fmt.Sprintf("%s.resources[%d]", at, i), "unknown resource %q: add it to the configuration's resources", resource)
		}
	}
	r.Expires = k.moment(at+".expires", s.Expires)
	for i, o := range s.Overrides {
		at := fmt.Sprintf("%s.overrides[%d]", at, i)
		l, _ := limit(k.fault, at, o.limitSection, k.reload.Resources)
		override, _ := quota.Override{Limit: l, Until: k.moment(at+".until", o.Until)}.WithAlgorithm(o.Algorithm) // limit has told of its fault
		r.Overrides = append(r.Overrides, override)
	}
	return r
}

// faultyTier reports whether a tier is missing only because of a fault that the
// configuration has: there are no tiers, or it stands there and could not be read.
func (k *keyChecker) faultyTier(name string) bool {
	if len(k.reload.Plans) == 0 {
		return true
	}
	tiers, _ := child(k.above.root().Content[0], "tiers")
	if tiers == nil {
		return false
	}
	tier, _ := child(tiers, name)
	return tier != nil
}

// moment reads a point in time; empty is the zero time.
func (k *keyChecker) moment(at, s string) time.Time {
	if s == "" {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		k.fault(at, "%q is no point in time: want 2027-01-31T00:00:00Z", s)
	}
	return t
}
