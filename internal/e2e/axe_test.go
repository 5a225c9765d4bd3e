package e2e

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/chromedp"
)

// axeFiles names what axe is installed from.
const axeFiles = "testdata/axe"

// axe returns the script of axe-core, which finds what keeps people out of a page.
var axe = sync.OnceValues(func() (string, error) {
	packages, err := installNode(axeFiles)
	if err != nil {
		return "", err
	}
	script, err := os.ReadFile(filepath.Join(packages, "axe-core", "axe.min.js"))
	return string(script), err
})

// barriers returns what axe-core finds in the page as it is, but for what it calls minor.
func (b *tab) barriers() []string {
	b.t.Helper()
	script, err := axe()
	if err != nil {
		b.t.Fatal(err)
	}
	evaluate[int](b, script+"; 0")
	return evaluate[[]string](b, `axe.run({resultTypes: ["violations"]}).then(({violations}) => violations
		.filter((v) => v.impact !== "minor")
		.map((v) => v.id + ": " + v.nodes.map((n) => n.target.join(" ")).join(", ")))`, chromedp.EvalAwaitPromise)
}

// TestAxeFindsBarriers: what the tests of the dashboards rely on to fail.
func TestAxeFindsBarriers(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Security-Policy", "default-src 'none'")
		_, _ = w.Write([]byte(`<!doctype html><html lang="en"><title>Page</title><main><h1>Page</h1><p>seen</p><input></main>`))
	}))
	defer server.Close()
	b := browse(t)
	b.do("open", chromedp.Navigate(server.URL))
	b.awaitText("body", "seen")
	if found := b.barriers(); len(found) != 1 || !strings.HasPrefix(found[0], "label: input") {
		t.Errorf("found %q", found)
	}
}
