package envoyapi

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/tiergate/tiergate/internal/apierror"
	"github.com/tiergate/tiergate/internal/quota"
)

// A header is a name and a value.
type header struct {
	name, value string
}

// longWait is the wait from which on official SDKs are told not to retry by
// themselves: they would sleep for as long as Retry-After says.
const longWait = time.Minute

// response returns what the client gets: the six headers, and with a refusal those
// that explain it.
func (v *Verdict) response(s *Settings) []header {
	hs := v.facet().appendResponse(v.appendCounts(nil, s))
	if v.Outcome != Allowed {
		hs = v.appendRefusal(hs)
	}
	return hs
}

// appendCounts adds those of the six headers that differ from one request to
// the next, and the sets that are switched on beside them.
func (v *Verdict) appendCounts(hs []header, s *Settings) []header {
	hs = append(v.appendLimit(hs, s),
		header{"X-RateLimit-Reset", strconv.FormatInt(v.reset(), 10)},
		header{"X-RateLimit-Used", strconv.FormatInt(v.Decision.Used, 10)},
	)
	if v.Decision.Degraded {
		hs = append(hs, header{"X-RateLimit-Degraded", "1"})
	}
	if s.PerMetric && v.counted() {
		hs = v.appendPerMetric(hs)
	}
	if s.IETF && v.counted() {
		hs = v.appendIETF(hs)
	}
	return hs
}

// appendPerMetric adds the headers that OpenAI's API has: for requests and tokens
// per minute the limit, what remains, and how long until it resets, such as 12.5s.
// Where several limits apply to one metric, they describe the one with the least
// remaining; where none does, they are left out.
func (v *Verdict) appendPerMetric(hs []header) []header {
	for _, metric := range []quota.Metric{quota.Requests, quota.Tokens} {
		var least quota.State
		for s := range v.Decision.Limits {
			l, none := s.Limit, least.Limit == quota.Limit{}
			if l.Metric == metric && l.Window.Fixed() == quota.Minute && l.Max != quota.NoMax && (none || s.Remaining() < least.Remaining()) {
				least = s
			}
		}
		if (least.Limit == quota.Limit{}) {
			continue
		}
		name := metric.String()
		hs = append(hs,
			header{"x-ratelimit-limit-" + name, strconv.FormatInt(least.Limit.Max, 10)},
			header{"x-ratelimit-remaining-" + name, strconv.FormatInt(least.Remaining(), 10)},
			header{"x-ratelimit-reset-" + name, least.Reset.Sub(v.Decision.Now).Round(time.Millisecond).String()},
		)
	}
	return hs
}

// maxInteger is the largest Integer of RFC 9651, in which those headers are written.
const maxInteger int64 = 999_999_999_999_999

// appendIETF adds the headers of draft-ietf-httpapi-ratelimit-headers-10: every
// limit that applies, by name, with quota q, window w in seconds, remaining r, and
// seconds t until it resets. What is above maxInteger is shown as that.
func (v *Verdict) appendIETF(hs []header) []header {
	var policies, states []string
	for s := range v.Decision.Limits {
		l := s.Limit
		if l.Max == quota.NoMax {
			continue
		}
		start, end := l.Window.Bounds(v.Decision.Now)
		policies = append(policies, fmt.Sprintf("%q;q=%d;w=%d", l.Name(), min(l.Max, maxInteger), int64(end.Sub(start)/time.Second)))
		states = append(states, fmt.Sprintf("%q;r=%d;t=%d", l.Name(), min(s.Remaining(), maxInteger), apierror.Up(s.Reset.Sub(v.Decision.Now), time.Second)))
	}
	if len(policies) == 0 {
		return hs
	}
	return append(hs, header{"RateLimit-Policy", strings.Join(policies, ", ")}, header{"RateLimit", strings.Join(states, ", ")})
}

// counted reports whether the counters are known. Where they are not, Limit,
// Remaining and Used are 0 and Reset is now.
func (v *Verdict) counted() bool { return v.Decision.Shown != (quota.Limit{}) }

func (v *Verdict) appendLimit(hs []header, s *Settings) []header {
	limit, remaining := "0", "0"
	if v.counted() {
		if v.Decision.Unlimited() && s.OmitUnlimited {
			return hs
		}
		limit, remaining = apierror.LimitHeaders(quota.State{Limit: v.Decision.Shown, Used: v.Decision.Used}, s.UnlimitedText)
	}
	return append(hs, header{"X-RateLimit-Limit", limit}, header{"X-RateLimit-Remaining", remaining})
}

// reset returns Unix seconds. Windows end on whole seconds; where one slides, a request may fit
// between two, and certainly at the next.
func (v *Verdict) reset() int64 {
	if !v.counted() {
		return v.At.Unix()
	}
	return apierror.UpUnix(v.Decision.Reset)
}

func (v *Verdict) appendRefusal(hs []header) []header {
	hs = append(hs, header{"Content-Type", "application/json"}, header{"Cache-Control", "no-store"})
	switch v.Outcome {
	case Limited:
		wait := v.Decision.Wait
		hs = append(hs,
			header{"X-RateLimit-Limited-By", v.Decision.RefusedBy.Name()},
			header{"Retry-After", strconv.FormatInt(apierror.Up(wait, time.Second), 10)},
		)
		if wait <= longWait && !v.Decision.Never() {
			hs = append(hs, header{"retry-after-ms", strconv.FormatInt(apierror.Up(wait, time.Millisecond), 10)})
		} else {
			hs = append(hs, header{"x-should-retry", "false"})
		}
	case TooLarge:
		hs = append(hs, header{"X-RateLimit-Limited-By", v.Decision.RefusedBy.Name()}, header{"x-should-retry", "false"})
	case Unauthenticated:
		hs = append(hs, header{"WWW-Authenticate", "Bearer"}) // RFC 9110, 11.6.1
	case Failed:
		hs = append(hs, header{"Retry-After", "1"})
	case Allowed, Forbidden, Unrecognised:
	}
	return hs
}

// appendUpstream adds what the upstream gets. Each replaces what the client may
// have sent by that name.
func (v *Verdict) appendUpstream(hs []header) []header {
	return v.facet().appendUpstream(append(hs, v.keyID()))
}

func (v *Verdict) keyID() header { return header{"x-tiergate-key-id", v.Key.ID} }

// A facet is what many requests have in common, and the headers that say it.
type facet struct {
	tier, resource string
	priority       quota.Priority
}

func (v *Verdict) facet() facet { return facet{v.Tier, v.Resource, v.Priority} }

func (f facet) appendResponse(hs []header) []header {
	return append(hs, header{"X-RateLimit-Resource", f.resource}, header{"X-Request-Priority", f.priority.Number()})
}

func (f facet) appendUpstream(hs []header) []header {
	return append(hs,
		header{"x-tiergate-tier", f.tier}, header{"x-tiergate-resource", f.resource}, header{"X-Request-Priority", f.priority.Number()})
}
