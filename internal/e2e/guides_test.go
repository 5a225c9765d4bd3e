package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiergate/tiergate/internal/devstack"
)

// A guideRun runs the commands of a guide in a directory laid out like the project's,
// against a stack.
type guideRun struct {
	t       *testing.T
	dir     string
	replace *strings.Replacer
	env     []string
}

func newGuideRun(t *testing.T, s *devstack.Stack, config string, replace ...string) *guideRun {
	t.Helper()
	token, err := os.ReadFile(s.AdminTokenFile())
	if err != nil {
		t.Fatal(err)
	}
	g := &guideRun{t: t, dir: t.TempDir(), env: append(os.Environ(), "TIERGATE_SERVER=http://"+s.Options.Operator, "TIERGATE_ADMIN_TOKEN="+string(token))}
	g.replace = strings.NewReplacer(append(replace, ".cache/run/admin-token", s.AdminTokenFile(), "127.0.0.1:9002", s.Options.Operator)...)
	for _, link := range [][2]string{{binary, "bin/tiergate"}, {filepath.Dir(config), "config"}} {
		path := filepath.Join(g.dir, link[1])
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(link[0], path); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

// do runs commands until one fails, and returns what they print.
func (g *guideRun) do(commands ...string) string {
	g.t.Helper()
	var all strings.Builder
	for _, text := range commands {
		fmt.Fprintf(&all, "%s\n", g.replace.Replace(text))
	}
	command := exec.CommandContext(g.t.Context(), "bash", "-exuo", "pipefail", "-c", all.String())
	command.Dir, command.Env = g.dir, g.env
	out, err := command.CombinedOutput()
	if err != nil {
		g.t.Fatalf("%v:\n%s", err, out)
	}
	return string(out)
}

// TestKeysGuide does all that docs/keys.md says, in its order; then Redis is emptied,
// and the keys restored as it says.
func TestKeysGuide(t *testing.T) {
	t.Parallel()
	config, _ := ownConfig(t)
	s := up(t, devstack.Options{Config: config, Store: "redis"})
	extra := freeAddresses(t, 3) // where another instance listens
	g := newGuideRun(t, s, config, "127.0.0.1:9011", extra[0], "127.0.0.1:9012", extra[1], "127.0.0.1:9013", extra[2],
		"127.0.0.1:6379", s.Options.RedisAddress)
	out := g.do(blocks(t, "docs/keys.md", "sh")...)
	if n := strings.Count(out, "\n  tg_live_"); n != 3 { // created, rotated, rotated
		t.Errorf("%d secrets are printed, want 3:\n%s", n, out)
	}
	states := func() map[string]any {
		known := map[string]any{}
		for _, key := range admin(t, s, "keys", "list", "--q", "key_")["keys"].([]any) {
			if key := key.(map[string]any); key["source"] == "store" {
				known[key["id"].(string)] = fmt.Sprintf("%v %v", key["state"], key["tier"])
			}
		}
		return known
	}
	want := map[string]any{"key_ada": "revoked basic", "key_bob": "active basic", "key_eve": "active free", "key_carol": "revoked pro"}
	if have := states(); !maps.Equal(have, want) {
		t.Errorf("the keys are %v, want %v", have, want)
	}
	ada := admin(t, s, "keys", "show", "key_ada")
	if overrides, _ := ada["overrides"].([]any); len(overrides) != 1 || ada["name"] != "Ada Lovelace" || ada["resources"] != nil || ada["expires"] != nil {
		t.Errorf("key_ada: %v", ada)
	}

	server := redis.NewClient(&redis.Options{Addr: s.Options.RedisAddress})
	defer server.Close()
	if err := server.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "changes are refused", func() bool {
		out, err := tryAdmin(t, s, "keys", "create", "--tier", "pro")
		return err != nil && strings.Contains(out, "The store has lost the directory of keys")
	})
	merge(t, config, "operator: {tokens: [{name: developer, file: "+s.AdminTokenFile()+"}]}")
	another := inForeground(t, "", "bash", "-ec", "cd "+g.dir+"\n"+g.replace.Replace(block(t, "sh extra instance")))
	eventually(t, "the extra instance serves", func() bool {
		response, err := client.Get("http://" + extra[1] + "/readyz")
		return err == nil && read(t, response).StatusCode == http.StatusOK
	})
	if log := another.output(t); !strings.Contains(log, "msg=serving") || !strings.Contains(log, "redis=true") {
		t.Errorf("the extra instance does not use Redis:\n%s", log)
	}
	g.do(block(t, "sh restore"))
	eventually(t, "changes are taken again", func() bool {
		_, err := tryAdmin(t, s, "keys", "create", "--id", "key_new", "--tier", "pro")
		return err == nil
	})
	want["key_new"] = "active pro"
	if have := states(); !maps.Equal(have, want) {
		t.Errorf("restored: %v, want %v", have, want)
	}
	inForce(t, s, "sk-made-elsewhere-1", http.StatusOK)
}

// TestUsageGuide asks as docs/usage.md says, and compares its answer with a real one.
func TestUsageGuide(t *testing.T) {
	t.Parallel()
	config, _ := ownConfig(t)
	s := up(t, devstack.Options{Config: config, Sets: []string{"usage.interval=1s"}})
	freshMinute(t, 10*time.Second)
	for range 51 {
		do(t, s, call{key: "sk-demo-basic", header: http.Header{"X-Mock-Usage": {"20,30"}}})
	}
	g := newGuideRun(t, s, config, "https://api.example.com", "http://"+s.API, "YOUR_API_KEY", "sk-demo-basic")
	users := blocks(t, "docs/usage.md", "sh users")
	if out := g.do(users[0]); !strings.Contains(out, `"used":50,`) {
		t.Errorf("the limits: %s", out)
	}
	want := shape(t, block(t, "json usage"))
	var have []string
	if !trueWithin(10*time.Second, func() bool { // a key may ask 20 times at once
		waitUntil(t, time.Now().Add(500*time.Millisecond))
		_, answer, _ := strings.Cut(g.do(users[1]), `{"key_id"`)
		have = shape(t, `{"key_id"`+answer)
		return slices.Equal(have, want)
	}) {
		t.Errorf("the answer has\n%s\nthe guide\n%s", strings.Join(have, "\n"), strings.Join(want, "\n"))
	}
	out := g.do(block(t, "sh usage"))
	for _, text := range []string{"MINUTE (UTC)", "requests_per_minute 1", "requests_per_day", "429"} {
		if !strings.Contains(out, text) {
			t.Errorf("no %q in what the commands print:\n%s", text, out)
		}
	}
	out = g.do(block(t, "sh explain"))
	for _, text := range []string{"refused with 429 rate_limit_exceeded", "by the path prefix /v1/images", "refused with 413", `"verdict": "limited"`} {
		if !strings.Contains(out, text) {
			t.Errorf("no %q in what the commands print:\n%s", text, out)
		}
	}
}

// shape lists the fields of a JSON text by their paths and kinds, whatever their values.
func shape(t *testing.T, text string) []string {
	t.Helper()
	var whole any
	if err := json.Unmarshal([]byte(text), &whole); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	fields := map[string]bool{}
	var walk func(path string, v any)
	walk = func(path string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for name, value := range v {
				walk(path+"."+name, value)
			}
		case []any:
			for _, value := range v {
				walk(path+"[]", value)
			}
		default:
			fields[fmt.Sprintf("%s %v", path, reflect.TypeOf(v))] = true
		}
	}
	walk("", whole)
	return slices.Sorted(maps.Keys(fields))
}

