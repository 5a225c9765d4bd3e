package config

import (
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/quota"
)

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
