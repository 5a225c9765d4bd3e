package config

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/tiergate/tiergate/internal/quota"
)

var update = flag.Bool("update", false, "write what is, as what is wanted")

// TestFaults loads the configuration in each testdata/*.txtar and compares
// every fault with the part called want. The comment may hold --set flags, one
// a line. Parts that are left out are the shortest good ones.
func TestFaults(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := load(t, archive)
			for i, part := range archive.Files {
				switch {
				case part.Name != "want":
				case *update:
					archive.Files[i].Data = []byte(got)
					if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
						t.Fatal(err)
					}
				case got != string(part.Data):
					t.Errorf("faults:\n%s\nwant:\n%s", got, part.Data)
				}
			}
		})
	}
}

const (
	shortTiers = "tiers: {free: {priority: low, limits: [{metric: requests, per: minute, max: 10}]}}\n"
	shortKeys  = "keys: []\n"
)

// load returns the faults of an archive's configuration, as text.
func load(t *testing.T, archive *txtar.Archive) string {
	t.Helper()
	dir := t.TempDir()
	parts := map[string]string{"tiergate.yaml": shortTiers, "keys.yaml": shortKeys}
	for _, part := range archive.Files {
		parts[part.Name] = string(part.Data)
	}
	for name, content := range parts {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	options := Options{File: filepath.Join(dir, "tiergate.yaml"), Getenv: func(string) string { return "" }}
	for line := range strings.Lines(string(archive.Comment)) {
		if set, ok := strings.CutPrefix(strings.TrimSpace(line), "--set "); ok {
			options.Sets = append(options.Sets, set)
		}
	}
	_, _, err := Load(options)
	if err == nil {
		return "ok\n"
	}
	if !errors.As(err, new(Faults)) {
		t.Errorf("the error is no list of faults: %v", err)
	}
	return strings.ReplaceAll(err.Error(), dir+"/", "") + "\n"
}

func loadShipped(t *testing.T, sets ...string) *Config {
	t.Helper()
	c, _, err := Load(Options{File: "../../config/tiergate.yaml", Sets: sets})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestWhatWaitsForARestart: the sections of the file that only a start takes up are named.
func TestWhatWaitsForARestart(t *testing.T) {
	t.Parallel()
	shipped := loadShipped(t).Start
	for sets, want := range map[string]string{
		"":                          "",
		"count_by=key_and_resource": "",
		"grpc.address=127.0.0.1:9011 grpc.max_calls=7": "grpc",
		"operator.address=127.0.0.1:9012":              "operator.address",
		"customer.address=127.0.0.1:9013":              "customer",
		"log.level=debug log.format=json":              "log",
		"shutdown.delay=1s shutdown.timeout=1s":        "shutdown",
		"store.type=redis usage.interval=1s":           "store, usage",
		"usage.max_series=7 tracing.sample_ratio=1":    "usage, tracing",
	} {
		if have := strings.Join(loadShipped(t, strings.Fields(sets)...).Start.Changed(shipped), ", "); have != want {
			t.Errorf("%s: %q, want %q", sets, have, want)
		}
	}
}

// TestEveryStartValueHasASection of the file, which is named where its change waits for a
// restart.
func TestEveryStartValueHasASection(t *testing.T) {
	t.Parallel()
	sections := map[string]bool{}
	for _, field := range reflect.VisibleFields(reflect.TypeFor[file]()) {
		sections[yamlName(field)] = true
	}
	for _, field := range reflect.VisibleFields(reflect.TypeFor[Start]()) {
		section := field.Tag.Get("section")
		if name, _, _ := strings.Cut(section, "."); !sections[name] || name == "" {
			t.Errorf("Start.%s has the section %q, which the file has not: want a tag such as section:\"store\"", field.Name, section)
		}
	}
}

// TestEntryThatSaysNothing is a fault whatever ends its line: YAML knows more than Unix and Windows.
func TestEntryThatSaysNothing(t *testing.T) {
	t.Parallel()
	for _, lineEnd := range []string{"\n", "\r\n", "\r", "\u0085", "\u2028", "\u2029"} {
		for _, entry := range []string{"-", "- ", "- # x", "- null", "- Null", "- NULL", "- ~"} {
			for i, lines := range [][]string{{"names:", entry, "- x"}, {"names:", "- x", entry}} {
				var into struct{ Names []string }
				d := decode("file", []byte(strings.Join(lines, lineEnd)), &into)
				if want := fmt.Sprintf("file:%d: names[%d]: says nothing: fill it in, or take it away", i+2, i); d.faults.Error() != want {
					t.Errorf("%q with %q between lines: %q with %q: want %q", lines, lineEnd, d.faults.Error(), into.Names, want)
				}
			}
		}
	}
}

// TestShippedTiers are those of the contract, to the number.
func TestShippedTiers(t *testing.T) {
	t.Parallel()
	c := loadShipped(t)
	limits := func(rpm, tpm, rpd int64) []quota.Limit {
		return []quota.Limit{
			{Metric: quota.Requests, Window: quota.Minute, Max: rpm},
			{Metric: quota.Tokens, Window: quota.Minute, Max: tpm},
			{Metric: quota.Requests, Window: quota.Day, Max: rpd},
		}
	}
	for _, want := range []quota.Tier{
		{Name: "free", Priority: quota.Low, Limits: limits(10, 40_000, 500)},
		{Name: "basic", Priority: quota.Normal, Limits: limits(50, 200_000, 10_000)},
		{Name: "pro", Priority: quota.High, Limits: limits(100, 1_000_000, 100_000)},
		{Name: "enterprise", Priority: quota.Critical, Unlimited: true},
	} {
		have := c.Reload.Plans[want.Name].Tier
		if have.Priority != want.Priority || have.Unlimited != want.Unlimited || len(have.Limits) != len(want.Limits) {
			t.Errorf("%s: %+v, want %+v", want.Name, have, want)
			continue
		}
		for i, l := range want.Limits {
			if have.Limits[i] != l {
				t.Errorf("%s: %+v, want %+v", want.Name, have.Limits[i], l)
			}
		}
	}
	if len(c.Reload.Plans) != 4 || c.Reload.Directory.Len() != 4 || c.Reload.AllowDemoKeys || c.Start.Store.Redis {
		t.Errorf("%d tiers, %d keys, demo keys %t, redis %t", len(c.Reload.Plans), c.Reload.Directory.Len(),
			c.Reload.AllowDemoKeys, c.Start.Store.Redis)
	}
}

// TestSets replace values of the file.
func TestSets(t *testing.T) {
	t.Parallel()
	c := loadShipped(t, "allow_demo_keys=true", "grpc.address=unix:/run/tiergate.sock", "store.type=redis",
		"store.redis.address=redis:6380", "shutdown.delay=3s", "headers.unlimited=1000000")
	if !c.Reload.AllowDemoKeys || c.Start.GRPC != (Address{"unix", "/run/tiergate.sock"}) || c.Start.GRPC.String() != "unix:/run/tiergate.sock" ||
		!c.Start.Store.Redis || c.Start.Store.Address != "redis:6380" || c.Start.ShutdownDelay != 3*time.Second ||
		c.Reload.Unlimited.Text != "1000000" {
		t.Errorf("%+v %+v", c.Start, c.Reload)
	}
	if c.Start.Store.Timeout != 50*time.Millisecond || len(c.Reload.Plans) != 4 {
		t.Errorf("what no --set names has changed: %+v", c.Start.Store)
	}
}

// TestTokenSets: what is said of settlements and refunds is what is used.
func TestTokenSets(t *testing.T) {
	t.Parallel()
	if tokens := loadShipped(t, "tokens.settle_by=[ratelimit]").Reload.Tokens; tokens.SettleByAccessLog || !tokens.SettleByRateLimit {
		t.Errorf("by call alone: %+v", tokens)
	}
	if tokens := loadShipped(t, "tokens.settle_by=[access_log]").Reload.Tokens; !tokens.SettleByAccessLog || tokens.SettleByRateLimit {
		t.Errorf("by access log alone: %+v", tokens)
	}
	tokens := loadShipped(t, "tokens.refunds.statuses=[503]", "tokens.refunds.cached=true", "tokens.refunds.max_share=0.9").Reload.Tokens
	if !slices.Equal(tokens.RefundStatuses, []int{503}) || !tokens.RefundCached || tokens.RefundShare != 900 {
		t.Errorf("refunds: %+v", tokens)
	}
	for hits, want := range map[string]quota.Metric{"requests": quota.Requests, "tokens": quota.Tokens} {
		if c := loadShipped(t, "ratelimit.hits="+hits); c.Reload.RateLimit.Hits != want {
			t.Errorf("hits are %s, want %s", c.Reload.RateLimit.Hits, want)
		}
	}
}

// TestLoopback: only this machine reaches a socket, localhost and the addresses of loopback.
func TestLoopback(t *testing.T) {
	t.Parallel()
	for address, want := range map[Address]bool{
		{"unix", "/run/tiergate.sock"}: true,
		{"tcp", "127.0.0.1:9002"}:      true,
		{"tcp", "127.9.9.9:9002"}:      true,
		{"tcp", "[::1]:9002"}:          true,
		{"tcp", "localhost:9002"}:      true,
		{"tcp", "0.0.0.0:9002"}:        false,
		{"tcp", "[::]:9002"}:           false,
		{"tcp", ":9002"}:               false,
		{"tcp", "10.0.0.1:9002"}:       false,
		{"tcp", "tiergate:9002"}:       false,
	} {
		if address.Loopback() != want {
			t.Errorf("%s: %t, want %t", address, !want, want)
		}
	}
}

// TestSameRedis: a password is of use to the same servers and users alone.
func TestSameRedis(t *testing.T) {
	t.Parallel()
	s := Store{
		Redis: true, Address: "a:1", TLS: true, Username: "u", SentinelUsername: "s", SentinelMaster: "m",
		Sentinels: []string{"a:2"}, Cluster: []string{"a:3"},
	}
	same := s
	same.Timeout, same.PoolSize, same.KeyPrefix, same.Sentinels = time.Second, 7, "other:", []string{"a:2"}
	if !s.SameRedis(same) {
		t.Error("other settings make it another Redis")
	}
	for name, change := range map[string]func(*Store){
		"type":          func(s *Store) { s.Redis = false },
		"address":       func(s *Store) { s.Address = "b:1" },
		"TLS":           func(s *Store) { s.TLS = false },
		"user":          func(s *Store) { s.Username = "" },
		"Sentinel user": func(s *Store) { s.SentinelUsername = "" },
		"primary":       func(s *Store) { s.SentinelMaster = "n" },
		"Sentinels":     func(s *Store) { s.Sentinels = []string{"b:2"} },
		"Cluster":       func(s *Store) { s.Cluster = nil },
	} {
		other := s
		change(&other)
		if s.SameRedis(other) {
			t.Errorf("of another %s, and the same Redis", name)
		}
	}
}

// TestSecrets come from files and the environment, and are in no error.
func TestSecrets(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("tiergate.yaml", shortTiers+`
store: {type: redis, redis: {password_file: redis-password}}
keys: {peppers: [{name: p1, env: PEPPER}]}
`)
	write("keys.yaml", shortKeys)
	write("redis-password", "open-sesame\n")
	env := map[string]string{"PEPPER": "canary-pepper-0123456789"}
	options := Options{File: filepath.Join(dir, "tiergate.yaml"), Getenv: func(name string) string { return env[name] }}
	c, sources, err := Load(options)
	if err != nil {
		t.Fatal(err)
	}
	if c.Reload.Redis.Password.Reveal() != "open-sesame" || len(c.Reload.Peppers) != 1 || len(sources) != 3 {
		t.Errorf("%+v, %v", c, sources)
	}
	options.Sets = []string{"customer.session_secret_env=SESSION"}
	for length, want := range map[int]bool{31: false, 32: true} {
		env["SESSION"] = strings.Repeat("x", length)
		if c, _, err := Load(options); (err == nil) != want || (want && c.Start.SessionSecret.Reveal() != env["SESSION"]) {
			t.Errorf("a session secret of %d bytes: %v", length, err)
		}
	}
	options.Sets = nil
	env["PEPPER"] = "short"
	if _, _, err := Load(options); err == nil || strings.Contains(err.Error(), `"short"`) {
		t.Errorf("a short pepper: %v", err)
	}
}

// TestAdminTokens: of two tokens neither the name nor the secret is the same, so that each is
// somebody's; none is short, or has a blank that is easily lost.
func TestAdminTokens(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, content := range map[string]string{"tiergate.yaml": shortTiers, "keys.yaml": shortKeys} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	long := strings.Repeat("x", minToken)
	env := map[string]string{"ONE": long, "SAME": long, "OTHER": long + "y", "BLANK": long + " z", "SHORT": long[1:], "END": long + " "}
	for _, c := range []struct{ first, second, want string }{
		{"name: a, env: ONE", "name: b, env: OTHER", ""},
		{"name: a, env: ONE", "name: b, env: BLANK", ""},
		{"name: a, env: ONE", "name: a, env: OTHER", `tokens[1]: the token has the name or the secret of another`},
		{"name: a, env: ONE", "name: b, env: SAME", `tokens[1]: the token has the name or the secret of another`},
		{"name: a, env: ONE", "name: b, env: SHORT", `tokens[1]: the token has`},
		{"name: a, env: ONE", "name: b, env: END", `tokens[1]: the token begins or ends with a blank`},
		{"name: a, env: ONE", "name: b", `tokens[1]: no secret: want file or env`},
	} {
		_, _, err := Load(Options{
			File: filepath.Join(dir, "tiergate.yaml"), Getenv: func(name string) string { return env[name] },
			Sets: []string{"operator.tokens=[{" + c.first + "}, {" + c.second + "}]"},
		})
		if (err == nil) != (c.want == "") || (err != nil && !strings.Contains(err.Error(), c.want)) || (err != nil && strings.Contains(err.Error(), long[1:])) {
			t.Errorf("{%s}, {%s}: %v, want %s", c.first, c.second, err, c.want)
		}
	}
}

// TestSourcesSeeEveryChange: content, replacement, a swapped symbolic link,
// removal.
func TestSourcesSeeEveryChange(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link := filepath.Join(dir, "keys.yaml")
	write("one.yaml", shortKeys)
	write("two.yaml", shortKeys)
	write("tiergate.yaml", shortTiers)
	if err := os.Symlink("one.yaml", link); err != nil {
		t.Fatal(err)
	}
	sources := func() Sources {
		_, s, err := Load(Options{File: filepath.Join(dir, "tiergate.yaml")})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	before := sources()
	if !before.Now().Equal(before) {
		t.Fatal("a change is seen where there is none")
	}
	if err := errors.Join(os.Symlink("two.yaml", link+".new"), os.Rename(link+".new", link)); err != nil {
		t.Fatal(err)
	}
	if before.Now().Equal(before) {
		t.Error("a swapped link: no change is seen")
	}
	before = sources()
	write("tiergate.yaml", shortTiers+"# changed\n")
	if before.Now().Equal(before) {
		t.Error("other content: no change is seen")
	}
	before = sources()
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	if before.Now().Equal(before) {
		t.Error("a removed file: no change is seen")
	}
}

func TestMissingFile(t *testing.T) {
	t.Parallel()
	_, sources, err := Load(Options{File: "nowhere.yaml"})
	if err == nil || err.Error() != "read the configuration: open nowhere.yaml: no such file or directory: name the file with --config" || len(sources) != 1 {
		t.Errorf("%v, %v", err, sources)
	}
}

// FuzzLoad looks for a configuration that panics, or whose faults name no line
// of it.
func FuzzLoad(f *testing.F) {
	shipped, err := os.ReadFile("../../config/tiergate.yaml")
	if err != nil {
		f.Fatal(err)
	}
	keys, err := os.ReadFile("../../config/keys.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(shipped, keys, "store.type=redis")
	f.Add([]byte(shortTiers), []byte("keys: [{id: a, hash: x, tier: free, overrides: [{metric: requests}]}]"), "a=b")
	f.Add([]byte("a: &a [*a]"), []byte("- 1"), "=")
	f.Fuzz(func(t *testing.T, config, keys []byte, set string) {
		dir := t.TempDir()
		for name, content := range map[string][]byte{"tiergate.yaml": config, "keys.yaml": keys} {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		_, _, err := Load(Options{File: filepath.Join(dir, "tiergate.yaml"), Sets: []string{set}})
		var faults Faults
		if err != nil && !errors.As(err, &faults) {
			t.Errorf("not a list of faults: %v", err)
		}
		for _, fault := range faults {
			if fault.Problem == "" || fault.Source == "" || fault.Line > len(config)+len(keys)+1 {
				t.Errorf("%+v", fault)
			}
		}
	})
}
