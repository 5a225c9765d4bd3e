package config

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// openAITokens are what requests to an API like OpenAI's are taken to use. Longer
// prompts and answers than these are rare; a request that declares more reserves
// what it declares.
func openAITokens(resource string) quota.TokenRules {
	switch resource {
	case "images":
		return quota.TokenRules{MaxInput: 10_000, Output: 1_500, MaxOutput: 8_000}
	case "audio":
		return quota.TokenRules{MaxInput: 10_000, Output: 1_000, MaxOutput: 4_000}
	case "embeddings":
		return quota.TokenRules{MaxInput: 300_000}
	case "moderations":
		return quota.TokenRules{MaxInput: 32_000}
	case "counting", "files", "models":
		return quota.TokenRules{}
	default:
		return quota.TokenRules{MaxInput: 128_000, Output: 1_000, MaxOutput: 16_000}
	}
}

// tokens checks what is reserved and how it is settled.
func (c *checker) tokens(f file, resources []quota.Resource) Tokens {
	t := Tokens{
		Rules: map[string]quota.TokenRules{quota.DefaultResource: openAITokens(quota.DefaultResource)}, Models: f.Tokens.Models,
		CachedInput: c.share("tokens.cached_input", f.Tokens.CachedInput),
		Keep:        c.duration("tokens.keep", f.Tokens.Keep, quota.RepeatWindow, 31*24*time.Hour),
	}
	for _, r := range resources {
		t.Rules[r.Name] = openAITokens(r.Name)
		if s := f.Resources[r.Name].Tokens; s != nil {
			t.Rules[r.Name] = c.tokenRules("resources."+r.Name+".tokens", *s)
		}
	}
	for i, by := range f.Tokens.SettleBy {
		switch c.oneOf(fmt.Sprintf("tokens.settle_by[%d]", i), by, "access_log", "ratelimit") {
		case "access_log":
			t.SettleByAccessLog = true
		case "ratelimit":
			t.SettleByRateLimit = true
		}
	}
	twins := map[string]string{}
	for _, model := range slices.Sorted(maps.Keys(f.Tokens.Models)) {
		if twin, twice := twins[strings.ToLower(model)]; twice {
			c.fault("tokens.models."+model, "%q is %q in other letters: keep one", model, twin)
		}
		twins[strings.ToLower(model)] = model
		weight := f.Tokens.Models[model]
		if strings.Contains(strings.TrimSuffix(model, "*"), "*") || model == "" {
			c.fault("tokens.models."+model, "%q: want a model's name, or the beginning of names followed by one *", model)
		}
		if !(weight > 0 && weight <= quota.MaxModelWeight) { // so that NaN is refused too
			c.fault("tokens.models."+model, "weight %v is out of range: want more than 0, up to %v", weight, quota.MaxModelWeight)
		}
	}
	t.refunds(c, f.Tokens.Refunds)
	return t
}

func (t *Tokens) refunds(c *checker, s refundsSection) {
	for i, status := range s.Statuses {
		if status < 400 || status > 599 {
			c.fault(fmt.Sprintf("tokens.refunds.statuses[%d]", i), "status %d is out of range: want 400 to 599", status)
		}
		t.RefundStatuses = append(t.RefundStatuses, int(status))
	}
	t.RefundCached = s.Cached
	t.RefundShare = c.thousandths("tokens.refunds.max_share", s.MaxShare)
}

// thousandths checks a share, and counts it as package quota does.
func (c *checker) thousandths(path string, share float64) int64 {
	return int64(math.Round(quota.Whole * c.share(path, share)))
}

func (c *checker) share(path string, n float64) float64 {
	if !(n >= 0 && n <= 1) { // so that NaN is refused too
		c.fault(path, "%v is out of range: want 0 to 1", n)
	}
	return n
}

func (c *checker) tokenRules(at string, s tokenRulesSection) quota.TokenRules {
	number := func(field string, n *whole) int64 {
		if n == nil {
			c.fault(at+"."+field, "missing: want a number of tokens")
			return 0
		}
		if *n < 0 || int64(*n) > quota.MaxCost {
			c.fault(at+"."+field, "%d is out of range: want 0 to %d", *n, quota.MaxCost)
		}
		return int64(*n)
	}
	r := quota.TokenRules{
		MaxInput: number("max_input", s.MaxInput), Output: number("output", s.Output),
		MaxOutput: number("max_output", s.MaxOutput), Cap: number("cap", &s.Cap),
	}
	if r.Output > r.MaxOutput {
		c.fault(at+".output", "%d is more than max_output, %d: want at most that", r.Output, r.MaxOutput)
	}
	return r
}
