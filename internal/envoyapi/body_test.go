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
		"a negative length":   {"POST", "-1", map[string]string{"read": "yes"}, quota.Body{Bytes: quota.Unknown, Read: true, Declared: quota.Unknown, Choices: 1}},
		"the largest":         {"POST", "1", map[string]string{"max_tokens": "1", "max_completion_tokens": "2e3", "max_output_tokens": "5.5"}, quota.Body{Bytes: 1, Read: true, Declared: 2000, Choices: 1}},
		"choices":             {"POST", "1", map[string]string{"n": "3", "best_of": "2"}, quota.Body{Bytes: 1, Read: true, Declared: quota.Unknown, Choices: 3}},
		"nonsense":            {"POST", "1", map[string]string{"n": "NaN", "max_tokens": "-3", "max_output_tokens": "Inf"}, quota.Body{Bytes: 1, Read: true, Declared: quota.MaxCost, Choices: 1}},
	} {
		if have, _ := readBody(c.method, c.contentLength, func(name string) string { return c.facts[name] }); have != c.want {
			t.Errorf("%s: %+v, want %+v", name, have, c.want)
		}
	}
}
