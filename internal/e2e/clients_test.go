package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/devstack"
)

// An example is a program and what it must do.
type example struct {
	name  string
	sdk   bool // needs packages that are installed
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
	stated      bool // it waits for just as long as a 429 says in milliseconds
}

// asTold is how clients wait that obey what a 429 says: until the window ends. The second call
// waits for a window to begin, however late a busy machine has started the program, and the
// third for the next one.
func asTold() short {
	return short{window: 6 * time.Second, calls: 3, refused: 2, least: 3, most: 10, stated: true}
}

// A daily is how a daily limit fails.
type daily struct {
	kind, message string  // of the exception; a regular expression
	refused       float64 // requests
	least, most   float64 // seconds until the exception
}

// A program is an example and how it is started.
type program struct {
	dir   string
	words []string // without its arguments
}

// testClients runs a language's examples against the real stack: they wait for a
// short limit and then succeed, and fail for a daily one.
func testClients(t *testing.T, examples []example, programOf func(*testing.T, example) program) {
	t.Helper()
	both(t, func(t *testing.T, chain string) {
		config, keys := ownConfig(t)
		for _, e := range examples {
			addTier(t, config, keys, e.name+"_short", strconv.Itoa(int(e.short.window.Seconds()))+"s")
			addTier(t, config, keys, e.name+"_daily", "day")
		}
		s := up(t, devstack.Options{Chain: chain, Config: config})
		freshDay(t, 2*time.Minute)

		// They sleep most of the time, so all run at once.
		runs, passages := map[string]*run{}, map[string]*passage{}
		for _, e := range examples {
			runs[e.name+"_daily"] = start(t, programOf(t, e), "http://"+s.API, "sk-"+e.name+"_daily", 2)
		}
		waitUntil(t, nextWindow(12*time.Second))
		for _, e := range examples {
			passages[e.name] = newPassage(t, s.API)
			runs[e.name+"_short"] = start(t, programOf(t, e), passages[e.name].url, "sk-"+e.name+"_short", e.short.calls)
		}
		for _, e := range examples {
			t.Run(e.name+"_short", func(t *testing.T) {
				checkShort(t, s, e.short, e.name+"_short", runs[e.name+"_short"])
				if e.short.stated {
					passages[e.name].checkWaits(t)
				}
			})
			t.Run(e.name+"_daily", func(t *testing.T) { checkDaily(t, s, e.daily, e.name+"_daily", runs[e.name+"_daily"]) })
		}
	})
}

// TestClientsRefuseNonsense: a number of calls that is none is an error, and not no call at all.
func TestClientsRefuseNonsense(t *testing.T) {
	t.Parallel()
	for name, p := range map[string]program{"node": nodeProgram(t, example{name: "retry"}), "python": pythonProgram(t, example{name: "retry"})} {
		for _, calls := range []string{"x", "", "0", "-1", "1.5", "1e1"} {
			cmd := exec.CommandContext(t.Context(), p.words[0], append(slices.Clone(p.words[1:]), calls)...)
			cmd.Dir = p.dir
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			stdout, err := cmd.Output()
			want := `"` + calls + `": want how many calls to make, a whole number of 1 or more` + "\n"
			if err == nil || cmd.ProcessState.ExitCode() != 2 || len(stdout) > 0 || stderr.String() != want {
				t.Errorf("%s %q: %v: %s%s", name, calls, err, stdout, &stderr)
			}
		}
	}
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

// start runs a program against the API at a URL.
func start(t *testing.T, p program, url, key string, calls int) *run {
	t.Helper()
	// Enough for the slowest, and far less than a day's limit.
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	cmd := exec.CommandContext(ctx, p.words[0], append(p.words[1:len(p.words):len(p.words)], strconv.Itoa(calls))...)
	cmd.Dir = p.dir
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

// checkExamples: the programs of a directory are those that tests run.
func checkExamples(t *testing.T, dir, suffix string, examples []example) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, file := range files {
		if name := strings.TrimSuffix(filepath.Base(file), suffix); name != "demo" {
			have = append(have, name)
		}
	}
	var want []string
	for _, e := range examples {
		want = append(want, e.name)
	}
	slices.Sort(want)
	if !slices.Equal(have, want) {
		t.Errorf("examples: have %q, the tests run %q", have, want)
	}
}

// withStderr adds what the program said to the error of its end.
func withStderr(err error) error {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(exit.Stderr))
	}
	return err
}
