// Package apierror has the errors that clients of the API get, in the shape and the
// words of its contract, and the texts of its headers that more than one part writes.
//
// It does not know HTTP, nor who answers with them.
package apierror

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/quota"
)

// An Error is the error object of a refused request's body. Clients of the
// contract look for "rate_limit" in the text to decide whether to try again, so
// only a 429 has it.
type Error struct {
	Type    string `json:"type"`
	Message string `json:"message"`
	Code    string `json:"code"`
}

// Unavailable is the error while quotas cannot be checked.
//
//nolint:gochecknoglobals // a constant in all but name
var Unavailable = Error{"server_error", "Quotas cannot be checked at the moment. Please try again shortly.", "limiter_unavailable"}

// UsageUnavailable is the error while nobody can be told what was used.
//
//nolint:gochecknoglobals // a constant in all but name
var UsageUnavailable = Error{"server_error", "Usage cannot be read at the moment. Please try again shortly.", "usage_unavailable"}

// SessionOver is what the dashboard's pages are told when nobody is signed in any more.
//
//nolint:gochecknoglobals // a constant in all but name
var SessionOver = Error{"authentication_error", "You are not signed in, or your session is over. Sign in again.", "session_over"}

// Unidentified is the refusal of a request without a caller where callers are known by
// something else than an API key in a header.
//
//nolint:gochecknoglobals // a constant in all but name
var Unidentified = Error{"authentication_error", "Missing credentials: nothing says whose request this is, and an API key in a header is not accepted here. Sign in as this API's provider says.", "missing_api_key"}

// InvalidParameter is the refusal of a query's parameters. The error says which is wrong
// and what it may be; it must not repeat what was sent, which may be a secret or read "rate_limit".
func InvalidParameter(err error) Error {
	return Error{"invalid_request_error", "Invalid query parameters: " + err.Error() + ".", "invalid_parameter"}
}

// OfKey returns what a caller is told whose key is refused by a reason of package
// apikey: no more than the caller may know. The headers are those that may carry a key, in
// lower case; the first is the one to use.
func OfKey(err error, headers []string) Error {
	e := Error{"authentication_error", "Invalid API key.", "invalid_api_key"}
	switch {
	case errors.Is(err, apikey.ErrMissing):
		e.Message, e.Code = "Missing API key. Send it in a header: "+withKey(headers)+".", "missing_api_key"
	case errors.Is(err, apikey.ErrSeveral):
		e.Message = "Invalid API key: the request carries more than one. Send exactly one."
	case errors.Is(err, apikey.ErrRevoked):
		e.Message, e.Code = "This API key has been revoked.", "revoked_api_key"
	case errors.Is(err, apikey.ErrExpired):
		e.Message, e.Code = "This API key has expired.", "expired_api_key"
	}
	return e
}

// withKey shows how a request carries a key.
func withKey(headers []string) string {
	if headers[0] == "authorization" {
		return "Authorization: Bearer YOUR_API_KEY"
	}
	return headers[0] + ": YOUR_API_KEY"
}

// NotAllowed is the refusal of a resource that the key has no leave for.
func NotAllowed(resource string) Error {
	return Error{"permission_error", "This API key may not use the resource " + resource + ".", "resource_not_allowed"}
}

// TooMany is the contract's 429. Its message is read by clients: always whole
// seconds, always the word "seconds".
func TooMany(wait time.Duration) Error {
	return Error{
		"rate_limit_error",
		fmt.Sprintf("Rate limit exceeded. Please retry after %d seconds.", Up(wait, time.Second)),
		"rate_limit_exceeded",
	}
}

// TooLarge is the refusal of what can never pass. Clients of the contract must not
// try it again, so its text does not speak of a limited rate.
func TooLarge(d quota.Decision) Error {
	l := d.RefusedBy
	message := fmt.Sprintf("Request too large: it asks for %d %s, and all that this API key may use per %s", d.Declared, strings.ReplaceAll(l.Metric.String(), "_", " "), l.Window)
	if l.Resource != "" {
		message += " for " + l.Resource
	}
	if l.Priority != 0 {
		message += " at " + l.Priority.String() + " priority"
	}
	message += fmt.Sprintf(" is %d.", l.Max)
	switch {
	case l.Max == 0: // there is no less
	case l.Metric == quota.Requests:
		message += " Send fewer at once."
	case l.Metric == quota.InputTokens:
		message += " Send less at once."
	default:
		message += " Ask for less, as with a lower max_tokens."
	}
	return Error{"invalid_request_error", message, "request_too_large"}
}

// Body returns the JSON of a refusal, laid out as in the contract.
func (e Error) Body() string {
	text, err := json.MarshalIndent(map[string]Error{"error": e}, "", "  ")
	if err != nil { // three strings always encode
		return `{"error": {"type": "server_error", "message": "", "code": "internal"}}`
	}
	return string(text)
}

// Up rounds a wait up to whole units, at least 1.
func Up(wait, unit time.Duration) int64 { return max(1, int64((wait+unit-1)/unit)) }

// UpUnix returns a time in Unix seconds, rounded up, as X-RateLimit-Reset has it.
func UpUnix(t time.Time) int64 { return t.Add(time.Second - time.Nanosecond).Unix() }
