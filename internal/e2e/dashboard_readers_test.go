package e2e

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"github.com/tiergate/tiergate/internal/devstack"
)

// TestDashboardsInForcedColours: where readers have colours of their own, as with Windows' contrast
// themes, bars, what is chosen and what the colours of a chart mean are still seen.
func TestDashboardsInForcedColours(t *testing.T) {
	t.Parallel()
	s := up(t, devstack.Options{})
	b := browse(t)
	b.media("forced-colors", "active")
	b.signIn(s, "sk-demo-free")
	freshMinute(t, 25*time.Second)
	do(t, s, call{key: "sk-demo-free"})
	b.awaitText("#limits", "1 of 10 used")
	b.save("customer-now-forced")
	b.differ("a bar", "backgroundColor", ".meter > div", "body")
	b.differ("the view that is open", "borderBottomColor", ".views [aria-current]", ".views :not([aria-current])")
	b.view("usage")
	b.awaitText("#totals", "Output tokens")
	b.save("customer-usage-forced")
	b.differ("what is chosen", "backgroundColor", ".choice label:has(:checked)", "body")
	b.differ("a colour of a chart", "backgroundColor", ".u-series:nth-child(2) .u-marker", "body")
}

// differ checks that one element is told from another by how it looks.
func (b *tab) differ(what, property, one, other string) {
	b.t.Helper()
	style := func(selector string) string {
		return evaluate[string](b, "getComputedStyle(document.querySelector(`"+selector+"`))."+property)
	}
	if have, beside := style(one), style(other); have == beside {
		b.t.Errorf("%s is not seen: %s is %s, as of what it is told from", what, property, have)
	}
}

// TestDashboardsWithoutScripts: the pages say what to do instead, and nothing that waits for ever.
func TestDashboardsWithoutScripts(t *testing.T) {
	t.Parallel()
	s := up(t, devstack.Options{})
	b := browse(t)
	b.signIn(s, "sk-demo-free")
	b.signInOperator(s)
	b.do("stop scripts", chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
		_, err := chromedp.Call(ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
		return err
	}))
	for _, page := range []string{s.API + "/dashboard", s.Options.Operator + "/dashboard", s.Options.Operator + "/dashboard/keys", s.Options.Operator + "/dashboard/keys/key_demo_free"} {
		b.do("open", chromedp.Navigate("http://"+page))
		b.awaitText("body", "Sign out")
		b.awaitText("main", "This page needs JavaScript. Without it, ")
		if text := b.text("main"); strings.Contains(text, "Loading") || strings.Contains(text, "Revoke") {
			t.Errorf("%s:\n%s", page, text)
		}
	}
}
