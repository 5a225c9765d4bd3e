package e2e

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/devstack"
)

// pythonClients is the directory of the Python examples.
const pythonClients = root + "/examples/clients/python"

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

func pythonExamples() []example {
	return []example{
		{"openai_sdk", true, asTold(), daily{"RateLimitError", openaiMessage, 1, 0, 2}},
		{"anthropic_sdk", true, asTold(), daily{"RateLimitError", anthropicMessage, 1, 0, 2}},
		{"retry", false, asTold(), daily{
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
	testClients(t, pythonExamples(), pythonProgram)
}

// pythonProgram returns an example, with its packages if it needs any.
func pythonProgram(t *testing.T, e example) program {
	t.Helper()
	interpreter := "python3"
	if e.sdk {
		var err error
		if interpreter, err = python(); err != nil {
			t.Fatal(err)
		}
	}
	return program{pythonClients, []string{interpreter, e.name + ".py"}}
}

// TestPythonRetry: retry.py does what each kind of answer asks for.
func TestPythonRetry(t *testing.T) {
	t.Parallel()
	testAnswers(t, pythonProgram(t, example{name: "retry"}), kindsOfAnswers())
}

// TestPythonFiles: every example is run by a test, and the contract's code is
// unchanged.
func TestPythonFiles(t *testing.T) {
	t.Parallel()
	checkExamples(t, pythonClients, ".py", pythonExamples())
	content, err := os.ReadFile(filepath.Join(pythonClients, "contract_retry.py"))
	if err != nil || !strings.Contains(string(content), contractRetry) {
		t.Errorf("contract_retry.py does not have the contract's code (%v)", err)
	}
}

// python returns a Python with the packages of requirements.txt.
var python = sync.OnceValues(installPython)

// installPython makes a virtual environment below .cache, named by what is
// installed and by the Python it is made from, unless it is there.
func installPython() (string, error) {
	requirements, err := filepath.Abs(filepath.Join(pythonClients, "requirements.txt"))
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
	program := func(dir string) string { return filepath.Join(dir, "bin", "python") }
	whole := func(dir string) error { return exec.Command(program(dir), "-c", "").Run() }
	dir, err := devstack.Install(cache, fmt.Sprintf("python-%.12x", sha256.Sum256(append(version, wanted...))), whole, func(dir string) error {
		for _, words := range [][]string{
			{"python3", "-m", "venv", dir},
			{
				program(dir), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
				"--only-binary=:all:", "--requirement", requirements,
			},
		} {
			if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
				return fmt.Errorf("install the Python SDKs: %s: %w: %s", strings.Join(words, " "), err, out)
			}
		}
		return nil
	})
	return program(dir), err
}
