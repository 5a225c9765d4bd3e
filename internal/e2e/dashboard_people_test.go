package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/tiergate/tiergate/internal/devstack"
)

// press presses Enter at an element.
func (b *tab) press(selector string) {
	b.t.Helper()
	b.do("press "+selector, chromedp.Focus(selector), chromedp.KeyEvent(kb.Enter))
}

// refreshed waits until a section has been fetched anew.
func (b *tab) refreshed(section string) {
	b.t.Helper()
	before := b.text(section + " .fresh")
	if !trueWithin(browserPatience, func() bool { return b.text(section+" .fresh") != before }) {
		b.t.Fatalf("%s has not been fetched again since: %s", section, before)
	}
}

// signInOperator signs in to a stack's dashboard of operators, as a person does.
func (b *tab) signInOperator(s *devstack.Stack) {
	b.t.Helper()
	b.operate(s, "/", "input[name=token]")
	b.enterToken(s)
}

// enterToken does the rest of it, where the page that asks for the token is open, and returns that.
func (b *tab) enterToken(s *devstack.Stack) string {
	b.t.Helper()
	token, err := os.ReadFile(s.AdminTokenFile())
	if err != nil {
		b.t.Fatal(err)
	}
	b.do("sign in", chromedp.SendKeys("input[name=token]", string(token)), chromedp.Submit("input[name=token]"), chromedp.WaitVisible("#now .body"))
	return string(token)
}

// TestDashboardsByKeyboard: who has no mouse stays where they are when they skip to the
// content, and when what they are at is fetched anew.
func TestDashboardsByKeyboard(t *testing.T) {
	t.Parallel()
	s := up(t, devstack.Options{})
	secret, id := createKey(t, s, "--tier", "free", "--name", "Ada")
	b := browse(t)
	b.signIn(s, secret)
	b.view("usage")
	b.press(".skip")
	if !trueWithin(browserPatience, func() bool { return evaluate[string](b, "document.activeElement.id") == "main" }) {
		t.Errorf("the focus is not at the content")
	}
	if evaluate[bool](b, `document.getElementById("view-usage").hidden`) {
		t.Errorf("skipping to the content of the view of usage leads to\n%s", b.text("main"))
	}

	do(t, s, call{key: secret})
	b.signInOperator(s)
	b.awaitText("#top", "Ada")
	b.do("go to the key", chromedp.Focus("#top a"))
	b.refreshed("#standing")
	if at, want := evaluate[string](b, `document.activeElement.getAttribute("href") ?? document.activeElement.tagName`), "/dashboard/keys/"+id; at != want {
		t.Errorf("when the list was fetched anew the focus was at %s, want %s", at, want)
	}
}

// TestDashboardsOfLongNames: a name that cannot be broken at a word makes no page wider
// than the screen.
func TestDashboardsOfLongNames(t *testing.T) {
	t.Parallel()
	s := up(t, devstack.Options{})
	long := strings.Repeat("N", 256)
	_, id := createKey(t, s, "--tier", "free", "--name", long, "--owner", long, "--label", "team="+long, "--id", strings.Repeat("i", 64))
	admin(t, s, "keys", "revoke", id, "--reason", long)
	secret, _ := createKey(t, s, "--tier", "free", "--name", long, "--owner", long)
	do(t, s, call{key: secret})
	b := browse(t)
	fits := func(page string) {
		t.Helper()
		for _, width := range []int64{1280, 768, 360} {
			b.size(width, 900)
			wide := 0
			if !trueWithin(browserPatience, func() bool {
				wide = evaluate[int](b, `Math.max(document.documentElement.scrollWidth, ...[...document.querySelectorAll("#top, #events")].map((e) => e.scrollWidth))`)
				return wide <= int(width)
			}) {
				t.Errorf("%s is %d pixels wide on a screen of %d", page, wide, width)
			}
		}
	}
	b.signIn(s, secret)
	fits("the customers' page")
	b.signInOperator(s)
	b.awaitText("#top", long)
	fits("the overview")
	b.operate(s, "/dashboard/keys?q=N", "#list table")
	fits("the list of keys")
	b.operate(s, "/dashboard/keys/"+id, "#record .body")
	b.awaitText("#events", long)
	fits("the page of a key")
}

