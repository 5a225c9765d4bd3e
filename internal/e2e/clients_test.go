package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/devstack"
	"github.com/tiergate/tiergate/internal/mockai"
)

// clients is the directory of the Python examples.
const clients = root + "/examples/clients/python"

// contractRetry is the contract's code, to the letter.
const contractRetry = `
def call_with_retry(fn, max_retries=5):
    for attempt in range(max_retries):
        try:
            return fn()
        except Exception as e:
            if "rate_limit" not in str(e):
                raise
            wait = (2 ** attempt) + random.uniform(0, 1)
            time.sleep(wait)
    raise Exception("Max retries exceeded")
`

// What the SDKs make of the contract's body, and what the examples then say.
const (
	openaiMessage = `^Error code: 429 - Rate limit exceeded\. Please retry after (\d+) seconds\.\n` +
		`rate_limit_exceeded: requests_per_day ends in \d+ seconds\n$`
	anthropicMessage = `^Error code: 429 - \{'error': \{'type': 'rate_limit_error', ` +
		`'message': 'Rate limit exceeded\. Please retry after (\d+) seconds\.', 'code': 'rate_limit_exceeded'\}\}\n` +
		`requests_per_day ends in \d+ seconds\n$`
)

// An example is a program and what it must do.
type example struct {
	name  string
	sdk   bool // needs what requirements.txt lists
	short short
	daily daily
}

// A short is how a short limit is waited for.
type short struct {
	window  time.Duration // of the limit: one request in it
	calls   int           // that the program makes
	refused float64       // requests, at most
	// How many seconds the last of the calls may take: nearly a window, and
	// something for a busy machine.
	least, most float64
}

// A daily is how a daily limit fails.
type daily struct {
	kind, message string  // of the exception; a regular expression
	refused       float64 // requests
	least, most   float64 // seconds until the exception
}

func examples() []example {
	exact := short{window: 4 * time.Second, calls: 3, refused: 2, least: 2.5, most: 6.5}
	return []example{
		{"openai_sdk", true, exact, daily{"RateLimitError", openaiMessage, 1, 0, 2}},
		{"anthropic_sdk", true, exact, daily{"RateLimitError", anthropicMessage, 1, 0, 2}},
		{"retry", false, exact, daily{
			"CallFailed", `^requests_per_day used up until \d{4}-\d\d-\d\d 00:00:00 UTC\n$`, 1, 0, 2,
		}},
		{
			"contract_retry", false,
			short{window: 12 * time.Second, calls: 2, refused: 4, least: 7, most: 21},
			daily{"Exception", `^Max retries exceeded\n$`, 5, 31, 38},
		},
	}
}

// TestPythonClients: official SDKs, the contract's own retry code and our better
// one wait for a short limit and then succeed. A daily limit fails at once, and
// with the contract's code after its five tries.
func TestPythonClients(t *testing.T) {
	both(t, func(t *testing.T, chain string) {
		config, keys := ownConfig(t)
		for _, e := range examples() {
			addTier(t, config, keys, e.name+"_short", strconv.Itoa(int(e.short.window.Seconds()))+"s")
			addTier(t, config, keys, e.name+"_daily", "day")
		}
		s := up(t, devstack.Options{Chain: chain, Config: config})
		freshDay(t, 2*time.Minute)

		// They sleep most of the time, so all run at once.
		runs := map[string]*run{}
		for _, e := range examples() {
			runs[e.name+"_daily"] = start(t, e, s, e.name+"_daily", 2)
		}
		waitUntil(t, nextWindow(12*time.Second))
		for _, e := range examples() {
			runs[e.name+"_short"] = start(t, e, s, e.name+"_short", e.short.calls)
		}
		for _, e := range examples() {
			t.Run(e.name+"_short", func(t *testing.T) { checkShort(t, s, e.short, e.name+"_short", runs[e.name+"_short"]) })
			t.Run(e.name+"_daily", func(t *testing.T) { checkDaily(t, s, e.daily, e.name+"_daily", runs[e.name+"_daily"]) })
		}
	})
}

// checkShort: a call that is refused waits and then succeeds.
func checkShort(t *testing.T, s *devstack.Stack, want short, tier string, r *run) {
	t.Helper()
	lines := r.wait(t, 0)
	if len(lines) != want.calls {
		t.Fatalf("%d calls, want %d: %+v %s", len(lines), want.calls, lines, &r.stderr)
	}
	for _, l := range lines {
		if l.Answer != "Hello from the mock." {
			t.Errorf("call %d: %+v", l.Call, l)
		}
	}
	// The call before came early in its window, so this one waits for nearly all
	// of it.
	if took := lines[want.calls-1].Seconds; took < want.least || took > want.most {
		t.Errorf("the last call took %.3f s, want %.1f to %.1f", took, want.least, want.most)
	}
	allowed, limited := decisions(t, s, "allowed", tier), decisions(t, s, "limited", tier)
	if allowed != float64(want.calls) || limited < 1 || limited > want.refused {
		t.Errorf("TierGate allowed %v requests and refused %v, want %d and 1 to %v", allowed, limited, want.calls, want.refused)
	}
}

