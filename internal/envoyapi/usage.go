package envoyapi

import (
	aiv3 "github.com/envoyproxy/go-control-plane/envoy/data/ai/v3"
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

// counts are what a response says of its usage, by name; quota.Unknown is missing.
type counts func(name string) int64

// The names of counts. OpenAI's chat and embeddings APIs say prompt and
// completion, its other APIs input and output, with cached as a part of the
// input. Anthropic's says input, with cache_read and cache_write beside it.
const (
	inputCount      = "input"
	cachedCount     = "cached"
	cacheReadCount  = "cache_read"
	cacheWriteCount = "cache_write"
	outputCount     = "output"
	totalCount      = "total"
)

// readUsage puts the counts in order.
func readUsage(c counts) quota.Usage {
	u := quota.Usage{Input: c(inputCount), CachedInput: c(cachedCount), Output: c(outputCount), Total: c(totalCount)}
	read, write := c(cacheReadCount), c(cacheWriteCount)
	if u.Input != quota.Unknown {
		u.Input += max(read, 0) + max(write, 0)
	}
	if read != quota.Unknown {
		u.CachedInput = max(u.CachedInput, 0) + read
	}
	return u
}

// metadataCounts are those of the usage namespace.
func metadataCounts(fields map[string]*structpb.Value) counts {
	return func(name string) int64 {
		v, ok := fields[name]
		if !ok {
			return quota.Unknown
		}
		return tokens(text(v))
	}
}

// typedUsage reads the usage that the ai_protocol_manager filter found. Its counts
// already follow one convention for all protocols: those from a cache are a part
// of the input.
func typedUsage(u *aiv3.TokenUsage) quota.Usage {
	number := func(v *wrapperspb.UInt64Value) int64 {
		if v == nil {
			return quota.Unknown
		}
		return int64(min(v.GetValue(), uint64(quota.MaxCost))) //nolint:gosec // not above MaxCost
	}
	total := number(u.GetTotalTokens())
	if total == quota.Unknown {
		total = number(u.GetProviderTotalTokens())
	}
	return quota.Usage{
		Input: number(u.GetInputTokens()), CachedInput: number(u.GetInputTokenDetails().GetCachedTokens()),
		Output: number(u.GetOutputTokens()), Total: total,
	}
}
