// Package envoyapi answers Envoy: external authorization (authz.go) and the
// rate limit service (ratelimit.go). Both ask one Gate for a verdict and say it
// in their protocol. It is the only package that knows Envoy's protobufs.
//
// It does not know where counts are kept or how TierGate is configured.
package envoyapi

import (
	"context"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/quota"
)

// Settings is what a Gate judges by. It is swapped whole and never changed.
type Settings struct {
	KeyHeaders         []string // request headers that carry a key, lower case, in order
	ForwardCredentials bool     // whether the upstream sees those headers
	Resources          *Classifier
	Plans              map[string]*quota.Plan // by tier name
	Directory          *apikey.Directory
	AllowDemoKeys      bool
	OmitUnlimited      bool   // leave Limit and Remaining out where there is no limit
	UnlimitedText      string // else what they say: a word, or a number
	Domain             string // of the rate limit service
	Entries            Entries

	ready map[facet]ready
}

// Entries are the names of the descriptor entries that the rate limit service
// reads. KeyID and Tier are empty unless what Envoy says there is to be trusted
// as it is, without a key.
type Entries struct {
	APIKey, Resource, Path, Priority, KeyID, Tier string
}

// An Outcome is a kind of verdict. Its text is a metric label.
type Outcome string

// The outcomes.
const (
	Allowed         Outcome = "allowed"
	Limited         Outcome = "limited"         // 429
	Unauthenticated Outcome = "unauthenticated" // 401
	Forbidden       Outcome = "forbidden"       // 403
	Failed          Outcome = "failed"          // 503
)

// A Verdict is what becomes of a request, before it is put into a protocol.
type Verdict struct {
	Outcome  Outcome
	Key      *apikey.Record // nil: none
	Tier     string         // empty: none is known
	Resource string
	Priority quota.Priority
	Decision quota.Decision // zero where nothing was counted
	Err      error          // why counting failed; for operators only

	problem problem   // what a refused client is told
	now     time.Time // Reset where nothing was counted
}

// An Observer is told every verdict and how long it took. Verdicts are passed
// as values, which the allocator never hears of.
type Observer interface {
	Judged(ctx context.Context, v Verdict, took time.Duration)
}

// A Gate judges requests. It is safe for concurrent use.
type Gate struct {
	settings atomic.Pointer[Settings]
	limiter  *quota.Limiter
	now      func() time.Time
	observer Observer
}

// NewGate returns a Gate that counts with the limiter.
func NewGate(s *Settings, limiter *quota.Limiter, now func() time.Time, observer Observer) *Gate {
	g := &Gate{limiter: limiter, now: now, observer: observer}
	g.Use(s)
	return g
}

// Use makes the Gate judge by other settings, from the next request on. They
// belong to the Gate from then on.
func (g *Gate) Use(s *Settings) {
	s.ready = prepare(s)
	g.settings.Store(s)
}

// An inquiry is what a protocol knows of a request.
type inquiry struct {
	credentials []string // texts that may be keys
	resource    string   // named by the mesh's configuration; may be empty
	path        string   // with query, as sent
	priority    string   // asked for by the client; may be anything
	keyID, tier string   // from a source that the configuration trusts; may be empty
}

// judge finds the key, its tier, the resource and the priority, and charges.
func (g *Gate) judge(ctx context.Context, s *Settings, q inquiry) Verdict {
	began := g.now()
	v := Verdict{Resource: s.Resources.Classify(q.resource, q.path), Priority: quota.Low, now: began}
	if g.identify(s, q, &v) {
		g.decide(ctx, s, q.priority, &v)
	}
	g.observer.Judged(ctx, v, g.now().Sub(began))
	return v
}

// identify finds the record of the request's key, or refuses.
func (g *Gate) identify(s *Settings, q inquiry, v *Verdict) bool {
	record, problem := find(s, q)
	if problem != nil {
		v.refuse(Unauthenticated, *problem)
		return false
	}
	if record == nil || (record.Demo && !s.AllowDemoKeys) {
		v.refuse(Unauthenticated, invalidKey)
		return false
	}
	if err := record.Usable(v.now); err != nil {
		v.Key = record
		v.refuse(Unauthenticated, unusable(err))
		return false
	}
	v.Key, v.Tier = record, record.Tier
	return true
}

// find returns the record that a trusted source names, else that of the one key
// among the credentials; nil: there is none.
func find(s *Settings, q inquiry) (*apikey.Record, *problem) {
	if q.keyID != "" {
		return trusted(s, q.keyID, q.tier), nil
	}
	key, problem := oneKey(q.credentials)
	if problem != nil {
		return nil, problem
	}
	return s.Directory.Lookup(key), nil
}

// trusted returns the record of a key ID. A tier named beside it replaces that of
// the record, and makes one for an ID that is not on record. A tier that is not
// configured is as good as none.
func trusted(s *Settings, id, tier string) *apikey.Record {
	record := s.Directory.ByID(id)
	if s.Plans[tier] == nil || (record != nil && record.Tier == tier) {
		return record
	}
	if record == nil {
		if !apikey.ValidID(id) {
			return nil
		}
		return &apikey.Record{ID: id, Tier: tier}
	}
	changed := *record
	changed.Tier = tier
	return &changed
}

// decide charges the request of a known key.
func (g *Gate) decide(ctx context.Context, s *Settings, asked string, v *Verdict) {
	plan := s.Plans[v.Tier]
	granted := plan.Tier.Priority
	if v.Key.Priority != 0 {
		granted = v.Key.Priority
	}
	v.Priority = quota.Effective(granted, asked)
	request := quota.Request{
		Account: v.Key.ID, Tier: plan, Overrides: v.Key.Overrides,
		Resource: v.Resource, Priority: v.Priority, Cost: quota.Cost{Requests: 1},
	}
	if !v.Key.MayUse(v.Resource) {
		v.Decision, v.Err = g.limiter.Look(ctx, request, v.now)
		v.refuse(Forbidden, notAllowed(v.Resource))
		return
	}
	v.Decision, v.Err = g.limiter.Decide(ctx, request, v.now)
	switch {
	case v.Err != nil:
		v.refuse(Failed, unavailable)
	case v.Decision.Admitted:
		v.Outcome = Allowed
	default:
		v.refuse(Limited, tooMany(v.Decision.Wait))
	}
}

func (v *Verdict) refuse(o Outcome, p problem) { v.Outcome, v.problem = o, p }

// status returns the HTTP status of the verdict.
func (v *Verdict) status() int {
	switch v.Outcome {
	case Allowed:
		return http.StatusOK
	case Limited:
		return http.StatusTooManyRequests
	case Unauthenticated:
		return http.StatusUnauthorized
	case Forbidden:
		return http.StatusForbidden
	case Failed:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// Label returns the name of the limit that refused the request, or "".
func (v *Verdict) Label() string {
	if v.Outcome != Limited {
		return ""
	}
	return v.Decision.RefusedBy.Name()
}
