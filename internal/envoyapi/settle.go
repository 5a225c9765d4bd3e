package envoyapi

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/quota"
)

// An answered is what Envoy reports of a request whose answer has ended.
type answered struct {
	ticket  string
	usage   quota.Usage
	partial bool   // whether Envoy could not read all of what reports the usage
	status  int    // sent to the client; 0: none
	details string // Envoy's response code details
	faulty  bool   // whether Envoy flagged the answer
	cached  bool   // whether it came from Envoy's cache
	bytes   int64  // of its body that were sent
	media   string // its content type
	by      string // how it was reported: access_log or ratelimit
}

// The ways in which settlements are reported, as metrics show them.
const (
	byAccessLog = "access_log"
	byRateLimit = "ratelimit"
)

// What can become of a settlement, beside the outcomes of package quota.
const (
	Unreserved    = "unreserved" // there was nothing to settle: no limit is on the tokens
	InvalidTicket = "invalid"    // no ticket of ours
	StoreFailed   = "failed"     // one try of a call, which Envoy may repeat; see SettlementReport.Err
	Lost          = "lost"       // of an access log, which nobody repeats
)

// SettlementWays lists what SettlementReport.By can be.
func SettlementWays() []string { return []string{byAccessLog, byRateLimit} }

// SettlementResults lists what SettlementReport.Result can be.
func SettlementResults() []string {
	return []string{
		quota.Settled.String(), quota.Duplicate.String(), quota.NotFound.String(), quota.Queued.String(), Unreserved, InvalidTicket, StoreFailed, Lost,
	}
}

// viaUpstream are the details of an answer that the upstream gave and ended; see
// Envoy's documentation of response code details.
const viaUpstream = "via_upstream"

// clean reports whether the answer ended as it should, so that its usage is all
// there is. Where Envoy gives no details, it is not known to have.
func (a *answered) clean() bool {
	return !a.partial && (a.cached || (a.details == viaUpstream && !a.faulty))
}

// refundable reports whether the charge is to be given back: the operator lists
// the status, and it was not the client that ended the answer.
func (a *answered) refundable(t *TokenSettings) bool {
	if a.cached {
		return t.RefundCached
	}
	return slices.Contains(t.RefundStatuses, a.status) && a.details != "" && !strings.HasPrefix(a.details, "downstream")
}

// A SettlementReport tells an Observer of a settlement.
type SettlementReport struct {
	By       string // one of SettlementWays
	Result   string // one of SettlementResults
	Source   quota.Source
	Reserved int64 // tokens
	Used     int64 // tokens; quota.Unknown: not reported, or maybe not all
	Err      error
}

// A Use is what an answer is counted to have used. Where anything is reserved, an Observer is told
// of it once, however often and in however many ways the answer is reported; else each time.
type Use struct {
	Account        string         // the key ID
	Tier, Resource string         // empty tier: it is not known any more
	Priority       quota.Priority // that the key may use; 0: it is not known any more
	At             time.Time      // when the answer had ended
	Input, Output  int64          // tokens
}

// bytesPerStreamedToken is how much of a stream one token takes at the least, with
// what the usual APIs wrap around it (100 to 300 bytes); for streams that do not say
// what they have used.
const bytesPerStreamedToken = 100

// guess returns how many output tokens an answer is taken to have that does not say
// it, and whose request declared nothing: no fewer than an ordinary one, and, if it
// was a stream or cut short, no fewer than its length tells.
func (a *answered) guess(t ticket, rules quota.TokenRules) int64 {
	tokens := t.choices * rules.Output
	if !a.clean() || strings.HasPrefix(a.media, "text/event-stream") {
		tokens = max(tokens, min(a.bytes/bytesPerStreamedToken, t.choices*rules.MaxOutput))
	}
	return tokens
}

// settle settles one request. An error means that its outcome is unknown, and
// that it may be tried again.
func (g *Gate) settle(ctx context.Context, s *Settings, a *answered) error {
	t, invalid := parseTicket(a.ticket, s.TicketKey)
	if invalid != nil {
		g.observer.Settled(ctx, SettlementReport{By: a.by, Result: InvalidTicket, Used: quota.Unknown, Err: invalid})
		return nil //nolint:nilerr // it has been reported, and trying again will not mend it
	}
	used := a.usage.Cost(quota.Weights{Model: t.weight, CachedInput: s.Tokens.CachedInput})
	settlement := quota.Settlement{
		Account: t.account, Request: t.request, Secret: t.secret, Stranger: s.stranger(t.account), OnlyRaise: !a.clean(), Used: used,
		Pool: s.Pools[t.resource],
	}
	switch {
	case t.source == quota.ByNothing:
		settlement.Used = quota.NoUsage().Cost(quota.Weights{})
	case t.guessed():
		// A charge that was made small by small answers does not stay small because
		// another one says nothing.
		output := quota.Weigh(a.guess(t, s.Tokens.Rules[t.resource]), t.weight)
		if u := &settlement.Used; (u.OutputTokens == quota.Unknown || !a.clean()) && output > max(t.output, u.OutputTokens) {
			u.OutputTokens = output
			u.Tokens = max(u.Tokens, t.tokens-t.output+output)
		}
	}
	if a.refundable(&s.Tokens) {
		settlement.RefundShare = s.Tokens.RefundShare
	}
	use := t.use(s, &settlement, g.now())
	if s.Tokens.twice() { // which of two reports that wait is the first, Redis will tell
		settlement.Then = g.once(use)
	}
	report := SettlementReport{By: a.by, Source: t.source, Reserved: t.tokens, Used: quota.Unknown}
	if t.reserves() {
		outcome, err := g.limiter.Settle(ctx, settlement)
		if err != nil {
			report.Result, report.Err = StoreFailed, err
			if a.by == byAccessLog {
				report.Result = Lost // nobody tries again
			}
			g.observer.Settled(ctx, report)
			return err
		}
		report.Result = outcome.String()
	} else {
		report.Result = Unreserved
	}
	if a.clean() {
		report.Used = used.Tokens
	}
	g.observer.Settled(ctx, report)
	switch report.Result {
	case quota.Settled.String(), Unreserved:
		g.observer.Used(use)
		g.learn(s, t, a)
	case quota.Queued.String(): // nobody has verified it: nothing is learnt of it
		if settlement.Then == nil {
			g.observer.Used(use)
		}
	}
	return nil
}

