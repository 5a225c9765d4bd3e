package e2e

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/mockai"
)

// A canned is an answer that the first request of a program gets; a second one
// succeeds.
type canned struct {
	status      int
	header      map[string]string
	requests    int64
	least, most float64 // seconds that the call takes
}

// inTwoSeconds is a header's value that the date in two seconds is put in the place of.
const inTwoSeconds = "in two seconds"

// testAnswers: a program does what each kind of answer asks for.
func testAnswers(t *testing.T, p program, answers map[string]canned) {
	t.Helper()
	const slack = 2.0 // seconds, for a busy machine
	for name, c := range answers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var requests atomic.Int64
			server := httptest.NewServer(c.handler(&requests))
			defer server.Close()
			r := start(t, p, server.URL, "sk-any", 1)
			lines := r.wait(t, int(2-c.requests))
			if len(lines) != 1 || requests.Load() != c.requests {
				t.Fatalf("%d requests, want %d: %+v %s", requests.Load(), c.requests, lines, &r.stderr)
			}
			l := lines[0]
			if l.Seconds < c.least || l.Seconds > c.most+slack {
				t.Errorf("took %.3f s, want %.1f to %.1f", l.Seconds, c.least, c.most)
			}
			failed := strings.Contains(l.Message, strconv.Itoa(c.status)) && strings.HasSuffix(l.Message, " no")
			if failed != (c.requests == 1) {
				t.Errorf("%+v", l)
			}
		})
	}
}

// handler gives the answer once, and then those of the mock API.
func (c canned) handler(requests *atomic.Int64) http.Handler {
	api := mockai.Handler()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if requests.Add(1) > 1 {
			api.ServeHTTP(w, r)
			return
		}
		for name, value := range c.header {
			if value == inTwoSeconds {
				value = time.Now().UTC().Add(2 * time.Second).Format(http.TimeFormat)
			}
			w.Header().Set(name, value)
		}
		w.WriteHeader(c.status)
		_, _ = io.WriteString(w, "no")
	})
}

// kindsOfAnswers are those that our retry code tells apart.
func kindsOfAnswers() map[string]canned {
	return map[string]canned{
		"milliseconds before seconds": {429, map[string]string{"Retry-After-Ms": "300", "Retry-After": "9"}, 2, 0.3, 0.8},
		"seconds":                     {429, map[string]string{"Retry-After": "1"}, 2, 1, 1.5},
		"a date":                      {429, map[string]string{"Retry-After": inTwoSeconds}, 2, 1, 2.5},
		"nothing said":                {429, nil, 2, 0.5, 1},
		"no time":                     {429, map[string]string{"Retry-After": "0"}, 2, 0.5, 1},
		"nonsense":                    {429, map[string]string{"Retry-After": "nan", "Retry-After-Ms": "soon"}, 2, 0.5, 1},
		"unavailable":                 {503, map[string]string{"Retry-After": "1"}, 2, 1, 1.5},
		"asked to retry":              {500, map[string]string{"X-Should-Retry": "true", "Retry-After-Ms": "200"}, 2, 0.2, 0.7},
		"told not to retry":           {429, map[string]string{"X-Should-Retry": "false", "Retry-After": "1"}, 1, 0, 0},
		"beyond the deadline":         {429, map[string]string{"Retry-After": "120"}, 1, 0, 0},
		"another error":               {500, nil, 1, 0, 0},
	}
}
