// Package envoyapi answers Envoy: external authorization (authz.go), the rate limit
// service (ratelimit.go) and the access log service (accesslog.go). The first two
// ask one Gate for a verdict and say it in their protocol; the last two report to it
// what answers have used. It is the only package that knows Envoy's protobufs.
//
// It does not know where counts are kept or how TierGate is configured.
package envoyapi

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/tiergate/tiergate/internal/apierror"
	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/quota"
)

// An Outcome is a kind of verdict. Its text is a metric label.
type Outcome string

// The outcomes.
const (
	Allowed         Outcome = "allowed"
	Limited         Outcome = "limited"         // 429
	Unauthenticated Outcome = "unauthenticated" // 401
	Forbidden       Outcome = "forbidden"       // 403
	TooLarge        Outcome = "too_large"       // 413
	Failed          Outcome = "failed"          // 503
	Unrecognised    Outcome = "unrecognised"    // passed uncounted: a rate limit call with no entry that is known
)

// A Verdict is what becomes of a request, before it is put into a protocol.
type Verdict struct {
	Outcome  Outcome
	Key      *apikey.Record // nil: none
	At       time.Time      // when it was asked; the clock of the counts may differ
	Tier     string         // empty: none is known
	Resource string
	Misnamed string // the resource that the route or a descriptor names, where none is configured under that name; cut to 64 bytes
	Priority quota.Priority
	Requests int64          // how many it stands for; 0: a look, a repeat, or hits given back
	Decision quota.Decision // zero where nothing was counted
	Err      error          // why counting failed; for operators only
	Ticket   string         // for the settlement; empty: nothing is to be settled

	problem apierror.Error // what a refused client is told
}

// maxMisnamed is how much of the name of an unknown resource is told of, in bytes.
const maxMisnamed = 64

// An Observer is told every verdict and how long it took, every settlement, what each answer
// has used, and why a call was none that can be answered. Verdicts are passed as values, which
// the allocator never hears of.
type Observer interface {
	Judged(ctx context.Context, v Verdict, took time.Duration)
	Settled(ctx context.Context, r SettlementReport)
	Used(u Use)
	Invalid(ctx context.Context, at time.Time, problem string)
}

// A Gate judges requests. It is safe for concurrent use.
type Gate struct {
	settings atomic.Pointer[Settings]
	limiter  *quota.Limiter
	history  History
	now      func() time.Time
	observer Observer
}

// A History knows how many output tokens answers to a key and resource have used
// lately.
type History interface {
	// High returns what few of them exceed, or quota.Unknown.
	High(account, resource string) int64
	Add(account, resource string, tokens int64)
}

// NewGate returns a Gate that counts with the limiter and estimates by the history.
func NewGate(s *Settings, limiter *quota.Limiter, history History, now func() time.Time, observer Observer) *Gate {
	g := &Gate{limiter: limiter, history: history, now: now, observer: observer}
	g.Use(s)
	return g
}

// Use makes the Gate judge by other settings, from the next request on. They
// belong to the Gate from then on.
func (g *Gate) Use(s *Settings) {
	if s.TicketKey == nil {
		s.TicketKey = NewTicketKey([]byte(rand.Text()))
	}
	s.wanted, s.ready = append([]string{priorityHeader, lengthHeader}, s.KeyHeaders...), prepare(s)
	g.settings.Store(s)
}

// Keys returns the keys that are known.
func (g *Gate) Keys() apikey.Keyring { return g.settings.Load().Keys }

// An inquiry is what a protocol knows of a request.
type inquiry struct {
	credentials []string // texts that may be keys
	resource    string   // named by the mesh's configuration; may be empty
	path        string   // with query, as sent
	priority    string   // asked for by the client; may be anything
	keyID, tier string   // from a source that the configuration trusts; may be empty
	elsewhere   bool     // only that source says who asks: credentials are not looked at
	id          string   // of the request, not from the client; empty: it has none
	body        quota.Body
	model       string // that the body asks for; may be anything

	hits   int64         // how often the request counts
	look   bool          // what would become of it; nothing is taken
	tokens int64         // that a rate limit call says it takes; quota.Unknown: see body
	credit bool          // gives hits and tokens back
	limits []quota.Limit // see quota.Request

	reasons *reasons // not nil: nothing is taken, and why is written down there
}

