package e2e

import (
	"bytes"
	"crypto/rand"
	"errors"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/tiergate/tiergate/internal/devstack"
)

// A snippet is a fenced block of a document.
type snippet struct {
	file, info, text string
}

var fence = regexp.MustCompile("(?ms)^```([a-z][^\n]*)\n(.*?)^```$")

// snippets returns the blocks of all documents that say what they are.
func snippets(tb testing.TB) []snippet {
	tb.Helper()
	var all []snippet
	for _, file := range []string{
		"README.md", "docs/configuration.md", "docs/envoy.md", "docs/metrics.md", "docs/keys.md", "docs/usage.md", "docs/dashboards.md", "docs/admin-api.md",
		"docs/tracing.md", "docs/from-ratelimit.md",
	} {
		content, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			tb.Fatal(err)
		}
		for _, m := range fence.FindAllStringSubmatch(string(content), -1) {
			all = append(all, snippet{file, m[1], m[2]})
		}
	}
	return all
}

// blocks returns those of a kind in a document, in their order.
func blocks(tb testing.TB, file, info string) []string {
	tb.Helper()
	var texts []string
	for _, s := range snippets(tb) {
		if s.file == file && s.info == info {
			texts = append(texts, s.text)
		}
	}
	if len(texts) == 0 {
		tb.Fatalf("no block %q in %s", info, file)
	}
	return texts
}

// block returns the only block of a kind.
func block(tb testing.TB, info string) string {
	tb.Helper()
	var found []string
	for _, s := range snippets(tb) {
		if s.info == info {
			found = append(found, s.text)
		}
	}
	if len(found) != 1 {
		tb.Fatalf("%d blocks %q in the documents, want one", len(found), info)
	}
	return found[0]
}

// TestEverySnippetIsTested fails on a block of the documents that no test of
// this file, or of guides_test.go, knows.
func TestEverySnippetIsTested(t *testing.T) {
	t.Parallel()
	known := map[string]bool{
		"http": true, "json": true, "yaml filter": true, "yaml cluster": true, "yaml route": true, "yaml route ratelimit": true,
		"yaml settle": true, "yaml tokens": true, "yaml headers": true, "yaml tiers": true, "yaml capacity": true, "yaml keys": true, "yaml settings": true, "yaml header_mutation": true,
		"yaml operator": true, "yaml customer": true, "yaml store": true, "yaml route customers": true, "yaml cluster customers": true,
		"yaml traces": true, "yaml tracing": true, "yaml cluster collector": true, "yaml identity": true, "yaml filter jwt": true, "yaml mapper jwt": true,
		"yaml node":         true,
		"yaml route prefix": true, "yaml resources": true, "yaml access_log": true, // see mounted_test.go
		"yaml filter cache": true, "yaml cluster upstream": true, // see cached_test.go
		"yaml filter cors": true, "yaml virtual_host cors": true, // see cors_test.go
		"yaml route websocket": true, // see websocket_test.go
		"yaml cluster socket":  true, "yaml cluster tls": true, "yaml tls": true,
		"json usage": true, "sh users": true, "sh usage": true, "sh explain": true, "sh extra instance": true, "sh restore": true, "sh compose": true, "yaml compose": true, "sh kubectl": true, "sh ssh": true,
		"yaml route open": true, "yaml route open ratelimit": true, "yaml route answer": true, "yaml cluster second": true, "yaml route mirror": true, "yaml route share": true,
		"yaml layered_runtime": true, "sh share": true, "yaml filter ratelimit": true, "yaml mapper ratelimit": true, // see from_ratelimit_test.go
		"yaml redis single": true, "yaml redis sentinel": true, "yaml redis cluster": true, "yaml redis tls": true,
		"redis acl": true, "redis acl default": true, "redis conf replica": true, "redis conf watched": true, "redis acl sentinel": true, // see internal/store
	}
	commands := []string{"make run\n", "docker compose up\n", "make test\n"}
	commands = append(commands, curlOf(t), commandWith(t, "/v1/limits"), commandWith(t, "bin/tiergate serve"))
	commands = append(commands, blocks(t, "docs/keys.md", "sh")...)
	commands = append(commands, commandWith(t, "bin/tiergate keys"))
	for _, c := range commands {
		known["sh "+c] = true
	}
	for _, s := range snippets(t) {
		if !known[s.info] && !known[s.info+" "+s.text] {
			t.Errorf("%s: no test knows the block ```%s\n%s", s.file, s.info, s.text)
		}
	}
	ci, err := os.ReadFile(filepath.Join(root, ".ci", "run"))
	if err != nil || !strings.Contains(string(ci), "\nmake test\n") {
		t.Errorf("CI does not run the README's test command: %v", err)
	}
}