// decisions returns how many requests of a tier TierGate decided so.
func decisions(t *testing.T, s *devstack.Stack, outcome, tier string) float64 {
	t.Helper()
	return metric(t, s, "tiergate_decisions_total", `outcome="`+outcome+`"`, `tier="`+tier+`"`, `resource="chat"`)
}

// checkDaily: the second of two calls a day fails, in time and saying why.
func checkDaily(t *testing.T, s *devstack.Stack, want daily, tier string, r *run) {
	t.Helper()
	lines := r.wait(t, 1)
	if len(lines) != 2 || lines[0].Answer == "" {
		t.Fatalf("want one answer and one error: %+v %s", lines, &r.stderr)
	}
	l := lines[1]
	match := regexp.MustCompile(want.message).FindStringSubmatch(l.Message + "\n" + r.stderr.String())
	if l.Error != want.kind || match == nil {
		t.Errorf("raised %s: %s\n%s", l.Error, l.Message, &r.stderr)
	}
	if len(match) == 2 {
		n, err := strconv.ParseFloat(match[1], 64)
		rest := time.Until(nextWindow(24 * time.Hour)).Seconds()
		if err != nil || n < rest || n > rest+120 {
			t.Errorf("told to retry after %s seconds, want until the day ends, in %.0f", match[1], rest)
		}
	}
	if l.Seconds < want.least || l.Seconds > want.most {
		t.Errorf("took %.3f s, want %.0f to %.0f", l.Seconds, want.least, want.most)
	}
	if refused := decisions(t, s, "limited", tier); refused != want.refused {
		t.Errorf("TierGate refused %v requests, want %v", refused, want.refused)
	}
}

// addTier adds a tier that allows one request in a window, and a key of it with
// the secret "sk-" and the tier's name.
func addTier(t *testing.T, config, keys, tier, window string) {
	t.Helper()
	edit(t, config, "tiers:\n", fmt.Sprintf(`tiers:
  %s:
    priority: normal
    limits:
      - {metric: requests, per: minute, max: 1000}
      - {metric: requests, per: %s, max: 1}
`, tier, window))
	hash := sha256.Sum256([]byte("sk-" + tier))
	edit(t, keys, "keys:\n", fmt.Sprintf("keys:\n  - {id: key_%s, hash: \"sha256:%x\", tier: %s}\n", tier, hash, tier))
}

// nextWindow returns when the current window of this length ends.
func nextWindow(length time.Duration) time.Time {
	return time.Now().Truncate(length).Add(length)
}

// freshDay returns when at least that much of the current day is left.
func freshDay(t *testing.T, left time.Duration) {
	t.Helper()
	if midnight := nextWindow(24 * time.Hour); time.Until(midnight) < left {
		waitUntil(t, midnight.Add(50*time.Millisecond))
	}
}

// A run is a program that was started.
type run struct {
	stderr bytes.Buffer
	lines  []line
	err    error
	done   chan struct{} // closed when the fields above are set
}

// A line is what the examples print for each call.
type line struct {
	Call           int
	Answer         string
	Error, Message string
	Seconds        float64
}

// start runs an example against a stack.
func start(t *testing.T, e example, s *devstack.Stack, tier string, calls int) *run {
	t.Helper()
	interpreter := "python3"
	if e.sdk {
		var err error
		if interpreter, err = python(); err != nil {
			t.Fatal(err)
		}
	}
	return startPython(t, interpreter, e.name+".py", "http://"+s.API, "sk-"+tier, calls)
}

func startPython(t *testing.T, interpreter, program, url, key string, calls int) *run {
	t.Helper()
	// Enough for the slowest, and far less than a day's limit.
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	cmd := exec.CommandContext(ctx, interpreter, program, strconv.Itoa(calls))
	cmd.Dir = clients
	// Nothing of the caller's: no proxy, no other API key.
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "PYTHONDONTWRITEBYTECODE=1",
		"TIERGATE_URL=" + url, "TIERGATE_API_KEY=" + key,
	}
	r := &run{done: make(chan struct{})}
	var stdout bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &r.stderr
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	go func() {
		defer close(r.done)
		defer cancel()
		r.err = cmd.Wait()
		for scanner := bufio.NewScanner(&stdout); scanner.Scan(); {
			var l line
			if err := json.Unmarshal(scanner.Bytes(), &l); err != nil {
				l.Error = scanner.Text()
			}
			r.lines = append(r.lines, l)
		}
	}()
	return r
}

