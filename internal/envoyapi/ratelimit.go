package envoyapi

import (
	"context"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/quota"
)

// StatusHeader tells Envoy's local_reply_config which HTTP status a refusal of
// the rate limit service means: the protocol has none but 429. It is there on
// every refusal that is not a 429, and Envoy removes it before the client.
const StatusHeader = "x-tiergate-status"

// RateLimit is the rate limit service, envoy.service.ratelimit.v3.
type RateLimit struct {
	rlsv3.UnimplementedRateLimitServiceServer

	gate *Gate
}

// NewRateLimit returns the service that asks the gate.
func NewRateLimit(g *Gate) *RateLimit { return &RateLimit{gate: g} }

// ShouldRateLimit decides one HTTP request by its descriptors, or settles one, by
// the domain. One call is one request, however many descriptors describe it. An
// entry may stand in any of them; where a resource or a priority stands twice, the
// first holds. Without an API key the request is refused. A domain that is not
// configured is INVALID_ARGUMENT, and so are more descriptors or entries than are.
func (l *RateLimit) ShouldRateLimit(ctx context.Context, r *rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error) {
	response, err := l.shouldRateLimit(ctx, r)
	if st := status.Convert(err); st.Code() == codes.InvalidArgument {
		l.gate.observer.Invalid(ctx, l.gate.now(), st.Message())
	}
	return response, err
}

func (l *RateLimit) shouldRateLimit(ctx context.Context, r *rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error) {
	s := l.gate.settings.Load()
	if err := s.RateLimit.bound(r.GetDescriptors()); err != nil {
		return nil, err
	}
	switch {
	case r.GetDomain() == s.RateLimit.Domain:
	case r.GetDomain() == s.RateLimit.SettlementDomain && s.Tokens.SettleByRateLimit:
		return l.settle(ctx, s, r)
	case r.GetDomain() == s.RateLimit.SettlementDomain:
		return nil, status.Errorf(codes.InvalidArgument, "domain %q settles nothing: add ratelimit to tokens.settle_by", r.GetDomain())
	default:
		return nil, status.Errorf(codes.InvalidArgument,
			"domain %.64q is not configured: want %q, as in ratelimit.domain", r.GetDomain(), s.RateLimit.Domain)
	}
	q, known := inquire(&s.RateLimit.Entries, r.GetDescriptors())
	if !known && s.RateLimit.AllowUnknown {
		l.gate.observer.Judged(ctx, Verdict{Outcome: Unrecognised, Resource: quota.DefaultResource, Priority: quota.Low}, 0)
		return &rlsv3.RateLimitResponse{OverallCode: rlsv3.RateLimitResponse_OK, Statuses: statuses(len(r.GetDescriptors()), &rlsv3.RateLimitResponse_DescriptorStatus{
			Code: rlsv3.RateLimitResponse_OK,
		})}, nil
	}
	if err := count(&q, &s.RateLimit, r); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	v := l.gate.judge(ctx, s, q)
	return answer(&v, s, len(r.GetDescriptors())), nil
}

// entriesOfDescriptor is how many entries a descriptor may have on the average.
const entriesOfDescriptor = 4

// bound refuses calls that are too much work.
func (s *RateLimitSettings) bound(descriptors []*ratelimitv3.RateLimitDescriptor) error {
	if len(descriptors) > s.MaxDescriptors {
		return status.Errorf(codes.InvalidArgument, "the call has %d descriptors: want at most %d, as in ratelimit.max_descriptors",
			len(descriptors), s.MaxDescriptors)
	}
	entries := 0
	for _, d := range descriptors {
		entries += len(d.GetEntries())
	}
	if most := entriesOfDescriptor * s.MaxDescriptors; entries > most {
		return status.Errorf(codes.InvalidArgument, "the descriptors of the call have %d entries: want at most %d, four times ratelimit.max_descriptors", entries, most)
	}
	return nil
}

// inquire reads the entries of all descriptors as those of one request. known
// reports whether there was any that it knows.
func inquire(names *Entries, descriptors []*ratelimitv3.RateLimitDescriptor) (q inquiry, known bool) {
	var d description
	for _, descriptor := range descriptors {
		for _, e := range descriptor.GetEntries() {
			d.add(names, e.GetKey(), e.GetValue())
		}
	}
	return d.inquiry(), d.known
}

// A description is what entries say of a request.
type description struct {
	q     inquiry
	known bool // there was an entry that is known
	body  factTexts
}

// add reads an entry. Where one stands twice, the first holds.
func (d *description) add(names *Entries, key, value string) {
	first := func(field *string) {
		if *field == "" {
			*field = value
		}
	}
	recognised := true
	switch key {
	case "": // else a name that is not configured would match it
		recognised = false
	case names.APIKey:
		value := strings.TrimSpace(value)
		d.credential(value, strings.Contains(value, " ") || strings.EqualFold(value, "bearer"))
	case names.Resource:
		first(&d.q.resource)
	case names.Path:
		first(&d.q.path)
	case names.Priority:
		first(&d.q.priority)
	case names.KeyID:
		first(&d.q.keyID)
	case names.Tier:
		first(&d.q.tier)
	default:
		recognised = d.addForm(names, key, value) || d.addFact(names, key, value)
	}
	d.known = d.known || recognised
}

// What may stand behind the name of the API key's entry, to say which header it is.
const (
	bearerForm = ".bearer" // Authorization: in it Bearer KEY alone counts
	rawForm    = ".raw"    // any other: it is the key as it stands
)

// addForm reads an entry that says in which form the key stands, or reports that it is
// none.
func (d *description) addForm(names *Entries, key, value string) bool {
	form, ok := strings.CutPrefix(key, names.APIKey)
	if ok = ok && names.APIKey != "" && (form == bearerForm || form == rawForm); ok {
		d.credential(value, form == bearerForm)
	}
	return ok
}

