package envoyapi

import (
	"testing"

	"github.com/tiergate/tiergate/internal/quota"
)

func TestReadBody(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		method, contentLength string
		facts                 map[string]string
		want                  quota.Body
	}{
		"nobody reads":        {"POST", "40", nil, quota.Body{Bytes: 40, Read: true, Declared: quota.Unknown, Choices: 1}},
		"read":                {"POST", "40", map[string]string{"read": "yes", "max_tokens": "7"}, quota.Body{Bytes: 40, Read: true, Declared: 7, Choices: 1}},
		"not read":            {"POST", "40", map[string]string{"read": "no"}, quota.Body{Bytes: 40, Declared: quota.Unknown, Choices: 1}},
		"no length":           {"POST", "", map[string]string{"read": "yes"}, quota.Body{Bytes: quota.Unknown, Read: true, Declared: quota.Unknown, Choices: 1}},
		"nothing known":       {"POST", "", nil, quota.Body{Bytes: 1, Read: true, Declared: quota.Unknown, Choices: 1}},
		"no length, GET":      {"GET", "", nil, quota.Body{Bytes: 0, Read: true, Declared: quota.Unknown, Choices: 1}},
		"a length of nothing": {"POST", "0", nil, quota.Body{Bytes: 0, Read: true, Declared: quota.Unknown, Choices: 1}},
		"two lengths":         {"POST", "40,40", map[string]string{"read": "yes"}, quota.Body{Bytes: quota.Unknown, Read: true, Declared: quota.Unknown, Choices: 1}},
		"a negative length":   {"POST", "-7", map[string]string{"read": "yes"}, quota.Body{Bytes: quota.Unknown, Read: true, Declared: quota.Unknown, Choices: 1}},
		"the largest":         {"POST", "1", map[string]string{"max_tokens": "1", "max_completion_tokens": "2e3", "max_output_tokens": "5.5"}, quota.Body{Bytes: 1, Read: true, Declared: 2000, Choices: 1}},
		"0 is none":           {"POST", "1", map[string]string{"max_tokens": "0"}, quota.Body{Bytes: 1, Read: true, Declared: quota.Unknown, Choices: 1}},
		"choices":             {"POST", "1", map[string]string{"n": "3", "best_of": "2"}, quota.Body{Bytes: 1, Read: true, Declared: quota.Unknown, Choices: 3}},
		"nonsense":            {"POST", "1", map[string]string{"n": "NaN", "max_tokens": "-3", "max_output_tokens": "Inf"}, quota.Body{Bytes: 1, Read: true, Declared: quota.MaxCost, Choices: 1}},
	} {
		if have, _ := readBody(c.method, "", c.contentLength, func(name string) string { return c.facts[name] }); have != c.want {
			t.Errorf("%s: %+v, want %+v", name, have, c.want)
		}
	}
}

// TestMethodByDescriptors: the rate limit service hears of a method too, and that a request has
// no body.
func TestMethodByDescriptors(t *testing.T) {
	t.Parallel()
	g := newGate(t, withTokens)
	for _, c := range []struct{ method, remaining string }{{"GET", "1000"}, {"POST", "899"}} {
		a := limit(t, g, entry("api_key", "sk-pro"), entry("path", "/v1/chat"), entry("request.method", c.method))
		wantHeaders(t, a, map[string]string{"x-ratelimit-remaining-tokens": c.remaining})
	}
}

// TestDeclarationsOfEndpoints: what an endpoint does not know is no declaration to it, in
// any spelling of its path. Of one that is not known every name counts.
func TestDeclarationsOfEndpoints(t *testing.T) {
	t.Parallel()
	facts := map[string]string{"max_tokens": "1", "max_completion_tokens": "2", "max_output_tokens": "3"}
	for path, want := range map[string]int64{
		"":                             3,
		"/v1/anything":                 3,
		"/v1/chat/completions":         2,
		"/v1/chat/completions?x=/v1/y": 2,
		"//V1/chat/./completi%6Fns/":   2,
		"/v1/chat/completions;a=b":     2,
		"/deployments/a/completions":   1,
		"/v1/completions":              1,
		"/v1/messages":                 1,
		"/v1/responses":                3,
		"/v1/images/generations":       quota.Unknown,
		"/v1/audio/speech":             quota.Unknown,
		"/v1/audio":                    3,
		"/v1/messages/count_tokens":    quota.Unknown,
		"/v1/responses/input_tokens":   quota.Unknown,
	} {
		if have, _ := readBody("POST", path, "40", func(name string) string { return facts[name] }); have.Declared != want {
			t.Errorf("%q declares %d, want %d", path, have.Declared, want)
		}
	}
	only := func(name string) string { return map[string]string{"max_tokens": "1"}[name] }
	if have, _ := readBody("POST", "/v1/responses", "40", only); have.Declared != quota.Unknown {
		t.Errorf("max_tokens declares %d to /v1/responses", have.Declared)
	}
}

// TestBackground: whatever stands there but a plain no.
func TestBackground(t *testing.T) {
	t.Parallel()
	for said, want := range map[string]bool{"": false, "0": false, "false": false, "1": true, "true": true, "yes": true, "nonsense": true} {
		if have, _ := readBody("POST", "/v1/responses", "40", func(name string) string { return map[string]string{"background": said}[name] }); have.Background != want {
			t.Errorf("%q is in the background: %t", said, have.Background)
		}
	}
}
