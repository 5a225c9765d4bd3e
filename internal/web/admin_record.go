package web

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/quota"
)

const (
	maxText      = 256 // bytes, of names, owners, reasons and the values of labels
	maxLabels    = 32
	maxLabelName = 64 // bytes
	maxOverrides = 64 // of one key

	pointInTime = "a point in time such as 2027-01-31T00:00:00Z"
	aText       = "a text"
)

// describe reads what may be changed of a key. What is not there stays as it is, and
// null takes it away; a key without a tier must be given one.
func (a *AdminAccounts) describe(o *object, r *apikey.Record) {
	a.tier(o, r)
	if take(o, "name", aText, &r.Name) {
		plain(o, "name", r.Name)
	}
	if take(o, "owner", aText, &r.Owner) {
		plain(o, "owner", r.Owner)
	}
	takePriority(o, &r.Priority)
	if take(o, "resources", "a list of names", &r.Resources) && r.Resources != nil {
		a.resources(o, r.Resources)
	}
	labels(o, r)
	moment(o, "expires", &r.Expires)
}

// moment takes out a point in time, in UTC; null is the zero time.
func moment(o *object, field string, into *time.Time) bool {
	var t *time.Time
	ok := take(o, field, pointInTime, &t)
	switch {
	case !ok:
	case t == nil:
		*into = time.Time{}
	case t.UTC().Year() < 1970 || t.UTC().Year() > 9999:
		o.fault(field, "is out of range: want a year from 1970 to 9999")
		return false
	default:
		*into = t.UTC()
	}
	return ok
}

// toCome checks that a time is not over.
func toCome(o *object, field string, t, now time.Time, instead string) {
	if !t.IsZero() && !t.After(now) {
		o.fault(field, "has passed: want a time to come; %s", instead)
	}
}

func (a *AdminAccounts) tier(o *object, r *apikey.Record) {
	_, given := o.fields["tier"]
	if given && !take(o, "tier", aText, &r.Tier) {
		return
	}
	if r.Tier == "" {
		o.fault("tier", "missing: want one of %s", a.tierNames())
	} else if _, ok := a.Plans[r.Tier]; given && !ok {
		o.fault("tier", "unknown tier %q: want one of %s", short(r.Tier), a.tierNames())
	}
}

func (a *AdminAccounts) tierNames() string {
	return strings.Join(slices.Sorted(maps.Keys(a.Plans)), ", ")
}

// plain checks a text for people: a line of at most maxText bytes.
func plain(o *object, field, text string) {
	if len(text) > maxText {
		o.fault(field, "has %d bytes: want at most %d", len(text), maxText)
	}
	if controls(text) {
		o.fault(field, "has control characters: want a line of text")
	}
	if err := apikey.CheckPublic(text); err != nil {
		o.fault(field, "%v", err)
	}
}

// controls reports whether a text has what changes how others are shown.
func controls(text string) bool {
	return strings.ContainsFunc(text, func(r rune) bool { return unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) })
}

// takePriority takes out a priority; null is 0.
func takePriority(o *object, into *quota.Priority) {
	const want = "1 (low), 2 (normal), 3 (high) or 4 (critical)"
	var n *int64
	if !take(o, "priority", want, &n) {
		return
	}
	*into = 0
	if n == nil {
		return
	}
	if *n < int64(quota.Low) || *n > int64(quota.Critical) {
		o.fault("priority", "want %s", want)
		return
	}
	*into = quota.Priority(*n)
}

// resources checks what a key has leave for. An empty list could be taken for leave for
// nothing, and would be leave for everything.
func (a *AdminAccounts) resources(o *object, names []string) {
	if most := len(a.resourceNames()); len(names) > most {
		o.fault("resources", "%d of them: there are %d", len(names), most)
		return
	}
	if len(names) == 0 {
		o.fault("resources", "an empty list: name at least one, or say null for every resource")
	}
	for i, name := range names {
		field := fmt.Sprintf("resources[%d]", i)
		switch {
		case !a.offers(name):
			o.fault(field, "unknown resource %q: want one of %s", short(name), strings.Join(a.resourceNames(), ", "))
		case slices.Contains(names[:i], name):
			o.fault(field, "%s is named twice", name)
		}
	}
}