var (
	link         = regexp.MustCompile(`\]\(([^)#:]*)(#[^)]*)?\)`)
	heading      = regexp.MustCompile(`(?m)^#+ (.*)$`)
	notInAnchors = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
)

// TestNoDeadLinks: what documents point to is there, and so is the heading that they name.
func TestNoDeadLinks(t *testing.T) {
	t.Parallel()
	documents := []string{"README.md", "CHANGELOG.md", "SECURITY.md"}
	for _, pattern := range []string{"docs/*.md", "docs/decisions/*.md", "examples/*/README.md", "examples/*/*/README.md"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range found {
			documents = append(documents, strings.TrimPrefix(file, root+"/"))
		}
	}
	links := 0
	for _, document := range documents {
		content, err := os.ReadFile(filepath.Join(root, document))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(content), -1) {
			links++
			target := filepath.Join(root, document)
			if m[1] != "" {
				target = filepath.Join(root, filepath.Dir(document), m[1])
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s points to %s: %v", document, m[1], err)
			} else if m[2] != "" && !anchors(t, target)[m[2]] {
				t.Errorf("%s points to %s%s: no such heading is there", document, m[1], m[2])
			}
		}
	}
	if links < 20 {
		t.Errorf("%d links found: the search is no proof", links)
	}
}

// anchors returns those that GitHub gives the headings of a document.
func anchors(t *testing.T, document string) map[string]bool {
	t.Helper()
	content, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(string(content), -1) {
		text := strings.ToLower(notInAnchors.ReplaceAllString(m[1], ""))
		found["#"+strings.ReplaceAll(text, " ", "-")] = true
	}
	return found
}

// commandWith returns the first block of commands that contains a text.
func commandWith(t *testing.T, part string) string {
	t.Helper()
	for _, s := range snippets(t) {
		if s.info == "sh" && strings.Contains(s.text, part) {
			return s.text
		}
	}
	t.Fatalf("no commands with %q in the documents", part)
	return ""
}

func curlOf(t *testing.T) string {
	t.Helper()
	return commandWith(t, "curl -i")
}

// TestMakeRun does what the README says: make run, the curl, Ctrl-C; on both
// chains and with both stores. A service manager ends it by SIGTERM, to make
// alone. Make itself then ends by the signal, and nothing is left.
func TestMakeRun(t *testing.T) {
	for _, c := range []struct {
		environment string
		stop        func(*foreground) error
	}{
		{"CHAIN=ext_authz", (*foreground).interrupt},
		{"CHAIN=ratelimit", (*foreground).interrupt},
		{"STORE=redis", (*foreground).terminate},
	} {
		t.Run(c.environment, func(t *testing.T) {
			makeRun := inForeground(t, c.environment, "make", "run")
			eventuallyWithin(t, time.Minute, "make run says what to type", func() bool {
				return strings.Contains(makeRun.output(t), curlOf(t)[:40])
			})
			out, err := exec.CommandContext(t.Context(), "bash", "-c", curlOf(t)).Output()
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.HasPrefix(out, []byte("HTTP/1.1 200 OK\r\n")) {
				t.Errorf("the curl of the README: %s", out)
			}
			for _, name := range six {
				if n := strings.Count(strings.ToLower(string(out)), "\n"+strings.ToLower(name)+": "); n != 1 {
					t.Errorf("%s: %d times, want once in:\n%s", name, n, out)
				}
			}
			if c.environment == "STORE=redis" {
				withoutRedis(t, makeRun)
			}
			second := exec.CommandContext(t.Context(), "make", "run")
			second.Dir = root
			if out, err := second.CombinedOutput(); err == nil || !strings.Contains(string(out), "the address 127.0.0.1:10000 cannot be used") {
				t.Errorf("a second make run: %v: %s", err, out)
			}
			if err := c.stop(makeRun); err != nil {
				t.Fatal(err)
			}
			if err := makeRun.wait(t); err != nil && !strings.HasPrefix(err.Error(), "signal: ") {
				t.Errorf("make run ended with %v:\n%s", err, makeRun.output(t))
			}
			for _, address := range []string{"127.0.0.1:10000", "127.0.0.1:9001", "127.0.0.1:9002", "127.0.0.1:9003"} {
				l, err := net.Listen("tcp", address)
				if err != nil {
					t.Errorf("after Ctrl-C: %v", err)
					continue
				}
				l.Close()
			}
		})
	}
}

