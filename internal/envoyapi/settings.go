package envoyapi

import (
	"time"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/quota"
)

// Settings is what a Gate judges by. It is swapped whole and never changed.
type Settings struct {
	KeyHeaders         []string // request headers that carry a key, lower case, in order
	ForwardCredentials bool     // whether the upstream sees those headers
	Identity           Identity // whom external authorization believes instead
	Resources          *Classifier
	Plans              map[string]*quota.Plan // by tier name
	Pools              map[string]*quota.Pool // by resource; one without has no bound
	Keys               apikey.Keyring
	AllowDemoKeys      bool
	OmitUnlimited      bool   // leave Limit and Remaining out where there is no limit
	UnlimitedText      string // else what they say: a word, or a number
	PerMetric          bool   // also the headers that OpenAI's SDK users know
	IETF               bool   // also RateLimit and RateLimit-Policy
	RateLimit          RateLimitSettings
	Tokens             TokenSettings
	TicketKey          *TicketKey // seals what Envoy hands back of requests for which nothing is reserved; nil: one that nobody else has

	wanted []string // request headers that are read
	ready  map[facet]ready
}

// RateLimitSettings are those of the rate limit service.
type RateLimitSettings struct {
	Domain           string // of calls that decide
	SettlementDomain string // of calls that settle
	Entries          Entries
	HitsMetric       quota.Metric // what hits_addend counts: Requests or Tokens
	NegativeHits     bool         // whether hits may be given back
	LimitOverride    bool         // whether a descriptor's limit replaces the tier's
	AllowUnknown     bool         // whether calls pass in which no entry is known
	MaxDescriptors   int          // of a call, and a quarter of the entries in all of them; calls with more are INVALID_ARGUMENT
}

// TokenSettings say what tokens are reserved, and how they are settled.
type TokenSettings struct {
	Rules             map[string]quota.TokenRules // by resource
	Models            ModelWeights
	CachedInput       float64       // what a cached token of a prompt counts
	Keep              time.Duration // how long a reservation waits for its settlement
	SettleByAccessLog bool
	SettleByRateLimit bool
	RefundStatuses    []int // of answers whose charges are given back
	RefundCached      bool  // whether those of answers from Envoy's cache are
	RefundShare       int64 // see quota.Settlement
}

// settled reports whether anything settles reservations.
func (t *TokenSettings) settled() bool { return t.SettleByAccessLog || t.SettleByRateLimit }

// twice reports whether each answer is reported in two ways.
func (t *TokenSettings) twice() bool { return t.SettleByAccessLog && t.SettleByRateLimit }

// refunds reports whether anything is given back.
func (t *TokenSettings) refunds() bool { return len(t.RefundStatuses) > 0 || t.RefundCached }

// Entries are the names of the descriptor entries that the rate limit service
// reads. KeyID and Tier are empty unless what Envoy says there is to be trusted
// as it is, without a key.
type Entries struct {
	APIKey, Resource, Path, Priority, KeyID, Tier string
	FactPrefix                                    string // what entries begin with that say something of the body
}