// TestCommandsElsewhere: what the commands name that run in containers is there.
func TestCommandsElsewhere(t *testing.T) {
	t.Parallel()
	image, err := os.ReadFile(filepath.Join(root, "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := os.ReadFile(filepath.Join(root, "examples", "kubernetes", "tiergate.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	holds := func(content []byte, text string) {
		if !strings.Contains(string(content), text) {
			t.Errorf("nothing says %q", text)
		}
	}
	holds(image, "COPY --from=build /out/tiergate /\n")
	holds(manifest, "kind: Deployment\nmetadata:\n  name: tiergate\n  namespace: tiergate\n")
	// The command line in the pod has the server's token.
	holds(manifest, `operator: {address: "0.0.0.0:9002", tokens: [{name: operator, env: TIERGATE_ADMIN_TOKEN}]}`)
	holds(manifest, "- name: TIERGATE_ADMIN_TOKEN ")
	if _, ok := composeProject(t).Services["tiergate"]; !ok {
		t.Error("compose has no service tiergate")
	}
	for _, s := range snippets(t) {
		for line := range strings.Lines(s.text) {
			prefix := map[string]string{"sh compose": "docker compose exec tiergate /tiergate ", "sh kubectl": "kubectl -n tiergate "}[s.info]
			if !strings.HasPrefix(line, prefix) || (s.info == "sh kubectl" && !strings.Contains(line, "deployment/tiergate ")) {
				t.Errorf("%s: %s", s.file, line)
			}
		}
	}
}