// withoutRedis ends the Redis of make run, which goes on and says how to start it again, and
// does so.
func withoutRedis(t *testing.T, makeRun *foreground) {
	t.Helper()
	said := regexp.MustCompile(`store redis at 127\.0\.0\.1:\d+, process (\d+)`).FindStringSubmatch(makeRun.output(t))
	if said == nil {
		t.Fatalf("make run does not say which process Redis is:\n%s", makeRun.output(t))
	}
	pid, err := strconv.Atoi(said[1])
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	again := regexp.MustCompile(`(?m)^  (redis-server .*)$`)
	eventually(t, "make run says how to start Redis again", func() bool { return again.MatchString(makeRun.output(t)) })
	answers := regexp.MustCompile(`^HTTP/1\.1 (200|429) `) // the latter when this has asked often
	serves := func(degraded bool) func() bool {
		return func() bool {
			out, err := exec.CommandContext(t.Context(), "bash", "-c", curlOf(t)).Output()
			return err == nil && answers.Match(out) && bytes.Contains(out, []byte("\r\nx-ratelimit-degraded: 1\r\n")) == degraded
		}
	}
	eventually(t, "it serves without Redis", serves(true))
	redis := exec.CommandContext(t.Context(), "bash", "-c", "exec "+again.FindStringSubmatch(makeRun.output(t))[1])
	if err := redis.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(redis.Process.Kill(), redis.Wait()) })
	eventually(t, "it serves with Redis again", serves(false))
}

// TestReadmeCommands runs the commands for an Envoy of one's own.
func TestReadmeCommands(t *testing.T) {
	for line := range strings.Lines(commandWith(t, "bin/tiergate serve")) {
		line = strings.TrimSpace(line)
		words := strings.Fields(line)
		if words[1] != "serve" {
			command := exec.CommandContext(t.Context(), "bash", "-c", line)
			command.Dir = root
			if out, err := command.CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %s", line, err, out)
			}
			continue
		}
		serving := inForeground(t, "", words...)
		eventually(t, "it serves", func() bool {
			response, err := client.Get("http://127.0.0.1:9002/readyz")
			return err == nil && read(t, response).StatusCode == http.StatusOK
		})
		asking := exec.CommandContext(t.Context(), "bash", "-ec", commandWith(t, "bin/tiergate keys"))
		asking.Dir = root
		if out, err := asking.CombinedOutput(); err != nil || !strings.Contains(string(out), "tg_live_") {
			t.Errorf("the commands for keys: %v: %s", err, out)
		}
		if err := serving.interrupt(); err != nil {
			t.Fatal(err)
		}
		if err := serving.wait(t); err != nil {
			t.Errorf("serve ended with %v:\n%s", err, serving.output(t))
		}
	}
}

// A foreground is a command as in a terminal: a process group of its own.
type foreground struct {
	command *exec.Cmd
	log     string
	done    chan error
}

func inForeground(t *testing.T, environment string, words ...string) *foreground {
	t.Helper()
	f := &foreground{log: filepath.Join(t.TempDir(), "output"), done: make(chan error, 1)}
	out, err := os.Create(f.log)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	f.command = exec.Command(words[0], words[1:]...)
	f.command.Dir, f.command.Stdout, f.command.Stderr = root, out, out
	f.command.Env = append(os.Environ(), environment)
	f.command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := f.command.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { f.done <- f.command.Wait() }()
	t.Cleanup(func() { _ = syscall.Kill(-f.command.Process.Pid, syscall.SIGKILL) })
	return f
}