func (a *AdminAccounts) offers(resource string) bool {
	return slices.Contains(a.resourceNames(), resource)
}

func (a *AdminAccounts) resourceNames() []string {
	names := []string{quota.DefaultResource}
	for _, r := range a.Resources {
		names = append(names, r.Name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// labels lays those given over those there are; null takes one away, or all.
func labels(o *object, r *apikey.Record) {
	var given map[string]*string
	if !take(o, "labels", "texts by name", &given) {
		return
	}
	if given == nil {
		r.Labels = nil
		return
	}
	r.Labels = maps.Clone(r.Labels) // others have the old ones in their hands
	if r.Labels == nil {
		r.Labels = map[string]string{}
	}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if given[name] == nil {
			delete(r.Labels, name)
			continue
		}
		if err := apikey.CheckPublic(name); err != nil {
			o.fault("labels", "a name %v", err)
			continue
		}
		if name == "" || len(name) > maxLabelName || controls(name) {
			o.fault("labels", "the name %q: want 1 to %d bytes without control characters", short(name), maxLabelName)
			continue
		}
		plain(o, "labels."+name, *given[name])
		r.Labels[name] = *given[name]
	}
	if len(r.Labels) > maxLabels {
		o.fault("labels", "%d of them: want at most %d", len(r.Labels), maxLabels)
	}
	if len(r.Labels) == 0 {
		r.Labels = nil
	}
}

// overrides takes out a list of overrides.
func (a *AdminAccounts) overrides(o *object) []quota.Override {
	var list []quota.Override
	for _, one := range o.objects("overrides", maxOverrides) {
		override := a.override(one)
		one.end()
		if slices.ContainsFunc(list, func(other quota.Override) bool { return alike(other.Limit, override.Limit) }) {
			one.fault("metric", "a second override of %s: remove one of them", override.Limit.Name())
		}
		list = append(list, override)
	}
	return list
}

// override reads one.
func (a *AdminAccounts) override(o *object) quota.Override {
	override := quota.Override{Limit: a.limited(o)}
	var most *int64
	if given := take(o, "max", "a whole number", &most); given && most != nil {
		override.Limit.Max = *most
		if err := override.Limit.Validate(); err != nil || *most == quota.NoMax {
			o.fault("max", "is out of range: want 0 to %d", quota.MaxMax)
		}
	} else if !o.faulty("max") {
		o.fault("max", "missing: want the most that is admitted in a window; 0 refuses everything")
	}
	var algorithm string
	take(o, "algorithm", aText, &algorithm)
	override, err := override.WithAlgorithm(short(algorithm))
	if err != nil {
		o.fault("algorithm", "%v", err)
	}
	moment(o, "until", &override.Until)
	return override
}

// limited reads which limit it is.
func (a *AdminAccounts) limited(o *object) quota.Limit {
	var l quota.Limit
	var metric, per string
	var err error
	take(o, "metric", aText, &metric)
	if l.Metric, err = quota.ParseMetric(short(metric)); err != nil && !o.faulty("metric") {
		o.fault("metric", "%v", err)
	}
	take(o, "per", aText, &per)
	if l.Window, err = quota.ParseWindow(short(per)); err != nil && !o.faulty("per") {
		o.fault("per", "%v", err)
	}
	if take(o, "resource", aText, &l.Resource) && l.Resource != "" && !a.offers(l.Resource) {
		o.fault("resource", "unknown resource %q: want one of %s", short(l.Resource), strings.Join(a.resourceNames(), ", "))
	}
	takePriority(o, &l.Priority)
	return l
}

// alike reports whether two limits count the same, in whatever way.
func alike(a, b quota.Limit) bool {
	a.Max, a.Window, b.Window = b.Max, a.Window.Fixed(), b.Window.Fixed()
	return a == b
}

// faulty reports whether a field has a fault already.
func (o *object) faulty(field string) bool {
	return slices.ContainsFunc(*o.faults, func(f Fault) bool { return f.Field == o.at+field })
}
