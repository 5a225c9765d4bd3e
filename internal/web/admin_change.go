package web

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/quota"
)

const (
	usualGrace   = 24 * time.Hour
	longestGrace = 366 * 24 * time.Hour
)

// rotate gives a key another secret. The former one works for the grace.
func (a *Admin) rotate(c *call) (any, error) {
	key := apikey.New()
	first := int64(-1)
	view, err := a.modify(c, "rotate", func(r *apikey.Record) (string, error) {
		if first >= 0 && r.Revision != first { // another rotation's secret must not end at once
			return "", apikey.ErrConflict
		}
		first = r.Revision
		o, err := newObject(c.body)
		if err != nil {
			return "", err
		}
		grace := takeGrace(o)
		hash := c.accounts.takePepper(o, r.Hash.Pepper())
		o.end()
		if err := o.err(); err != nil {
			return "", err
		}
		if f := r.Former; f != nil && c.now.Before(f.Until) && grace > 0 {
			return "", problem(kindGrace, fmt.Sprintf(
				"the former secret of %s still works, until %s: wait, or end both with a grace of 0s", r.ID, f.Until.Format(time.RFC3339)))
		}
		former := &apikey.Former{Hash: r.Hash, Until: c.now.Add(grace).Truncate(time.Second)}
		r.Hash, r.Former = hash(key), nil
		if grace == 0 {
			return "the former secret ends at once", nil
		}
		r.Former = former
		return "the former secret works until " + former.Until.Format(time.RFC3339), nil
	})
	if err != nil {
		return nil, err
	}
	return NewKey{key.Reveal(), view}, nil
}

func takeGrace(o *object) time.Duration {
	const want = "a duration such as 24h, from 0s to 8784h, in whole seconds"
	var text string
	if !take(o, "grace", want, &text) || text == "" {
		return usualGrace
	}
	grace, err := time.ParseDuration(text)
	if err != nil || grace < 0 || grace > longestGrace || grace%time.Second != 0 {
		o.fault("grace", "want %s", want)
	}
	return grace
}

// setOverride gives a key a limit of its own, in place of the one that counts the same.
func (a *Admin) setOverride(c *call) (any, error) {
	o, err := newObject(c.body)
	if err != nil {
		return nil, err
	}
	override := c.accounts.override(o)
	toCome(o, "until", override.Until, c.now, "to end an override now, remove it")
	o.end()
	if err := o.err(); err != nil {
		return nil, err
	}
	return a.modify(c, "change", func(r *apikey.Record) (string, error) {
		r.Overrides = slices.Clone(r.Overrides) // others have the old ones in their hands
		i := slices.IndexFunc(r.Overrides, func(old quota.Override) bool { return alike(old.Limit, override.Limit) })
		switch {
		case i >= 0 && r.Overrides[i] == override:
			return "", nil
		case i >= 0:
			r.Overrides[i] = override
		case len(r.Overrides) >= maxOverrides:
			return "", invalid([]Fault{{"", fmt.Sprintf("the key has %d overrides: remove one first", maxOverrides)}})
		default:
			r.Overrides = append(r.Overrides, override)
		}
		detail := fmt.Sprintf("override %s: %d", override.Limit.Name(), override.Limit.Max)
		if algorithm := override.Algorithm(); algorithm != "" {
			detail += ", " + algorithm
		}
		if !override.Until.IsZero() {
			detail += ", until " + timeText(override.Until)
		}
		return detail, nil
	})
}

// removeOverride takes a limit of its own from a key. Where there is none it is done
// already.
func (a *Admin) removeOverride(c *call) (any, error) {
	l, err := c.overrideAsked()
	if err != nil {
		return nil, err
	}
	return a.modify(c, "change", func(r *apikey.Record) (string, error) {
		n := len(r.Overrides)
		r.Overrides = slices.DeleteFunc(slices.Clone(r.Overrides), func(old quota.Override) bool { return alike(old.Limit, l) })
		if len(r.Overrides) == n {
			return "", nil
		}
		return "override " + l.Name() + ": removed", nil
	})
}

// overrideAsked is the limit that the parameters name. What is not configured any more
// can be named too: it is to go.
func (c *call) overrideAsked() (quota.Limit, error) {
	q := c.query()
	var err error
	l := quota.Limit{Resource: q.text("resource")}
	if l.Metric, err = quota.ParseMetric(q.text("metric")); err != nil {
		q.fault("metric", "want requests, tokens, input_tokens or output_tokens")
	}
	if l.Window, err = quota.ParseWindow(q.text("per")); err != nil {
		q.fault("per", "want second, minute, hour, day, week, month or a duration such as 90s")
	}
	if text := q.text("priority"); text != "" {
		if l.Priority, err = quota.ParsePriority(text); err != nil {
			q.fault("priority", "want 1 (low) to 4 (critical)")
		}
	}
	return l, q.end()
}

// untilToCome checks that no override is over before it begins.
func untilToCome(o *object, r apikey.Record, now time.Time) {
	for i, override := range r.Overrides {
		toCome(o, fmt.Sprintf("overrides[%d].until", i), override.Until, now, "an override that is over changes nothing")
	}
}

// difference says for people what a change makes of a record; "" for nothing.
func difference(before, now *apikey.Record) string {
	const none = "none"
	var parts []string
	add := func(field, from, to string) {
		if from != to {
			parts = append(parts, field+": "+from+" → "+to)
		}
	}
	add("tier", before.Tier, now.Tier)
	add("name", cmp.Or(before.Name, none), cmp.Or(now.Name, none))
	add("owner", cmp.Or(before.Owner, none), cmp.Or(now.Owner, none))
	add("priority", priorityText(before.Priority), priorityText(now.Priority))
	add("resources", orAll(before.Resources), orAll(now.Resources))
	add("expires", timeText(before.Expires), timeText(now.Expires))
	if !maps.Equal(before.Labels, now.Labels) {
		parts = append(parts, "labels changed")
	}
	return strings.Join(parts, "; ")
}

func priorityText(p quota.Priority) string {
	if p == 0 {
		return "the tier's"
	}
	return p.String()
}

func orAll(resources []string) string {
	if len(resources) == 0 {
		return "all"
	}
	return strings.Join(resources, ",")
}

func timeText(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.UTC().Format(time.RFC3339)
}
