package envoyapi

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// A problem is the error object of a refused request's body. Clients of the
// contract look for "rate_limit" in the text to decide whether to try again, so
// only a 429 has it.
type problem struct {
	Type    string `json:"type"`
	Message string `json:"message"`
	Code    string `json:"code"`
}

//nolint:gochecknoglobals // constants in all but name: nothing writes to them
var (
	missingKey = problem{
		"authentication_error", "Missing API key. Send it in a header: Authorization: Bearer YOUR_API_KEY.", "missing_api_key",
	}
	invalidKey = problem{"authentication_error", "Invalid API key.", "invalid_api_key"}
	twoKeys    = problem{
		"authentication_error", "Invalid API key: the request carries more than one. Send exactly one.", "invalid_api_key",
	}
	revokedKey  = problem{"authentication_error", "This API key has been revoked.", "revoked_api_key"}
	expiredKey  = problem{"authentication_error", "This API key has expired.", "expired_api_key"}
	unavailable = problem{"server_error", "Quotas cannot be checked at the moment. Please try again shortly.", "limiter_unavailable"}
)

func notAllowed(resource string) problem {
	return problem{"permission_error", "This API key may not use the resource " + resource + ".", "resource_not_allowed"}
}

// tooMany is the contract's 429. Its message is read by clients: always whole
// seconds, always the word "seconds".
func tooMany(wait time.Duration) problem {
	return problem{
		"rate_limit_error",
		fmt.Sprintf("Rate limit exceeded. Please retry after %d seconds.", up(wait, time.Second)),
		"rate_limit_exceeded",
	}
}

// tooLarge is the refusal of what can never pass. Clients of the contract must not
// try it again, so its text does not speak of a limited rate.
func tooLarge(d quota.Decision) problem {
	what := strings.ReplaceAll(d.RefusedBy.Metric.String(), "_", " ")
	return problem{
		"invalid_request_error",
		fmt.Sprintf("Request too large: it asks for %d %s, and all that this API key may use per %s is %d. Ask for less, as with a lower max_tokens.",
			d.Declared, what, d.RefusedBy.Window, d.RefusedBy.Max),
		"request_too_large",
	}
}

// body returns the JSON of a refusal, laid out as in the contract.
func (p problem) body() string {
	text, err := json.MarshalIndent(map[string]problem{"error": p}, "", "  ")
	if err != nil { // three strings always encode
		return `{"error": {"type": "server_error", "message": "", "code": "internal"}}`
	}
	return string(text)
}

// up rounds a wait up to whole units, at least 1.
func up(wait, unit time.Duration) int64 { return max(1, int64((wait+unit-1)/unit)) }
