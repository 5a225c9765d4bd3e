package e2e

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/tiergate/tiergate/internal/devstack"
)

// askFromPage is what a page does with an API elsewhere: it asks until it is refused, and notes
// of each answer what it may see.
const askFromPage = `(async () => {
	const seen = [];
	for (const [path, body] of [...Array(9).fill(["/v1/chat/completions", {}]), ["/v1/chat/completions", {stream: true}], ["/v1/limits"], ["/v1/chat/completions", {}]]) {
		const request = {headers: {Authorization: "Bearer sk-demo-free"}};
		if (body) {
			Object.assign(request, {method: "POST", body: JSON.stringify(body)});
			Object.assign(request.headers, {"Content-Type": "application/json", "X-Stainless-Lang": "js"});
		}
		const response = await fetch("http://API" + path, request);
		seen.push({Status: response.status, Header: Object.fromEntries([...response.headers].map(([n, v]) => [n, [v]])), Body: await response.text()});
	}
	return seen;
})()`

// seenByPage is an answer as a page sees it.
type seenByPage struct {
	Status int
	Header map[string][]string
	Body   string
}

func (s seenByPage) reply() reply {
	r := reply{&http.Response{Status: strconv.Itoa(s.Status), StatusCode: s.Status, Header: http.Header{}, Request: &http.Request{URL: &url.URL{}}}, s.Body}
	for name, values := range s.Header {
		r.Header[http.CanonicalHeaderKey(name)] = values
	}
	return r
}

// TestCallersInBrowsers: with the document's filter and policy, a page of an allowed origin may
// ask, and see the six headers and what a 429 says, in a real browser; a page of another may not.
// What the browser asks before is answered without a key, and not charged.
func TestCallersInBrowsers(t *testing.T) {
	both(t, func(t *testing.T, chain string) {
		pages := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Type", "text/html") }))
		defer pages.Close()
		s := up(t, devstack.Options{Chain: chain, EditEnvoy: func(file []byte) []byte { return allowing(t, file, pages.URL) }})
		b := browse(t)
		b.do("open a page", chromedp.Navigate(pages.URL))
		freshMinute(t, 15*time.Second)
		before := time.Now()
		seen := evaluate[[]seenByPage](b, strings.ReplaceAll(askFromPage, "API", s.API), chromedp.EvalAwaitPromise)
		for i, answer := range seen[:10] {
			r := answer.reply()
			if r.StatusCode != http.StatusOK {
				t.Errorf("%s: %s", r.Status, r.body)
			}
			checkSix(t, r, "10", strconv.Itoa(9-i), "chat", strconv.Itoa(i+1), "1")
		}
		if stream := seen[9].reply(); stream.Header.Get("Content-Type") != "text/event-stream" || !strings.HasSuffix(stream.body, "data: [DONE]\n\n") {
			t.Errorf("the stream: %v %s", stream.Header, stream.body)
		}
		if limits := seen[10].reply(); limits.StatusCode != http.StatusOK || !strings.Contains(limits.body, `"key_demo_free"`) {
			t.Errorf("/v1/limits: %s: %s", limits.Status, limits.body)
		}
		checkLimited(t, seen[11].reply(), before)

		// What Envoy says in place of an answer that it held back passes no filter.
		for how, want := range map[string]string{"X-Mock-Status: 500": pages.URL, "X-Mock-Break: start": pages.URL, "X-Mock-Break: length": ""} {
			name, value, _ := strings.Cut(how, ": ")
			r := do(t, s, call{key: "sk-demo-pro", header: http.Header{name: {value}, "Origin": {pages.URL}}})
			if have := r.Header.Get("Access-Control-Allow-Origin"); r.StatusCode < 500 || have != want {
				t.Errorf("%s: %s %v, want the origin %q allowed", how, r.Status, r.Header, want)
			}
		}
		ask := http.Header{"Access-Control-Request-Method": {"POST"}, "Access-Control-Request-Headers": {"authorization"}}
		for origin, want := range map[string]string{pages.URL: pages.URL, "https://elsewhere.example.com": ""} {
			ask.Set("Origin", origin)
			r := do(t, s, call{method: http.MethodOptions, header: ask})
			if have := r.Header.Get("Access-Control-Allow-Origin"); have != want || r.Header.Get("Access-Control-Allow-Credentials") != "" {
				t.Errorf("%s: %s %v, want the origin %q allowed", origin, r.Status, r.Header, want)
			}
			checkOnce(t, origin, r)
		}
	})
}

// allowing puts the document's filter and policy into an Envoy file, for the pages of an origin.
func allowing(t *testing.T, file []byte, origin string) []byte {
	t.Helper()
	policy := mapping(t, replaced(t, block(t, "yaml virtual_host cors"), "https://app.example.com", origin))
	return edited(t, string(file), func(doc map[string]any) {
		insertBeside(doc, "envoy.filters.http.local_ratelimit", 0, mapping(t, block(t, "yaml filter cors")))
		walk(doc, func(name string, list []any) []any {
			if name == "virtual_hosts" {
				maps.Copy(list[0].(map[string]any), policy)
			}
			return list
		})
	})
}