func (f *foreground) output(t *testing.T) string {
	t.Helper()
	content, err := os.ReadFile(f.log)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// interrupt is Ctrl-C: a signal to the whole group.
func (f *foreground) interrupt() error { return syscall.Kill(-f.command.Process.Pid, syscall.SIGINT) }

// terminate is a signal to the command alone.
func (f *foreground) terminate() error { return syscall.Kill(f.command.Process.Pid, syscall.SIGTERM) }

// wait returns how the command ended. Nothing of its group may be left.
func (f *foreground) wait(t *testing.T) error {
	t.Helper()
	var err error
	select {
	case err = <-f.done:
	case <-time.After(30 * time.Second):
		t.Fatalf("it did not end:\n%s", f.output(t))
	}
	if syscall.Kill(-f.command.Process.Pid, 0) == nil {
		t.Errorf("processes are left:\n%s", f.output(t))
	}
	return err
}

// TestReadme429 compares the README's refusal with a real one.
func TestReadme429(t *testing.T) {
	t.Parallel()
	s := up(t, devstack.Options{})
	freshMinute(t, 5*time.Second)
	var r reply
	for range 11 {
		r = do(t, s, call{key: "sk-demo-free"})
	}
	head, body, _ := strings.Cut(block(t, "http"), "\n\n")
	digits := regexp.MustCompile(`\d+`)
	general := func(text string) string { return digits.ReplaceAllString(strings.TrimSpace(text), "N") }
	if general(body) != general(r.body) {
		t.Errorf("the README's body:\n%s\nthe real one:\n%s", body, r.body)
	}
	lines := strings.Split(head, "\n")
	if lines[0] != "HTTP/1.1 "+r.Status {
		t.Errorf("the README's status is %q, the real one %q", lines[0], r.Status)
	}
	for _, line := range lines[1:] {
		name, value, _ := strings.Cut(line, ": ")
		if have := r.Header.Get(name); general(have) != general(value) {
			t.Errorf("the README has %s: %q, the real answer %q", name, value, have)
		}
	}
}

// TestConfigurationSnippets puts each into the shipped files and checks them.
func TestConfigurationSnippets(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"tiers", "capacity", "keys", "settings", "tokens", "headers", "operator", "customer", "store", "redis single", "redis sentinel", "redis cluster", "redis tls", "traces", "identity", "node", "tls"} {
		config, keys := ownConfig(t)
		secure(t, filepath.Dir(config))
		for _, secret := range []string{"ada.token", "session.secret", "redis.password", "sentinel.password"} {
			if err := os.WriteFile(filepath.Join(filepath.Dir(config), secret), []byte(rand.Text()+rand.Text()), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		file := config
		if kind == "keys" {
			file = keys
		}
		merge(t, file, block(t, "yaml "+kind))
		if kind == "tiers" { // the demo keys are of others
			merge(t, keys, "keys: []")
		}
		command := exec.CommandContext(t.Context(), binary, "config", "check", "--config", config)
		command.Env = append(os.Environ(), "TIERGATE_PEPPER_P1=a-pepper-of-at-least-sixteen-bytes", "SIGN_UP_TOKEN="+rand.Text())
		if out, err := command.CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", kind, err, out)
		}
	}
}

// secure writes the files that the document's grpc.tls and store.redis.tls name.
func secure(t *testing.T, dir string) {
	t.Helper()
	m := newMesh(t)
	for from, to := range map[string]string{
		"ca.pem": "redis-ca.pem", "tiergate.pem": "tiergate.pem", "tiergate.key": "tiergate-key.pem",
	} {
		content, err := os.ReadFile(filepath.Join(m.dir, from))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, to), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(filepath.Join(m.dir, "ca.pem"), filepath.Join(m.dir, "clients-ca.pem")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(m.dir, filepath.Join(dir, "tls")); err != nil {
		t.Fatal(err)
	}
}

// merge replaces top-level fields of a YAML file.
func merge(t *testing.T, file, text string) {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var whole, part map[string]any
	for _, err := range []error{yaml.Unmarshal(content, &whole), yaml.Unmarshal([]byte(text), &part)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	maps.Copy(whole, part)
	out, err := yaml.Marshal(whole)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, out, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestEnvoySnippets runs Envoy with the documents' filter, cluster, routes and
// header mutation in place of the shipped ones.
func TestEnvoySnippets(t *testing.T) {
	both(t, func(t *testing.T, chain string) {
		change := func(file []byte) []byte {
			out := edited(t, string(file), func(doc map[string]any) {
				route := "yaml route"
				if chain == "ratelimit" {
					route += " ratelimit"
				} else {
					replace(t, doc, block(t, "yaml filter"))
					replace(t, doc, block(t, "yaml cluster"))
					replace(t, doc, block(t, "yaml cluster customers"))
					withoutRoute(doc, "tiergate_customers")
					prepend(t, doc, "routes", block(t, "yaml route customers"))
				}
				prepend(t, doc, "routes", block(t, route))
			})
			mutation := strings.TrimPrefix(strings.TrimSpace(block(t, "yaml header_mutation")), "- ")
			old := regexp.MustCompile(`(?s)- append:\s+append_action: ADD_IF_ABSENT\s+header:\s+key: X-RateLimit-Limit\s+value: "0"`)
			if !old.Match(out) {
				t.Fatal("the shipped file has no fallback for X-RateLimit-Limit")
			}
			return old.ReplaceAllLiteral(out, []byte("- {"+mutation+"}"))
		}
		s := up(t, devstack.Options{Chain: chain, EditEnvoy: change, Sets: []string{"headers.unlimited=omit"}})
		freshMinute(t, 5*time.Second)
		checkSix(t, do(t, s, call{key: "sk-demo-pro", path: "/v1/vision/look"}), "100", "99", "images", "1", "3")
		checkSix(t, do(t, s, call{path: "/nowhere"}), "0", "0", "default", "0", "1")
		checkSix(t, do(t, s, call{method: http.MethodGet, path: "/v1/limits", key: "sk-demo-pro"}), "100", "99", "default", "1", "3")
		for _, h := range []http.Header{nil, {"X-Mock-Break": {"length"}}} {
			r := do(t, s, call{key: "sk-demo-enterprise", header: h})
			if len(r.Header.Values("X-RateLimit-Limit")) != 0 || !slices.Equal(r.Header.Values("X-RateLimit-Resource"), []string{"chat"}) {
				t.Errorf("unlimited: omit: %s: the response has X-RateLimit-Limit: %q, -Resource: %q",
					r.Status, r.Header.Values("X-RateLimit-Limit"), r.Header.Values("X-RateLimit-Resource"))
			}
		}
	})
}

// replace puts a filter or a cluster in the place of the one of its name.
func replace(t *testing.T, doc map[string]any, text string) {
	t.Helper()
	part := mapping(t, text)
	done := 0
	walk(doc, func(_ string, list []any) []any {
		for i, entry := range list {
			if m, ok := entry.(map[string]any); ok && m["name"] == part["name"] {
				list[i] = part
				done++
			}
		}
		return list
	})
	if done != 1 {
		t.Fatalf("%d parts of the shipped file are named %v", done, part["name"])
	}
}

// prepend puts an entry before those of a list.
func prepend(t *testing.T, doc map[string]any, name, text string) {
	t.Helper()
	part := mapping(t, text)
	walk(doc, func(at string, list []any) []any {
		if at == name {
			return append([]any{part}, list...)
		}
		return list
	})
}

// mapping reads YAML.
func mapping(t *testing.T, text string) map[string]any {
	t.Helper()
	var doc map[string]any
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatalf("%v:\n%s", err, text)
	}
	return doc
}

// edited is a YAML file as a change leaves it.
func edited(t *testing.T, file string, change func(doc map[string]any)) []byte {
	t.Helper()
	doc := mapping(t, file)
	change(doc)
	out, err := yaml.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// insertBeside puts a filter so many places after the one of a name: 0 is before it.
func insertBeside(doc map[string]any, name string, places int, filter map[string]any) {
	walk(doc, func(_ string, list []any) []any {
		for n, entry := range list {
			if m, ok := entry.(map[string]any); ok && m["name"] == name {
				return slices.Insert(list, n+places, any(filter))
			}
		}
		return list
	})
}

// replaced puts a text in the place of another, which must be there once.
func replaced(t *testing.T, text, former, next string) string {
	t.Helper()
	if strings.Count(text, former) != 1 {
		t.Fatalf("%q is not there once:\n%s", former, text)
	}
	return strings.Replace(text, former, next, 1)
}

// withoutRoute takes the routes to a cluster away.
func withoutRoute(doc map[string]any, cluster string) {
	walk(doc, func(at string, list []any) []any {
		return slices.DeleteFunc(list, func(entry any) bool {
			route, _ := entry.(map[string]any)
			to, _ := route["route"].(map[string]any)
			return at == "routes" && to["cluster"] == cluster
		})
	})
}

// walk visits every list with the name of its field, and puts what the visitor
// returns in its place.
func walk(node any, visit func(name string, list []any) []any) {
	switch node := node.(type) {
	case map[string]any:
		for name, value := range node {
			if list, ok := value.([]any); ok {
				value = visit(name, list)
				node[name] = value
			}
			walk(value, visit)
		}
	case []any:
		for _, value := range node {
			walk(value, visit)
		}
	}
}

// TestShippedEnvoyFiles are valid as they are, with compose's addresses.
func TestShippedEnvoyFiles(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join(root, "envoy", "*.yaml"))
	if err != nil || len(files) < 2 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, file := range files {
		path, err := filepath.Abs(file)
		if err != nil {
			t.Fatal(err)
		}
		words := envoy.Command(filepath.Dir(path), "--mode", "validate", "--config-path", path)
		if out, err := exec.CommandContext(t.Context(), words[0], words[1:]...).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", file, err, out)
		}
	}
}

// eventuallyWithin asks until the answer is true.
func eventuallyWithin(t *testing.T, limit time.Duration, what string, ask func() bool) {
	t.Helper()
	if !trueWithin(limit, ask) {
		t.Fatalf("not within %s: %s", limit, what)
	}
}

// trueWithin asks until the answer is true, and reports whether it ever was.
func trueWithin(limit time.Duration, ask func() bool) bool {
	end := time.After(limit)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ask() {
		select {
		case <-tick.C:
		case <-end:
			return false
		}
	}
	return true
}