// once returns what tells of a use if the settlement that waited is the first of its answer.
func (g *Gate) once(u Use) func(quota.Outcome) {
	return func(o quota.Outcome) {
		if o == quota.Settled {
			g.observer.Used(u)
		}
	}
}

// stranger reports whether an ID is of no key: not of one in a directory that was not read
// yet, nor of one that Envoy names together with its tier.
func (s *Settings) stranger(id string) bool {
	return s.RateLimit.Entries.Tier == "" && s.Identity.Tier.Namespace == "" && s.Keys.ByID(id) == nil && errors.Is(s.Keys.Missing(), apikey.ErrUnknown)
}

// use says what a settlement leaves charged, and whom.
func (t ticket) use(s *Settings, of *quota.Settlement, now time.Time) Use {
	u := Use{Account: t.account, Resource: s.Resources.Classify(t.resource, ""), At: now}
	if record := s.Keys.ByID(t.account); record != nil && s.Plans[record.Tier] != nil {
		u.Tier, u.Priority = record.Tier, record.Granted(s.Plans[record.Tier].Tier.Priority)
	}
	u.Input, u.Output = t.counted(of)
	return u
}

// counted returns the tokens that a settlement leaves charged.
func (t ticket) counted(s *quota.Settlement) (input, output int64) {
	if s.RefundShare > 0 {
		return 0, 0
	}
	input, output = s.Used.InputTokens, s.Used.OutputTokens
	if output == quota.Unknown || s.OnlyRaise {
		output = max(output, t.output)
	}
	switch {
	case input == quota.Unknown && s.Used.Tokens != quota.Unknown:
		input = max(s.Used.Tokens-output, 0)
	case input == quota.Unknown || s.OnlyRaise:
		input = max(input, t.tokens-t.output)
	}
	return input, output
}

// learn remembers what an answer has used whose request declared nothing, and asked
// for one answer: else the client would choose what the usage is divided by. An answer
// that does not say what it has used, or was cut short, is taken for an ordinary one at
// least, so that those cannot make reservations small.
func (g *Gate) learn(s *Settings, t ticket, a *answered) {
	if !t.guessed() || t.choices > 1 {
		return
	}
	used := a.usage.Cost(quota.Weights{Model: 1, CachedInput: 1}).OutputTokens
	if used == quota.Unknown || !a.clean() {
		used = max(used, a.guess(t, s.Tokens.Rules[t.resource]))
	}
	g.history.Add(t.account, t.resource, used)
}

// The entries of descriptors that settle. Each descriptor has the reservation and
// says with settle which count its hits_addend is; done is there in any case.
const (
	settleEntry  = "settle"
	codeEntry    = "code"
	detailsEntry = "details"
	bytesEntry   = "bytes"
	mediaEntry   = "content_type"
)

// settle settles one request. What is no settlement is answered OK and counted as
// invalid: the request is over, and nobody could mend it. A store that fails is
// UNAVAILABLE, so that Envoy tries again.
func (l *RateLimit) settle(ctx context.Context, s *Settings, r *rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error) {
	report := answered{by: byRateLimit}
	counted := noCounts()
	for _, d := range r.GetDescriptors() {
		for _, e := range d.GetEntries() {
			switch e.GetKey() {
			case reservationField:
				report.ticket = e.GetValue()
			case settleEntry:
				if d.GetHitsAddend() != nil {
					counted.set(e.GetValue(), int64(min(d.GetHitsAddend().GetValue(), uint64(quota.MaxCost)))) //nolint:gosec // not above MaxCost
				}
			case codeEntry:
				report.status, _ = strconv.Atoi(e.GetValue()) // what is none lists no refund
			case detailsEntry:
				report.details = e.GetValue()
			case bytesEntry:
				report.bytes = tokens(e.GetValue())
			case mediaEntry:
				report.media = e.GetValue()
			}
		}
	}
	report.cached = report.details == "cache.response_from_cache_filter"
	report.usage = counted.usage()
	if err := l.gate.settle(ctx, s, &report); err != nil {
		return nil, status.Error(codes.Unavailable, "the settlement is of unknown outcome: try again")
	}
	return &rlsv3.RateLimitResponse{
		OverallCode: rlsv3.RateLimitResponse_OK,
		Statuses:    statuses(len(r.GetDescriptors()), &rlsv3.RateLimitResponse_DescriptorStatus{Code: rlsv3.RateLimitResponse_OK}),
	}, nil
}