// judge finds the key, its tier, the resource and the priority, and charges.
func (g *Gate) judge(ctx context.Context, s *Settings, q inquiry) Verdict {
	v := Verdict{At: g.now()}
	g.consider(ctx, s, &q, &v)
	g.observer.Judged(ctx, v, g.now().Sub(v.At))
	return v
}

// consider does all of judge, but tells nobody.
func (g *Gate) consider(ctx context.Context, s *Settings, q *inquiry, v *Verdict) {
	var rule string
	v.Resource, rule = s.Resources.find(q.resource, q.path)
	v.Priority = quota.Low
	if q.resource != "" && rule != byName {
		v.Misnamed = q.resource[:min(len(q.resource), maxMisnamed)]
	}
	if q.reasons != nil {
		q.reasons.rule = rule
	}
	if g.identify(s, q, v) {
		g.decide(ctx, s, q, v)
	}
}

// identify finds the record of the request's key, or refuses.
func (g *Gate) identify(s *Settings, q *inquiry, v *Verdict) bool {
	record, err := find(s, q, v.At)
	v.Key = record
	switch {
	case errors.Is(err, apikey.ErrUnread):
		v.Err = err
		v.refuse(Failed, apierror.Unavailable)
		return false
	case errors.Is(err, apikey.ErrMissing) && q.elsewhere:
		v.refuse(Unauthenticated, apierror.Unidentified)
		return false
	case err != nil:
		v.refuse(Unauthenticated, apierror.OfKey(err, s.KeyHeaders))
		return false
	}
	v.Tier = record.Tier
	return true
}

// find returns the record that a trusted source names, else that of the one key
// among the credentials. The record of a key that is known and refused comes with the
// error.
func find(s *Settings, q *inquiry, now time.Time) (*apikey.Record, error) {
	if q.keyID == "" {
		return s.Keys.Authenticate(q.credentials, s.AllowDemoKeys, now)
	}
	record := trusted(s, q.keyID, q.tier)
	switch {
	case record != nil && q.reasons != nil && !s.believed() && s.Keys.Pepperless(record.Hash) != nil: // its ID stands for the key
		return nil, apikey.ErrUnknown
	case record != nil:
		return record, record.Admissible(s.AllowDemoKeys, now)
	case !apikey.ValidID(q.keyID): // no key will ever be called so
		return nil, apikey.ErrUnknown
	default:
		return nil, s.Keys.Missing()
	}
}

