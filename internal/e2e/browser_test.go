package e2e

import (
	"cmp"
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/tiergate/tiergate/internal/devstack"
)

// browserPatience is how long a page may take to show what a test waits for, on a busy
// machine.
const browserPatience = 20 * time.Second

// A tab is a page in a real Chromium.
type tab struct {
	t   *testing.T
	ctx context.Context //nolint:containedctx // what chromedp knows a tab by

	mu       sync.Mutex
	problems []string // what the browser complained of
	asked    []string // the addresses of all requests
}

// browse opens a tab in a browser of its own. When the test ends, there must have been
// no complaint: no error in a script, no breach of the Content-Security-Policy.
func browse(t *testing.T) *tab {
	t.Helper()
	allocator, stop := chromedp.NewExecAllocator(context.Background(), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.Headless,
		chromedp.NoFirstRun, chromedp.UserDataDir(t.TempDir()), chromedp.Flag("disable-dev-shm-usage", true), chromedp.Flag("lang", "en"))
	ctx, cancel := chromedp.NewContext(allocator)
	b := &tab{t: t, ctx: ctx}
	t.Cleanup(func() {
		b.check()
		cancel()
		stop()
	})
	if err := chromedp.Listen(ctx, b.listen); err != nil {
		t.Fatalf("start Chromium: %v", err)
	}
	b.size(1280, 900)
	return b
}

func (b *tab) listen(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *log.EventEntryAdded:
		// An answer that is no success is also a line in the log.
		if e.Entry.Level == log.EntryLevelError && e.Entry.Source != log.EntrySourceNetwork {
			b.problems = append(b.problems, string(e.Entry.Source)+": "+e.Entry.Text)
		}
	case *runtime.EventExceptionThrown:
		b.problems = append(b.problems, "exception: "+e.ExceptionDetails.Text)
	case *network.EventRequestWillBeSent:
		b.asked = append(b.asked, e.Request.URL)
	}
}

// complaints returns what the browser has complained of so far.
func (b *tab) complaints() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.problems)
}

func (b *tab) check() {
	for _, p := range b.complaints() {
		b.t.Errorf("the browser: %s", p)
	}
}

// hosts returns whom the page has asked for anything.
func (b *tab) hosts() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var hosts []string
	for _, url := range b.asked {
		_, rest, _ := strings.Cut(url, "://")
		host, _, _ := strings.Cut(rest, "/")
		if !slices.Contains(hosts, host) && !strings.HasPrefix(url, "data:") {
			hosts = append(hosts, host)
		}
	}
	return hosts
}

// do runs steps, which must succeed in time.
func (b *tab) do(what string, steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, browserPatience)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		b.save("failed")
		b.t.Fatalf("%s: %v\n%s", what, err, b.text("body"))
	}
}

func (b *tab) size(width, height int64) {
	b.t.Helper()
	b.do("set the size", chromedp.EmulateViewport(width, height))
}

// text returns what an element shows, or "".
func (b *tab) text(selector string) string {
	ctx, cancel := context.WithTimeout(b.ctx, browserPatience)
	defer cancel()
	text, _ := chromedp.Run(ctx, chromedp.Evaluate[string](`document.querySelector("`+selector+`")?.innerText ?? ""`))
	return text
}

// evaluate runs a script in the page.
func evaluate[T any](b *tab, script string, options ...chromedp.EvaluateOption) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, browserPatience)
	defer cancel()
	value, err := chromedp.Run(ctx, chromedp.Evaluate[T](script, options...))
	if err != nil {
		b.t.Fatalf("%.1000s: %v", script, err)
	}
	return value
}

// awaitText waits until an element shows a text.
func (b *tab) awaitText(selector, text string) {
	b.t.Helper()
	if !trueWithin(browserPatience, func() bool { return strings.Contains(b.text(selector), text) }) {
		b.save("failed")
		b.t.Fatalf("%s does not show %q:\n%s", selector, text, b.text("body"))
	}
}

// signIn signs in to a stack's dashboard with a key, as a person does.
func (b *tab) signIn(s *devstack.Stack, key string) {
	b.t.Helper()
	b.do("sign in", chromedp.Navigate("http://"+s.API+"/dashboard"), chromedp.WaitVisible("input[name=key]"),
		chromedp.SendKeys("input[name=key]", key), chromedp.Submit("input[name=key]"), chromedp.WaitVisible("#view-now .body"))
}

// totals reads the sums of the view of usage.
func (b *tab) totals() map[string]int64 {
	texts := evaluate[map[string]string](b, `Object.fromEntries([...document.querySelectorAll("#totals dt")].map((d) => [d.innerText, d.parentElement.querySelector("dd").firstChild.textContent]))`)
	facts := map[string]int64{}
	for name, text := range texts {
		n, err := strconv.ParseInt(strings.ReplaceAll(text, ",", ""), 10, 64)
		if err != nil {
			n = -1
		}
		facts[name] = n
	}
	return facts
}

// save keeps a picture of the page, in the directory that TIERGATE_SCREENSHOTS names,
// else in .cache/screenshots.
func (b *tab) save(name string) {
	b.t.Helper()
	dir := cmp.Or(os.Getenv("TIERGATE_SCREENSHOTS"), filepath.Join(root, ".cache", "screenshots"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(b.ctx, browserPatience)
	defer cancel()
	picture, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
	if err != nil {
		b.t.Errorf("picture %s: %v", name, err)
		return
	}
	if err := os.WriteFile(filepath.Join(dir, name+".png"), picture, 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// TestBrowserSeesBreaches: what the other tests rely on to fail.
func TestBrowserSeesBreaches(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Security-Policy", "default-src 'none'; script-src 'self'")
		_, _ = w.Write([]byte(`<!doctype html><p>seen</p><script>document.body.textContent = "run"</script>`))
	}))
	defer server.Close()
	b := browse(t)
	b.do("open", chromedp.Navigate(server.URL))
	b.awaitText("body", "seen")
	if !trueWithin(browserPatience, func() bool { return len(b.complaints()) > 0 }) || !strings.Contains(b.complaints()[0], "Content Security Policy") {
		t.Errorf("complaints: %q", b.complaints())
	}
	if want := []string{strings.TrimPrefix(server.URL, "http://")}; !slices.Equal(b.hosts(), want) {
		t.Errorf("asked %q, want %q", b.hosts(), want)
	}
	b.problems = nil
}
