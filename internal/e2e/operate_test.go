package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiergate/tiergate/internal/devstack"
)

// tiergate runs the built program.
func tiergate(t *testing.T, args ...string) (string, error) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), binary, args...).CombinedOutput()
	return string(out), err
}

// operator gets a page of the operators' port.
func operator(t *testing.T, s *devstack.Stack, path string) (int, string) {
	t.Helper()
	response, err := client.Get("http://" + s.Options.Operator + path)
	if err != nil {
		t.Fatal(err)
	}
	r := read(t, response)
	return r.StatusCode, r.body
}

func read(t *testing.T, response *http.Response) reply {
	t.Helper()
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{response, string(body)}
}

// metric returns the sum of a metric's series whose labels contain all parts.
func metric(t *testing.T, s *devstack.Stack, name string, parts ...string) float64 {
	t.Helper()
	_, text := operator(t, s, "/metrics")
	sum := 0.0
lines:
	for line := range strings.Lines(text) {
		series, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if series != name && !strings.HasPrefix(series, name+"{") {
			continue
		}
		for _, part := range parts {
			if !strings.Contains(series, part) {
				continue lines
			}
		}
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}

// ownConfig copies the shipped configuration, so that a test can change it.
func ownConfig(t *testing.T) (config, keys string) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"tiergate.yaml", "keys.yaml"} {
		content, err := os.ReadFile(filepath.Join(root, "config", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "tiergate.yaml"), filepath.Join(dir, "keys.yaml")
}

// pepperedConfig is ownConfig with a pepper named p1.
func pepperedConfig(t *testing.T) (config string) {
	t.Helper()
	config, _ = ownConfig(t)
	pepper := filepath.Join(t.TempDir(), "pepper")
	if err := os.WriteFile(pepper, []byte(strings.Repeat("p", 32)), 0o600); err != nil {
		t.Fatal(err)
	}
	edit(t, config, "\nkeys:\n", "\nkeys:\n  peppers: [{name: p1, file: "+pepper+"}]\n")
	return config
}

// edit replaces a text in a file.
func edit(t *testing.T, file, old, replacement string) {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil || !bytes.Contains(content, []byte(old)) {
		t.Fatalf("%s has no %q (%v)", file, old, err)
	}
	if err := os.WriteFile(file, bytes.Replace(content, []byte(old), []byte(replacement), 1), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestReload: a changed tier holds from the next request on and loses no count,
// a broken file changes nothing and shows, SIGHUP works, keys come and go
// within a second.
func TestReload(t *testing.T) {
	t.Parallel()
	config, keys := ownConfig(t)
	s := up(t, devstack.Options{Config: config})
	freshMinute(t, 25*time.Second)
	reloads := func(result string) float64 { return metric(t, s, "tiergate_config_reloads_total", result) }
	for range 5 {
		do(t, s, call{key: "sk-demo-basic"})
	}

	edit(t, config, "max: 50}", "max: 8}")
	withinASecond(t, "the new tier is in use", func() bool { return reloads("success") == 1 })
	checkSix(t, do(t, s, call{key: "sk-demo-basic"}), "8", "2", "chat", "6", "2")

	edit(t, config, "max: 8}", "max: 4}")
	withinASecond(t, "the lowered tier is in use", func() bool { return reloads("success") == 2 })
	r := do(t, s, call{key: "sk-demo-basic"})
	checkSix(t, r, "4", "0", "chat", "6", "2")
	if r.StatusCode != http.StatusTooManyRequests {
		t.Errorf("lowered below what is used: %s", r.Status)
	}

	edit(t, config, "max: 4}", "max: many}")
	withinASecond(t, "the broken file is refused", func() bool { return reloads("failure") == 1 })
	if ok := metric(t, s, "tiergate_config_last_reload_successful"); ok != 0 {
		t.Errorf("last_reload_successful: %v", ok)
	}
	checkSix(t, do(t, s, call{key: "sk-demo-basic"}), "4", "0", "chat", "6", "2")
	log, err := os.ReadFile(s.LogFile("tiergate"))
	if err != nil || !strings.Contains(string(log), `want a whole number, have \"many\"`) {
		t.Errorf("the log does not say what is wrong: %s (%v)", log, err)
	}

	edit(t, config, "max: many}", "max: 50}")
	withinASecond(t, "the mended file is in use", func() bool { return reloads("success") == 3 })
	if err := s.Server.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	withinASecond(t, "SIGHUP reloads", func() bool { return reloads("success") == 4 })

	out, err := tiergate(t, "keys", "create", "--offline", "--config", config, "--tier", "free", "--name", "new")
	if err != nil {
		t.Fatal(out)
	}
	secret, entry := created(t, out)
	if r := do(t, s, call{key: secret}); r.StatusCode != http.StatusUnauthorized {
		t.Errorf("before its entry: %s", r.Status)
	}
	edit(t, keys, "keys:\n", "keys:\n"+entry)
	withinASecond(t, "the new key works", func() bool { return do(t, s, call{key: secret}).StatusCode == http.StatusOK })
	edit(t, keys, entry, entry+"    revoked: true\n")
	withinASecond(t, "the key is revoked", func() bool {
		r := do(t, s, call{key: secret})
		return r.StatusCode == http.StatusUnauthorized && errorCode(t, r) == "revoked_api_key"
	})
	edit(t, config, "grpc:\n  address: 127.0.0.1:9001", "grpc:\n  address: 127.0.0.1:9111")
	edit(t, config, "level: info", "level: debug")
	withinASecond(t, "a change that waits for a restart shows", func() bool {
		return metric(t, s, "tiergate_config_restart_needed") == 1
	})
}

// created takes the secret and the entry out of what "keys create" prints.
func created(t *testing.T, out string) (secret, entry string) {
	t.Helper()
	for line := range strings.Lines(out) {
		if text := strings.TrimSpace(line); strings.HasPrefix(text, "tg_live_") {
			secret = text
		}
	}
	_, entry, ok := strings.Cut(out, "hashed keys:\n\n")
	if secret == "" || !ok {
		t.Fatalf("no secret or no entry in:\n%s", out)
	}
	return secret, entry
}

// withinASecond is how soon a changed configuration or key must hold.
func withinASecond(t *testing.T, what string, ask func() bool) {
	t.Helper()
	began := time.Now()
	eventually(t, what, ask)
	if took := time.Since(began); took > time.Second {
		t.Errorf("%s: took %s, want at most a second", what, took)
	}
}

// TestSymlinkSwap: a configuration mounted as Kubernetes does it, by a symbolic
// link to a directory that is swapped, is taken up.
func TestSymlinkSwap(t *testing.T) {
	t.Parallel()
	config, _ := ownConfig(t)
	mount := t.TempDir()
	old := filepath.Dir(config)
	for _, link := range [][2]string{{old, mount + "/..data"}, {"..data/tiergate.yaml", mount + "/tiergate.yaml"}, {"..data/keys.yaml", mount + "/keys.yaml"}} {
		if err := os.Symlink(link[0], link[1]); err != nil {
			t.Fatal(err)
		}
	}
	s := up(t, devstack.Options{Config: mount + "/tiergate.yaml"})
	changed, _ := ownConfig(t)
	edit(t, changed, "max: 50}", "max: 60}")
	if err := os.Symlink(filepath.Dir(changed), mount+"/..data_tmp"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(mount+"/..data_tmp", mount+"/..data"); err != nil {
		t.Fatal(err)
	}
	withinASecond(t, "the swapped configuration is in use", func() bool {
		return do(t, s, call{key: "sk-demo-basic"}).Header.Get("X-RateLimit-Limit") == "60"
	})
}

// TestMetrics: every metric that the documentation promises is there, counts,
// and has no label value that a client chose.
func TestMetrics(t *testing.T) {
	t.Parallel()
	config, _ := ownConfig(t)
	merge(t, config, "capacity: {audio: {limits: [{metric: requests, per: minute, max: 100}]}}")
	s := up(t, devstack.Options{Store: "redis", Config: config})
	freshMinute(t, 10*time.Second)
	for range 12 {
		do(t, s, call{key: "sk-demo-free", path: "/v1/images/generations"})
	}
	do(t, s, call{key: "sk-nobody", path: "/v1/anything-a-client-likes", header: http.Header{"X-Request-Priority": {"client-text"}}})
	if n := metric(t, s, "tiergate_decisions_total", `outcome="allowed"`, `limit=""`, `tier="free"`, `resource="images"`, `priority="1"`); n != 10 {
		t.Errorf("allowed: %v, want 10", n)
	}
	if n := metric(t, s, "tiergate_decisions_total", `outcome="limited"`, `limit="requests_per_minute"`, `tier="free"`); n != 2 {
		t.Errorf("limited: %v, want 2", n)
	}
	if n := metric(t, s, "tiergate_decisions_total", `outcome="unauthenticated"`, `tier=""`, `resource="default"`); n != 1 {
		t.Errorf("unauthenticated: %v, want 1", n)
	}
	if n := metric(t, s, "tiergate_store_duration_seconds_count", `call="take"`); n != 12 {
		t.Errorf("store calls: %v, want 12", n)
	}
	_, text := operator(t, s, "/metrics")
	guide, err := os.ReadFile(filepath.Join(root, "docs", "metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"go_sched_pauses_total_gc_seconds", "go_sched_pauses_stopping_gc_seconds"} {
		if !strings.Contains(text, "# TYPE "+name+" ") || !strings.Contains(string(guide), "`"+name+"`") {
			t.Errorf("no metric %s, or docs/metrics.md does not mention it", name)
		}
	}
	promised := 0
	for line := range strings.Lines(string(guide)) {
		if cells := strings.Split(line, "`"); strings.HasPrefix(line, "| `tiergate_") {
			promised++
			if !strings.Contains(text, "# TYPE "+cells[1]+" ") {
				t.Errorf("docs/metrics.md promises %s, which is not there", cells[1])
			}
		}
	}
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, "# TYPE tiergate_"); ok {
			if name := "tiergate_" + strings.Fields(rest)[0]; !strings.Contains(string(guide), "`"+name+"`") {
				t.Errorf("docs/metrics.md does not mention %s", name)
			}
		}
	}
	if promised == 0 || strings.Contains(text, "client") {
		t.Errorf("%d metrics promised; or a label holds a client's text", promised)
	}
}

// TestNoSecretAnywhere plants a key and a password and searches logs at the
// most verbose level, metrics, traces, Redis and every answer for them.
func TestNoSecretAnywhere(t *testing.T) {
	both(t, func(t *testing.T, chain string) {
		config, keys := ownConfig(t)
		const canary = "sk-canary-4c1d9be07f"
		hashed := exec.CommandContext(t.Context(), binary, "keys", "hash")
		hashed.Stdin = strings.NewReader(canary + "\n")
		hash, err := hashed.Output()
		if err != nil {
			t.Fatal(err)
		}
		edit(t, keys, "keys:\n", fmt.Sprintf("keys:\n  - {id: key_canary, hash: %q, tier: free, resources: [chat]}\n", strings.TrimSpace(string(hash))))
		traces := collect(t, "")
		s := up(t, devstack.Options{Chain: chain, Store: "redis", Config: config, Sets: traceTo(traces.address, "1")})
		var seen strings.Builder
		for _, h := range []http.Header{
			{"Authorization": {"Bearer " + canary}},
			{"X-Api-Key": {canary}},
			{"Authorization": {"Bearer " + canary}, "X-Api-Key": {canary + "-other"}},
			{"Authorization": {"Bearer " + canary + "-unknown"}},
			{"Api-Key": {canary + " " + canary}},
			{"X-Request-Priority": {canary}, "Api-Key": {canary}},
			{"Authorization": {"Bearer " + canary + ",\t" + canary + "\xff"}},
			{"Authorization": {canary}, "X-Request-Id": {canary}},
		} {
			for _, path := range []string{"/v1/chat/completions", "/v1/images/generations", "/v1/" + canary, "/nowhere", "/v1%2f" + canary, "/v1/limits?key=" + canary} {
				r := do(t, s, call{header: h, path: path})
				if path != "/v1/"+canary { // there the mock quotes the path
					fmt.Fprintln(&seen, r.Status, r.Header, r.body)
				}
			}
		}
		secrets := append([]string{canary, collectorSecret, brokenHeader}, keyLife(t, s, &seen)...)
		_, metrics := operator(t, s, "/metrics")
		seen.WriteString(metrics)
		edit(t, config, "max: 10}", "max: x}")
		eventually(t, "the broken file is refused", func() bool { return metric(t, s, "tiergate_config_reloads_total", "failure") == 1 })
		eventually(t, "the key's ID is in a trace", func() bool { return strings.Contains(traces.sent(), "key_canary") })
		seen.WriteString(traces.sent())
		for _, name := range []string{"tiergate", "redis"} {
			log, err := os.ReadFile(s.LogFile(name))
			if err != nil {
				t.Fatal(err)
			}
			seen.Write(log)
		}
		seen.WriteString(dump(t, s))
		if !strings.Contains(seen.String(), "key_canary") {
			t.Error("the key's ID is nowhere: the search is no proof")
		}
		for n, secret := range secrets {
			if i := strings.Index(seen.String(), secret); i >= 0 {
				t.Errorf("secret %d is in the output: …%s…", n, seen.String()[max(0, i-200):i+40])
			}
		}
	})
}

// keyLife has keys made, imported, rotated, used and revoked, and adds every answer to
// seen but those that show a secret once. It returns all secrets.
func keyLife(t *testing.T, s *devstack.Stack, seen *strings.Builder) []string {
	t.Helper()
	const imported = "sk-canary-imported-77"
	file := filepath.Join(t.TempDir(), "import.json")
	if err := os.WriteFile(file, []byte(`{"id": "key_imported", "secret": "`+imported+`", "tier": "pro"}`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	made, id := createKey(t, s, "--tier", "pro")
	session := cookie(t, s, made)
	rotated, _ := admin(t, s, "keys", "rotate", id)["key"].(string)
	secrets := []string{imported, made, rotated, session.Value}
	for _, name := range []string{s.AdminTokenFile(), s.SessionSecretFile()} {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		secrets = append(secrets, string(content))
	}
	for _, args := range [][]string{
		{"keys", "import", file},
		{"keys", "import", file},
		{"keys", "show", imported},
		{"keys", "show", id},
		{"keys", "list"},
		{"keys", "export"},
		{"keys", "rotate", made},
		{"audit"},
		{"usage", id},
		{"usage", id, "--limits"},
		{"usage", id, "--refused"},
		{"keys", "create", "--tier", rotated},
	} {
		out, err := tryAdmin(t, s, args...)
		fmt.Fprintln(seen, strings.ReplaceAll(out, strings.Join(args, " "), ""), err)
	}
	for _, secret := range []string{imported, made, rotated} {
		inForce(t, s, secret, http.StatusOK)
		for _, path := range []string{"/v1/limits", "/v1/usage", "/v1/usage?from=" + secret, "/dashboard?key=" + secret, "/dashboard/api/limits"} {
			r := do(t, s, call{
				method: http.MethodGet, path: path, key: secret, header: http.Header{"Cookie": {session.Name + "=" + session.Value}},
			})
			fmt.Fprintln(seen, r.Status, r.Header, r.body)
		}
		for _, path := range []string{"/admin/v1/keys/" + secret, "/admin/v1/keys?q=" + secret} {
			_, body := operator(t, s, path)
			seen.WriteString(body)
		}
	}
	admin(t, s, "keys", "revoke", id)
	inForce(t, s, rotated, http.StatusUnauthorized)
	return secrets
}

// dump returns every key and value of Redis.
func dump(t *testing.T, s *devstack.Stack) string {
	t.Helper()
	client := redis.NewClient(&redis.Options{Addr: s.Options.RedisAddress})
	defer client.Close()
	var b strings.Builder
	ctx := t.Context()
	for _, key := range client.Keys(ctx, "*").Val() {
		fmt.Fprintln(&b, key, client.Get(ctx, key).Val(), client.HGetAll(ctx, key).Val(), client.LRange(ctx, key, 0, -1).Val(),
			client.SMembers(ctx, key).Val(), client.ZRange(ctx, key, 0, -1).Val(), client.XRange(ctx, key, "-", "+").Val())
	}
	return b.String()
}

// TestReflectionAndHealth: the listener offers what tools ask for.
func TestReflectionAndHealth(t *testing.T) {
	t.Parallel()
	s := up(t, devstack.Options{})
	for _, service := range []string{"envoy.service.auth.v3.Authorization", "envoy.service.ratelimit.v3.RateLimitService", "grpc.health.v1.Health"} {
		if !strings.Contains(strings.Join(reflected(t, s), " "), service) {
			t.Errorf("reflection does not list %s", service)
		}
	}
	if out, err := tiergate(t, "health", "--address", s.TierGate, "--json"); err != nil || out != "{\n  \"status\": \"SERVING\"\n}\n" {
		t.Errorf("health: %q, %v", out, err)
	}
	if status, body := operator(t, s, "/healthz"); status != http.StatusOK || body != "ok\n" {
		t.Errorf("healthz: %d %q", status, body)
	}
	kill(t, s.Server)
	if out, err := tiergate(t, "health", "--address", s.TierGate, "--timeout", "1s"); err == nil || !strings.Contains(out, "ask "+s.TierGate+" for its health") {
		t.Errorf("health of a dead server: %q, %v", out, err)
	}
}

// TestReloadReachesAll: a changed tier, pepper and token hold at the edge, at the
// customers' API and at the admin API.
func TestReloadReachesAll(t *testing.T) {
	t.Parallel()
	config := pepperedConfig(t)
	edit(t, config, "max: 50}", "max: 1000}") // enough for all questions
	s := up(t, devstack.Options{Config: config})
	token, err := os.ReadFile(s.AdminTokenFile())
	if err != nil {
		t.Fatal(err)
	}
	limits := func(key string) reply { return do(t, s, call{method: http.MethodGet, path: "/v1/limits", key: key}) }
	tiers := func() reply {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.Options.Operator+"/admin/v1/tiers", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+string(token))
		response, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		return read(t, response)
	}

	secret, id := createKey(t, s, "--tier", "basic", "--pepper", "p1")
	inForce(t, s, secret, http.StatusOK)
	answer := func(status int) func() bool {
		return func() bool {
			return do(t, s, call{key: secret}).StatusCode == status && limits(secret).StatusCode == status
		}
	}
	edit(t, config, "name: p1", "name: p2")
	withinASecond(t, "a key without its pepper is refused", answer(http.StatusUnauthorized))
	if log, err := os.ReadFile(s.LogFile("tiergate")); err != nil || !strings.Contains(string(log), "does not work\" key_id="+id) {
		t.Errorf("the log does not say which key: %s (%v)", log, err)
	}
	edit(t, config, "name: p2", "name: p1")
	withinASecond(t, "with it the key works again", answer(http.StatusOK))

	edit(t, config, "max: 1000}", "max: 60}")
	withinASecond(t, "the new tier holds", func() bool {
		return do(t, s, call{key: secret}).Header.Get("X-RateLimit-Limit") == "60" &&
			strings.Contains(limits(secret).body, `"limit":60`) && strings.Contains(tiers().body, `"max":60`)
	})

	if err := os.WriteFile(s.AdminTokenFile(), []byte(strings.Repeat("t", 32)), 0o600); err != nil {
		t.Fatal(err)
	}
	withinASecond(t, "the old token is refused", func() bool { return tiers().StatusCode == http.StatusUnauthorized })
	admin(t, s, "keys", "show", id) // with the new one
}
