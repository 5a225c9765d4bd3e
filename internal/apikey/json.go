package apikey

import (
	"cmp"
	"encoding/json"
	"fmt"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// recordJSON is a record as it is stored, exported and shown.
type recordJSON struct {
	ID        string            `json:"id"`
	Name      string            `json:"name,omitempty"`
	Owner     string            `json:"owner,omitempty"`
	Hash      string            `json:"hash,omitempty"`
	Former    *formerJSON       `json:"former,omitempty"`
	Tier      string            `json:"tier"`
	Priority  quota.Priority    `json:"priority,omitempty"`
	Resources []string          `json:"resources,omitempty"`
	Overrides []overrideJSON    `json:"overrides,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	Created   time.Time         `json:"created,omitzero"`
	Expires   time.Time         `json:"expires,omitzero"`
	Revoked   bool              `json:"revoked,omitempty"`
	Demo      bool              `json:"demo,omitempty"`
	Revision  int64             `json:"revision,omitempty"`
}

type formerJSON struct {
	Hash  string    `json:"hash,omitempty"`
	Until time.Time `json:"until"`
}

type overrideJSON struct {
	Metric    string         `json:"metric"`
	Per       string         `json:"per"`
	Max       int64          `json:"max"`
	Algorithm string         `json:"algorithm,omitempty"` // without: it inherits
	Resource  string         `json:"resource,omitempty"`
	Priority  quota.Priority `json:"priority,omitempty"`
	Until     time.Time      `json:"until,omitzero"`
}

// MarshalJSON encodes the record. A zero Hash is left out.
func (r Record) MarshalJSON() ([]byte, error) {
	j := recordJSON{
		ID: r.ID, Name: r.Name, Owner: r.Owner, Hash: r.Hash.orEmpty(), Tier: r.Tier, Priority: r.Priority, Resources: r.Resources,
		Labels: r.Labels, Created: r.Created, Expires: r.Expires, Revoked: r.Revoked, Demo: r.Demo, Revision: r.Revision,
	}
	if r.Former != nil {
		j.Former = &formerJSON{r.Former.Hash.orEmpty(), r.Former.Until}
	}
	for _, o := range r.Overrides {
		j.Overrides = append(j.Overrides, overrideJSON{
			o.Limit.Metric.String(), o.Limit.Window.String(), o.Limit.Max, o.Algorithm(), o.Limit.Resource, o.Limit.Priority, o.Until,
		})
	}
	return json.Marshal(j)
}

// UnmarshalJSON decodes what MarshalJSON encodes. It is an error if a hash, a limit or a
// priority is none; nothing else is checked.
func (r *Record) UnmarshalJSON(text []byte) error {
	var j recordJSON
	if err := json.Unmarshal(text, &j); err != nil {
		return err //nolint:wrapcheck // it says what and where
	}
	*r = Record{
		ID: j.ID, Name: j.Name, Owner: j.Owner, Tier: j.Tier, Priority: j.Priority, Resources: j.Resources,
		Labels: j.Labels, Created: j.Created, Expires: j.Expires, Revoked: j.Revoked, Demo: j.Demo, Revision: j.Revision,
	}
	if err := known(j.Priority); err != nil {
		return fmt.Errorf("priority of key %q: %w", j.ID, err)
	}
	var err error
	if r.Hash, err = ParseHash(j.Hash); err != nil {
		return fmt.Errorf("hash of key %q: %w", j.ID, err)
	}
	if j.Former != nil {
		r.Former = &Former{Until: j.Former.Until}
		if r.Former.Hash, err = ParseHash(j.Former.Hash); err != nil {
			return fmt.Errorf("former hash of key %q: %w", j.ID, err)
		}
	}
	for i, o := range j.Overrides {
		override, err := o.override()
		if err != nil {
			return fmt.Errorf("override %d of key %q: %w", i+1, j.ID, err)
		}
		r.Overrides = append(r.Overrides, override)
	}
	return nil
}

// override reads one.
func (o overrideJSON) override() (quota.Override, error) {
	l := quota.Limit{Max: o.Max, Resource: o.Resource, Priority: o.Priority}
	var errs [5]error
	l.Metric, errs[0] = quota.ParseMetric(o.Metric)
	l.Window, errs[1] = quota.ParseWindow(o.Per)
	override, err := quota.Override{Limit: l, Until: o.Until}.WithAlgorithm(o.Algorithm)
	errs[2], errs[3], errs[4] = err, override.Limit.Validate(), known(o.Priority)
	return override, cmp.Or(errs[:]...)
}

// known reports a priority that there is not; 0 is none of its own.
func known(p quota.Priority) error {
	if p > quota.Critical {
		return fmt.Errorf("unknown priority %d: want 1 to 4", p)
	}
	return nil
}

// orEmpty is the hash's text, or "" of none.
func (h Hash) orEmpty() string {
	if h == (Hash{}) {
		return ""
	}
	return h.String()
}