// wait waits until the program ends, which must be with this status.
func (r *run) wait(t *testing.T, status int) []line {
	t.Helper()
	<-r.done
	have := 0
	if exit, ok := errors.AsType[*exec.ExitError](r.err); ok {
		have = exit.ExitCode()
	} else if r.err != nil {
		t.Fatal(r.err)
	}
	if have != status {
		t.Errorf("the program ended with status %d, want %d: %v\n%+v\n%s", have, status, r.err, r.lines, &r.stderr)
	}
	return r.lines
}

// TestPythonRetry: retry.py does what each kind of answer asks for.
func TestPythonRetry(t *testing.T) {
	t.Parallel()
	const slack = 2.0 // seconds, for a busy machine
	const inTwoSeconds = "in two seconds"
	for name, c := range map[string]struct {
		status   int
		header   map[string]string
		requests int64 // the first gets this answer, a second one succeeds
		least    float64
		most     float64
	}{
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
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			api := mockai.Handler()
			var requests atomic.Int64
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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
			}))
			defer server.Close()
			r := startPython(t, "python3", "retry.py", server.URL, "sk-any", 1)
			lines := r.wait(t, int(2-c.requests))
			if len(lines) != 1 || requests.Load() != c.requests {
				t.Fatalf("%d requests, want %d: %+v %s", requests.Load(), c.requests, lines, &r.stderr)
			}
			l := lines[0]
			if l.Seconds < c.least || l.Seconds > c.most+slack {
				t.Errorf("took %.3f s, want %.1f to %.1f", l.Seconds, c.least, c.most)
			}
			if failed := l.Message == fmt.Sprintf("HTTP %d: no", c.status); failed != (c.requests == 1) {
				t.Errorf("%+v", l)
			}
		})
	}
}

// TestPythonFiles: every example is run by a test, and the contract's code is
// unchanged.
func TestPythonFiles(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join(clients, "*.py"))
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, file := range files {
		if name := strings.TrimSuffix(filepath.Base(file), ".py"); name != "demo" {
			have = append(have, name)
		}
	}
	var want []string
	for _, e := range examples() {
		want = append(want, e.name)
	}
	slices.Sort(want)
	if !slices.Equal(have, want) {
		t.Errorf("examples: have %q, the tests run %q", have, want)
	}
	content, err := os.ReadFile(filepath.Join(clients, "contract_retry.py"))
	if err != nil || !strings.Contains(string(content), contractRetry) {
		t.Errorf("contract_retry.py does not have the contract's code (%v)", err)
	}
}

// python returns a Python with the packages of requirements.txt.
var python = sync.OnceValues(installPython)

// installPython makes a virtual environment below .cache, named by what is
// installed and by the Python it is made from, unless it is there.
func installPython() (string, error) {
	requirements, err := filepath.Abs(filepath.Join(clients, "requirements.txt"))
	if err != nil {
		return "", err
	}
	wanted, err := os.ReadFile(requirements)
	if err != nil {
		return "", err
	}
	const ask = `import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or newer is needed"); print(sys.version, sys.base_prefix)`
	version, err := exec.Command("python3", "-c", ask).Output()
	if err != nil {
		return "", fmt.Errorf("ask python3 for its version: %w", withStderr(err))
	}
	cache, err := filepath.Abs(filepath.Join(root, ".cache"))
	if err != nil {
		return "", err
	}
	final := filepath.Join(cache, fmt.Sprintf("python-%.12x", sha256.Sum256(append(version, wanted...))))
	program := filepath.Join(final, "bin", "python")
	if exec.Command(program, "-c", "").Run() == nil {
		return program, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	fresh, err := os.MkdirTemp(cache, "python-new-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(fresh)
	for _, words := range [][]string{
		{"python3", "-m", "venv", fresh},
		{
			filepath.Join(fresh, "bin", "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
			"--only-binary=:all:", "--requirement", requirements,
		},
	} {
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("install the Python SDKs: %s: %w: %s", strings.Join(words, " "), err, out)
		}
	}
	// Only a whole installation gets the final name. A half-made one of that name
	// does not start and is in the way; a whole one of another process is as good.
	if err := os.Rename(fresh, final); err != nil && exec.Command(program, "-c", "").Run() != nil {
		return "", fmt.Errorf("%w: remove %s and try again", err, final)
	}
	return program, nil
}

// withStderr adds what the program said to the error of its end.
func withStderr(err error) error {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(exit.Stderr))
	}
	return err
}