// TestSecretIsNotSearchedFor: a key that somebody enters in place of its ID, with what stands
// before it in a header, in capitals or not, is in no address, also when the list is fetched anew.
func TestSecretIsNotSearchedFor(t *testing.T) {
	t.Parallel()
	s := up(t, devstack.Options{})
	secret, _ := createKey(t, s, "--tier", "free", "--name", "Ada")
	b := browse(t)
	b.signInOperator(s)
	for _, text := range []string{"Bearer " + secret, strings.ToUpper(secret)} {
		b.operate(s, "/dashboard/keys", "#list table")
		b.do("search for a key", chromedp.SendKeys("#q", text))
		b.refreshed("#keys")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, address := range b.asked {
		if strings.Contains(strings.ToLower(address), "tg_live_") {
			t.Errorf("asked for %s", address)
		}
	}
}

// TestSearchIsInTheAddressOnceItFinds: the way back from a key leads to the list that was seen,
// and a key of somebody else's making that is entered in place of an ID is in no history.
func TestSearchIsInTheAddressOnceItFinds(t *testing.T) {
	t.Parallel()
	s := up(t, devstack.Options{})
	_, id := createKey(t, s, "--tier", "free", "--name", "Ada")
	b := browse(t)
	b.signInOperator(s)
	b.operate(s, "/dashboard/keys", "#list table")
	const address = "location.search"
	b.do("search for a name", chromedp.SetValue("#tier", "free"), chromedp.SendKeys("#q", "Ada"))
	eventually(t, "the address leads to what is found", func() bool { return evaluate[string](b, address) == "?q=Ada&tier=free" })
	evaluate[any](b, `document.querySelector("#list a").click()`) // the list is made anew now and then
	b.do("see the key", chromedp.WaitVisible("#record .body"))
	b.do("go back", chromedp.NavigateBack(), chromedp.WaitVisible("#list table"))
	if at := evaluate[string](b, address); at != "?q=Ada&tier=free" {
		t.Errorf("the way back leads to %s", at)
	}
	if text := b.text("#list"); !strings.Contains(text, id) || strings.Contains(text, "demo") {
		t.Errorf("the way back leads to\n%s", text)
	}
	b.do("search for a key", chromedp.SendKeys("#q", kb.Backspace+kb.Backspace+kb.Backspace+"sk-made-elsewhere-1\r"))
	b.awaitText("#list", "No key is like that")
	if at := evaluate[string](b, address); at != "?tier=free" {
		t.Errorf("what nobody is called is in the address: %s", at)
	}
}

// TestDashboardsOfOneInstance: while Redis is away, the pages say that the limits are
// those of one instance.
func TestDashboardsOfOneInstance(t *testing.T) {
	t.Parallel()
	const says = "The servers count each for themselves at the moment"
	s := up(t, devstack.Options{Store: "redis"})
	secret, id := createKey(t, s, "--tier", "free", "--name", "Ada")
	customer, operator := browse(t), browse(t)
	customer.signIn(s, secret)
	operator.signInOperator(s)
	operator.operate(s, "/dashboard/keys/"+id, "#limits-now .body")
	if text := customer.text("#view-now") + operator.text("#limits-now"); strings.Contains(text, says) {
		t.Errorf("with Redis: %s", text)
	}

	kill(t, s.Redis)
	customer.awaitText("#view-now", says)
	operator.awaitText("#limits-now", says)
	customer.pictures("customer-now-away")
	operator.pictures("operator-key-away")
	if err := s.StartRedis(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, b := range []*tab{customer, operator} {
		if !trueWithin(browserPatience, func() bool { return !strings.Contains(b.text("main"), says) }) {
			t.Errorf("when Redis is back: %s", b.text("main"))
		}
	}
}

// TestDashboardOfALimitOfZero: what a key has no room for at all is not said to come
// back.
func TestDashboardOfALimitOfZero(t *testing.T) {
	t.Parallel()
	s := up(t, devstack.Options{})
	secret, id := createKey(t, s, "--tier", "free")
	admin(t, s, "keys", "override", id, "--metric", "requests", "--per", "hour", "--resource", "images", "--max", "0")
	b := browse(t)
	b.signIn(s, secret)
	b.awaitText("#limits", "only images")
	card := evaluate[string](b, `[...document.querySelectorAll("#limits article")].find((a) => a.innerText.includes("only images")).innerText`)
	if !strings.Contains(card, "No room") || strings.Contains(card, "Resets") || strings.Contains(card, "Used up") {
		t.Errorf("a limit of 0 is shown as\n%s", card)
	}
}

// bulkKeys makes n keys.
func bulkKeys(t *testing.T, s *devstack.Stack, n int) {
	t.Helper()
	var keys strings.Builder
	for i := range n {
		fmt.Fprintf(&keys, "{\"id\": \"bulk_%03d\", \"secret\": \"sk-bulk-%03d-secret\", \"tier\": \"free\"}\n", i, i)
	}
	file := filepath.Join(t.TempDir(), "keys.json")
	if err := os.WriteFile(file, []byte(keys.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	admin(t, s, "keys", "import", file)
}

// TestNextIsTheNextPage: who chooses the next page twice before it is there gets it, and
// its place is said as it is.
func TestNextIsTheNextPage(t *testing.T) {
	t.Parallel()
	s := up(t, devstack.Options{})
	bulkKeys(t, s, 120)
	b := browse(t)
	b.signInOperator(s)
	b.operate(s, "/dashboard/keys?q=bulk", "#list table")
	b.do("choose the next page twice", chromedp.Evaluate[chromedp.Void](`void (document.getElementById("next").click(), document.getElementById("next").click())`))
	b.awaitText("#list", "bulk_050")
	b.awaitText("#place", "51 to 100")
}

// TestWhatAKeyLacksIsShown: the page of a key says that its tier, its pepper or that of its former secret is not
// configured.
func TestWhatAKeyLacksIsShown(t *testing.T) {
	t.Parallel()
	config := pepperedConfig(t)
	edit(t, config, "\ntiers:\n", "\ntiers:\n  gold: {priority: high, unlimited: true}\n")
	s := up(t, devstack.Options{Config: config})
	_, id := createKey(t, s, "--tier", "gold", "--pepper", "p1")
	admin(t, s, "keys", "rotate", id)
	b := browse(t)
	b.signInOperator(s)
	b.operate(s, "/dashboard/keys/"+id, "#facts")
	b.awaitText("#facts", "Former secret works until")
	if text := b.text("#facts"); strings.Contains(text, "not configured") {
		t.Errorf("all is configured: %s", text)
	}
	edit(t, config, "name: p1", "name: p2")
	edit(t, config, "  gold:", "  silver:")
	for _, lacks := range []string{"no such tier is configured: requests get 503", "not configured: the key gets 401", "not configured: the former secret gets 401"} {
		b.awaitText("#facts", lacks)
	}
}

// TestFocusGoesOn: what cannot be pressed any more hands the focus to what is beside it.
func TestFocusGoesOn(t *testing.T) {
	t.Parallel()
	s := up(t, devstack.Options{})
	bulkKeys(t, s, 60)
	b := browse(t)
	at := func(want string) {
		t.Helper()
		have := ""
		if !trueWithin(browserPatience, func() bool { have = evaluate[string](b, "document.activeElement.id"); return have == want }) {
			t.Errorf("the focus is at %q, want %q", have, want)
		}
	}
	b.signInOperator(s)
	b.operate(s, "/dashboard/keys?q=bulk", "#list table")
	b.press("#next")
	b.awaitText("#place", "51 to 60, the last")
	at("previous")
	b.press("#previous")
	b.awaitText("#place", "1 to 50")
	at("next")
	b.operate(s, "/dashboard/keys/bulk_000", "#revoke")
	b.press("#revoke")
	b.do("revoke", chromedp.WaitVisible("#revoke-dialog[open]"), chromedp.SendKeys("#confirm", "bulk_000"+kb.Enter), chromedp.WaitNotVisible("#revoke-dialog"))
	b.awaitText("#facts", "revoked")
	b.do("wait until it is not offered any more", chromedp.WaitNotVisible("#revoke"))
	at("key-title")
}
