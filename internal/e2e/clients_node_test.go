package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/tiergate/tiergate/internal/devstack"
)

// nodeClients is the directory of the Node examples.
const nodeClients = root + "/examples/clients/node"

func nodeExamples() []example {
	return []example{
		{"openai-sdk", true, asTold(), daily{
			"RateLimitError", `^429 Rate limit exceeded\. Please retry after (\d+) seconds\.\n` +
				`rate_limit_exceeded: requests_per_day ends in \d+ seconds\n$`, 1, 0, 2,
		}},
		{"anthropic-sdk", true, asTold(), daily{
			"RateLimitError", `^429 \{"error":\{"type":"rate_limit_error",` +
				`"message":"Rate limit exceeded\. Please retry after (\d+) seconds\.","code":"rate_limit_exceeded"\}\}\n` +
				`requests_per_day ends in \d+ seconds\n$`, 1, 0, 2,
		}},
		{"retry", false, asTold(), daily{
			"CallFailed", `^requests_per_day used up until \d{4}-\d\d-\d\d 00:00:00 UTC\n$`, 1, 0, 2,
		}},
	}
}

// TestNodeClients: official SDKs and our retry code wait for a short limit for as
// long as the 429 says, and then succeed. A daily limit fails at once.
func TestNodeClients(t *testing.T) {
	testClients(t, nodeExamples(), nodeProgram)
}

// TestNodeRetry: retry.js does what each kind of answer asks for.
func TestNodeRetry(t *testing.T) {
	t.Parallel()
	testAnswers(t, nodeProgram(t, example{name: "retry"}), kindsOfAnswers())
}

// TestNodeSDKs: the SDKs obey the headers by which TierGate says how long to wait
// and whether to. Without them they would come back after half a second.
func TestNodeSDKs(t *testing.T) {
	t.Parallel()
	for _, e := range nodeExamples() {
		if !e.sdk {
			continue
		}
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			testAnswers(t, nodeProgram(t, e), map[string]canned{
				"milliseconds before seconds": {429, map[string]string{"Retry-After-Ms": "1500", "Retry-After": "9"}, 2, 1.5, 2},
				"seconds":                     {429, map[string]string{"Retry-After": "2"}, 2, 2, 2.5},
				"told not to retry":           {429, map[string]string{"Retry-After": "40000", "X-Should-Retry": "false"}, 1, 0, 0},
			})
		})
	}
}

// TestNodeFiles: every example is run by a test, and what npm installs is pinned,
// wherever it comes from.
func TestNodeFiles(t *testing.T) {
	t.Parallel()
	checkExamples(t, nodeClients, ".js", nodeExamples())
	checkPinned(t, nodeClients, 2)
	checkPinned(t, axeFiles, 1)
}

// checkPinned: package-lock.json in a directory pins so many dependencies, and theirs.
func checkPinned(t *testing.T, dir string, dependencies int) {
	t.Helper()
	var wanted struct{ Dependencies map[string]string }
	readJSON(t, filepath.Join(dir, "package.json"), &wanted)
	var lock struct {
		Packages map[string]struct{ Version, Integrity, Resolved string }
	}
	readJSON(t, filepath.Join(dir, "package-lock.json"), &lock)
	for name, version := range wanted.Dependencies {
		if have := lock.Packages["node_modules/"+name].Version; have != version {
			t.Errorf("package.json wants %s %s, package-lock.json has %q", name, version, have)
		}
	}
	for name, p := range lock.Packages {
		if name != "" && (p.Integrity == "" || p.Resolved != "") {
			t.Errorf("package-lock.json has of %s the integrity %q and the address %q, want the first alone", name, p.Integrity, p.Resolved)
		}
	}
	if len(wanted.Dependencies) != dependencies || len(lock.Packages) <= dependencies {
		t.Errorf("%d dependencies and %d packages found in %s: the test is no proof", len(wanted.Dependencies), len(lock.Packages), dir)
	}
}

func readJSON(t *testing.T, file string, into any) {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(content, into); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

// nodeProgram returns an example, with its packages if it needs any. Node looks for
// them beside the file that imports them, so such a one runs from a copy.
func nodeProgram(t *testing.T, e example) program {
	t.Helper()
	p := program{nodeClients, []string{"node", e.name + ".js"}}
	if !e.sdk {
		return p
	}
	packages, err := nodePackages()
	if err != nil {
		t.Fatal(err)
	}
	p.dir = t.TempDir()
	if err := copyFiles(p.dir, nodeClients, "package.json", "demo.js", e.name+".js"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(packages, filepath.Join(p.dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	return p
}

func copyFiles(to, from string, names ...string) error {
	for _, name := range names {
		content, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// nodePackages returns what the examples need.
var nodePackages = sync.OnceValues(func() (string, error) { return installNode(nodeClients) })

// installNode returns a directory node_modules with what package-lock.json in a directory
// lists. It makes it below .cache, in one that is named by what is installed, unless it is
// there.
func installNode(from string) (string, error) {
	const ask = `parseInt(process.versions.node) >= 18 || (console.error("Node 18 or newer is needed, this is " + process.version), process.exit(1))`
	if _, err := exec.Command("node", "-e", ask).Output(); err != nil {
		return "", fmt.Errorf("ask node for its version: %w", withStderr(err))
	}
	wanted, err := os.ReadFile(filepath.Join(from, "package-lock.json"))
	if err != nil {
		return "", err
	}
	cache, err := filepath.Abs(filepath.Join(root, ".cache"))
	if err != nil {
		return "", err
	}
	packages := func(dir string) string { return filepath.Join(dir, "node_modules") }
	whole := func(dir string) error {
		_, err := os.Stat(packages(dir))
		return err
	}
	dir, err := devstack.Install(cache, fmt.Sprintf("node-%.12x", sha256.Sum256(wanted)), whole, func(dir string) error {
		if err := copyFiles(dir, from, "package.json", "package-lock.json", ".npmrc"); err != nil {
			return err
		}
		install := exec.Command("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
		install.Dir = dir
		if out, err := install.CombinedOutput(); err != nil {
			return fmt.Errorf("install Node packages: %s: %w: %s", install, err, bytes.TrimSpace(out))
		}
		return nil
	})
	return packages(dir), err
}
