package envoyapi

import (
	aiv3 "github.com/envoyproxy/go-control-plane/envoy/data/ai/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/tiergate/tiergate/internal/quota"
)

// UsageNamespace is where Envoy's json_to_metadata and sse_to_metadata filters put
// the usage that a response reports, under the names of the counts below.
const UsageNamespace = "tiergate.usage"

// tokenUsageNamespace is where the ai_protocol_manager filter puts it, as a typed
// envoy.data.ai.v3.TokenUsage.
const tokenUsageNamespace = "envoy.ai.token_usage" //nolint:gosec // the name of a namespace, no credential

// counts are what a response says of its usage; quota.Unknown is missing. OpenAI's chat and
// embeddings APIs say prompt and completion, its other APIs input and output, with cached as
// a part of the input. Anthropic's says input, with cache_read and cache_write beside it.
type counts struct {
	input, cached, cacheRead, cacheWrite, output, total int64
}

// noCounts are those of a response that says nothing.
func noCounts() counts {
	return counts{quota.Unknown, quota.Unknown, quota.Unknown, quota.Unknown, quota.Unknown, quota.Unknown}
}

// set notes a count; one with another name is none.
func (c *counts) set(name string, n int64) {
	switch name {
	case "input":
		c.input = n
	case "cached":
		c.cached = n
	case "cache_read":
		c.cacheRead = n
	case "cache_write":
		c.cacheWrite = n
	case "output":
		c.output = n
	case "total":
		c.total = n
	}
}

// usage puts the counts in order.
func (c *counts) usage() quota.Usage {
	u := quota.Usage{Input: c.input, CachedInput: c.cached, Output: c.output, Total: c.total}
	if u.Input != quota.Unknown {
		u.Input += max(c.cacheRead, 0) + max(c.cacheWrite, 0)
	}
	if c.cacheRead != quota.Unknown {
		u.CachedInput = max(u.CachedInput, 0) + c.cacheRead
	}
	return u
}

// metadataCounts are those of the usage namespace.
func metadataCounts(fields map[string]*structpb.Value) counts {
	c := noCounts()
	for name, v := range fields {
		c.set(name, tokens(text(v)))
	}
	return c
}

// unpackUsage reads the usage in a typed metadata value: none where it holds none. What was read in
// part may be that of the middle of a stream.
func (a *answered) unpackUsage(typed *anypb.Any) {
	var u aiv3.TokenUsage
	if typed.UnmarshalTo(&u) != nil {
		return
	}
	a.usage = typedUsage(&u)
	a.partial = u.GetExtractionStatus() == aiv3.TokenUsage_PARTIAL && a.usage != quota.NoUsage()
}

// typedUsage reads the usage that the ai_protocol_manager filter found. Its counts
// already follow one convention for all protocols: those from a cache are a part
// of the input. What the provider reports in all may have tokens that are in neither count.
func typedUsage(u *aiv3.TokenUsage) quota.Usage {
	number := func(v *wrapperspb.UInt64Value) int64 {
		if v == nil {
			return quota.Unknown
		}
		return int64(min(v.GetValue(), uint64(quota.MaxCost))) //nolint:gosec // not above MaxCost
	}
	return quota.Usage{
		Input: number(u.GetInputTokens()), CachedInput: number(u.GetInputTokenDetails().GetCachedTokens()),
		Output: number(u.GetOutputTokens()), Total: max(number(u.GetTotalTokens()), number(u.GetProviderTotalTokens())),
	}
}
