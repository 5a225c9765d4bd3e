package apierror

import (
	"testing"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/quota"
)

// TestOfKey names the header that the configuration names first, and says no more of a key than its
// holder may know.
func TestOfKey(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]string{
		"authorization": "Missing API key. Send it in a header: Authorization: Bearer YOUR_API_KEY.",
		"x-api-key":     "Missing API key. Send it in a header: x-api-key: YOUR_API_KEY.",
	} {
		if e := OfKey(apikey.ErrMissing, []string{header, "api-key"}); e.Message != want || e.Code != "missing_api_key" {
			t.Errorf("%+v, want %q", e, want)
		}
	}
	for err, want := range map[error]Error{
		apikey.ErrSeveral:   {"authentication_error", "Invalid API key: the request carries more than one. Send exactly one.", "invalid_api_key"},
		apikey.ErrRevoked:   {"authentication_error", "This API key has been revoked.", "revoked_api_key"},
		apikey.ErrExpired:   {"authentication_error", "This API key has expired.", "expired_api_key"},
		apikey.ErrUnknown:   {"authentication_error", "Invalid API key.", "invalid_api_key"},
		apikey.ErrMalformed: {"authentication_error", "Invalid API key.", "invalid_api_key"},
	} {
		if e := OfKey(err, []string{"authorization"}); e != want {
			t.Errorf("%v: %+v, want %+v", err, e, want)
		}
	}
}

// TestTooLarge says which limit it is, and what would help.
func TestTooLarge(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		limit    quota.Limit
		declared int64
		want     string
	}{
		{
			quota.Limit{Metric: quota.Tokens, Window: quota.Minute, Max: 40_000},
			50_000,
			"Request too large: it asks for 50000 tokens, and all that this API key may use per minute is 40000. Ask for less, as with a lower max_tokens.",
		},
		{
			quota.Limit{Metric: quota.OutputTokens, Window: quota.Day, Max: 40, Resource: "images", Priority: quota.Low},
			50,
			"Request too large: it asks for 50 output tokens, and all that this API key may use per day for images at low priority is 40. Ask for less, as with a lower max_tokens.",
		},
		{
			quota.Limit{Metric: quota.InputTokens, Window: quota.Minute, Max: 40},
			50,
			"Request too large: it asks for 50 input tokens, and all that this API key may use per minute is 40. Send less at once.",
		},
		{
			quota.Limit{Metric: quota.Requests, Window: quota.Minute, Max: 5, Resource: "images"},
			6,
			"Request too large: it asks for 6 requests, and all that this API key may use per minute for images is 5. Send fewer at once.",
		},
		{
			quota.Limit{Metric: quota.Tokens, Window: quota.Minute},
			1,
			"Request too large: it asks for 1 tokens, and all that this API key may use per minute is 0.",
		},
	} {
		e := TooLarge(quota.Decision{RefusedBy: c.limit, Declared: c.declared})
		if e.Message != c.want || e.Type != "invalid_request_error" || e.Code != "request_too_large" {
			t.Errorf("%+v, want %q", e, c.want)
		}
	}
}