// addFact reads an entry that says something of the body, or reports that it is none.
func (d *description) addFact(names *Entries, key, value string) bool {
	fact, ok := strings.CutPrefix(key, names.FactPrefix)
	if ok && d.body.of(fact) == "" {
		d.body.set(fact, value)
	}
	return ok
}

func (d *description) credential(value string, authorization bool) {
	d.q.credentials = apikey.AppendCredentials(d.q.credentials, value, authorization)
}

func (d *description) inquiry() inquiry {
	q := d.q
	// They outlive the call, and are not to keep all of its message.
	q.keyID, q.tier = strings.Clone(q.keyID), strings.Clone(q.tier)
	q.tokens = quota.Unknown
	q.body, q.model = readBody(d.body.of("method"), q.path, d.body.of("content_length"), d.body.of)
	return q
}

// answer is said by encodeAnswer too, where a call of so many descriptors is allowed.
func answer(v *Verdict, s *Settings, descriptors int) *rlsv3.RateLimitResponse {
	r := &rlsv3.RateLimitResponse{
		OverallCode:          rlsv3.RateLimitResponse_OK,
		ResponseHeadersToAdd: values(v.response(s)),
	}
	if v.Outcome == Allowed {
		r.RequestHeadersToAdd = values(v.appendUpstream(nil))
		if v.Ticket != "" {
			r.DynamicMetadata = ticketMetadata(v.Ticket)
		}
	} else {
		r.OverallCode = rlsv3.RateLimitResponse_OVER_LIMIT
		r.RawBody = []byte(v.problem.Body())
		if v.status() != http.StatusTooManyRequests {
			r.ResponseHeadersToAdd = append(r.ResponseHeadersToAdd,
				&corev3.HeaderValue{Key: StatusHeader, Value: strconv.Itoa(v.status())})
		}
	}
	r.Statuses = statuses(descriptors, v.descriptorStatus(r.GetOverallCode()))
	return r
}

// statuses repeats one status for each descriptor.
func statuses(descriptors int, one *rlsv3.RateLimitResponse_DescriptorStatus) []*rlsv3.RateLimitResponse_DescriptorStatus {
	all := make([]*rlsv3.RateLimitResponse_DescriptorStatus, descriptors)
	for i := range all {
		all[i] = one
	}
	return all
}

// descriptorStatus describes the limit that told returns. Without one it has the code
// alone.
func (v *Verdict) descriptorStatus(code rlsv3.RateLimitResponse_Code) *rlsv3.RateLimitResponse_DescriptorStatus {
	st := &rlsv3.RateLimitResponse_DescriptorStatus{Code: code}
	if limit, remaining, ok := v.told(); ok {
		st.CurrentLimit = &rlsv3.RateLimitResponse_RateLimit{
			Name: limit.Name(), RequestsPerUnit: upTo32(limit.Max), Unit: unit(limit.Window),
		}
		st.LimitRemaining = upTo32(remaining)
		st.DurationUntilReset = durationpb.New(v.untilEnd(limit))
	}
	return st
}

// told returns the key's limit that refuses, or the one that the headers show, and what remains
// of it, where there is one.
func (v *Verdict) told() (limit quota.Limit, remaining int64, ok bool) {
	limit, remaining = v.Decision.Shown, v.Decision.Remaining
	switch v.Outcome {
	case Limited:
		if v.Decision.RefusedBy.Pooled { // how large a pool is is not for clients, whom Envoy may tell
			break
		}
		limit, remaining = v.Decision.RefusedBy, max(v.Decision.RefusedBy.Max-v.Decision.RefusedUsed, 0)
	case TooLarge:
		limit, remaining = v.Decision.RefusedBy, 0
	case Allowed, Unauthenticated, Forbidden, Failed, Unrecognised:
	}
	return limit, remaining, v.counted() && limit.Max != quota.NoMax
}

// untilEnd returns how long the window of a limit lasts yet; of one that slides and refuses,
// until the request fits.
func (v *Verdict) untilEnd(l quota.Limit) time.Duration {
	if v.Outcome == Limited && l.Window.Sliding() {
		return v.Decision.Wait
	}
	_, end := l.Window.Bounds(v.Decision.Now)
	return end.Sub(v.Decision.Now)
}

func upTo32(n int64) uint32 { return uint32(min(n, math.MaxUint32)) } //nolint:gosec // never negative

// unit returns the protocol's name of a window; lengths without one are UNKNOWN.
func unit(w quota.Window) rlsv3.RateLimitResponse_RateLimit_Unit {
	switch w.Fixed() {
	case quota.Second:
		return rlsv3.RateLimitResponse_RateLimit_SECOND
	case quota.Minute:
		return rlsv3.RateLimitResponse_RateLimit_MINUTE
	case quota.Hour:
		return rlsv3.RateLimitResponse_RateLimit_HOUR
	case quota.Day:
		return rlsv3.RateLimitResponse_RateLimit_DAY
	case quota.Week:
		return rlsv3.RateLimitResponse_RateLimit_WEEK
	case quota.Month:
		return rlsv3.RateLimitResponse_RateLimit_MONTH
	default:
		return rlsv3.RateLimitResponse_RateLimit_UNKNOWN
	}
}

func values(hs []header) []*corev3.HeaderValue {
	all := make([]corev3.HeaderValue, len(hs))
	pointers := make([]*corev3.HeaderValue, len(hs))
	for i, h := range hs {
		all[i].Key, all[i].Value = h.name, h.value
		pointers[i] = &all[i]
	}
	return pointers
}