// trusted returns the record of a key ID. A tier named beside it replaces that of
// the record, and makes one for an ID that is not on record. A tier that is not
// configured is as good as none.
func trusted(s *Settings, id, tier string) *apikey.Record {
	record := s.Keys.ByID(id)
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
func (g *Gate) decide(ctx context.Context, s *Settings, q *inquiry, v *Verdict) {
	if !q.look && !q.credit {
		v.Requests = q.hits
	}
	if s.Plans[v.Tier] == nil { // the key was made when there was such a tier
		v.Err = fmt.Errorf("decide for key %s: no tier %q is configured: add it, or give the key another", v.Key.ID, v.Tier)
		v.refuse(Failed, apierror.Unavailable)
		return
	}
	request, reserved := g.request(s, q, v)
	if !v.Key.MayUse(v.Resource) {
		request.Cost, request.Estimate, request.Pool, q.look = quota.Cost{}, quota.Cost{}, nil, true
		v.Decision, v.Err = g.count(ctx, q, &request, v.At)
		v.refuse(Forbidden, apierror.NotAllowed(v.Resource))
		return
	}
	v.Decision, v.Err = g.count(ctx, q, &request, v.At)
	switch {
	case v.Err != nil:
		v.refuse(Failed, apierror.Unavailable)
	case v.Decision.TooLarge:
		v.refuse(TooLarge, apierror.TooLarge(v.Decision))
	case !v.Decision.Admitted:
		v.refuse(Limited, apierror.TooMany(v.Decision.Wait))
	default:
		v.Outcome = Allowed
		if v.Decision.Repeated {
			v.Requests = 0
		}
		v.Ticket = reserved.issue(s, q, &v.Decision)
	}
}

// count charges a request, or says what that would do where nothing is to be taken.
func (g *Gate) count(ctx context.Context, q *inquiry, r *quota.Request, now time.Time) (quota.Decision, error) {
	switch {
	case q.reasons != nil:
		p, err := g.limiter.Preview(ctx, *r, now)
		q.reasons.demands = p.Demands
		return p.Decision, err //nolint:wrapcheck // as the others
	case q.look:
		return g.limiter.Look(ctx, *r, now) //nolint:wrapcheck // the verdict has it as it is
	default:
		return g.limiter.Decide(ctx, *r, now) //nolint:wrapcheck // likewise
	}
}

// request says what the key's request is to be charged, and what a ticket for that
// says.
func (g *Gate) request(s *Settings, q *inquiry, v *Verdict) (quota.Request, ticket) {
	plan := s.Plans[v.Tier]
	v.Priority = quota.Effective(v.Key.Granted(plan.Tier.Priority), q.priority)
	r := quota.Request{
		Account: v.Key.ID, Tier: plan, Overrides: v.Key.Overrides, Limits: q.limits, Resource: v.Resource, Priority: v.Priority, Pool: s.Pools[v.Resource],
		Reserved: s.Tokens.refunds() || s.Tokens.twice(), Credit: q.credit, Firm: !s.Tokens.refunds() && !s.RateLimit.NegativeHits,
	}
	t := ticket{
		account: v.Key.ID, resource: v.Resource, source: quota.ByDeclaration, choices: max(q.body.Choices, 1), weight: s.Tokens.Models.Of(q.model, q.body.Read),
	}
	if q.tokens == quota.Unknown {
		r.Cost, r.Estimate, t.source = q.body.Reserve(s.Tokens.Rules[v.Resource], g.history.High(v.Key.ID, v.Resource), t.weight)
		t.output = r.Cost.OutputTokens + r.Estimate.OutputTokens
	} else { // it does not say of which kind they are, and passes no limit for that
		r.Cost.Tokens, r.Cost.InputTokens, r.Cost.OutputTokens = q.tokens, q.tokens, q.tokens
	}
	r.Cost.Requests = q.hits
	t.tokens = max(r.Cost.Tokens+r.Estimate.Tokens, t.output)
	if q.reasons != nil {
		_, q.reasons.inputFrom = q.body.Input(s.Tokens.Rules[v.Resource])
		q.reasons.input, q.reasons.ticket = r.Estimate.InputTokens, t
	}
	if q.credit {
		return r, t
	}
	r.ID, r.Secret = requestID(q.id), rand.Text
	// A request without a body makes no tokens. What its answer says of usage is that
	// of another one, as where a stored answer is fetched.
	if s.Tokens.settled() && (t.source != quota.ByNothing || s.Tokens.refunds()) {
		r.Keep = s.Tokens.Keep
	}
	return r, t
}

func (v *Verdict) refuse(o Outcome, e apierror.Error) { v.Outcome, v.problem = o, e }

// status returns the HTTP status of the verdict.
func (v *Verdict) status() int {
	switch v.Outcome {
	case Allowed, Unrecognised:
		return http.StatusOK
	case Limited:
		return http.StatusTooManyRequests
	case Unauthenticated:
		return http.StatusUnauthorized
	case Forbidden:
		return http.StatusForbidden
	case TooLarge:
		return http.StatusRequestEntityTooLarge
	case Failed:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// Code returns the error code that a refused client is told, or "". It is one of a few.
func (v *Verdict) Code() string { return v.problem.Code }

// Label returns the name of the limit that refused the request, or "".
func (v *Verdict) Label() string {
	if v.Outcome != Limited && v.Outcome != TooLarge {
		return ""
	}
	return v.Decision.RefusedBy.Name()
}
