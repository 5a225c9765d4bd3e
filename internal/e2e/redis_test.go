package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tiergate/tiergate/internal/devstack"
)

// TestRedisPasswordIsRotated: the password changes in Redis and in the file, every
// connection is cut, and requests are counted on. The log has neither password.
func TestRedisPasswordIsRotated(t *testing.T) {
	t.Parallel()
	redis, err := devstack.StartRedisServer(t.Context(), t.TempDir(), "--requirepass", "canary-old")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := redis.Stop(); err != nil {
			t.Error(err)
		}
	})
	file := filepath.Join(t.TempDir(), "redis.password")
	write := func(password string) {
		if err := os.WriteFile(file, []byte(password+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("canary-old")
	s := up(t, devstack.Options{
		Store: "redis", RedisRunning: true, RedisAddress: redis.Address,
		Sets: []string{"store.redis.password_file=" + file, "log.level=debug"},
	})
	log := func() string {
		content, err := os.ReadFile(s.LogFile("tiergate"))
		if err != nil {
			t.Fatal(err)
		}
		return string(content)
	}
	counted := func() bool {
		r := do(t, s, call{key: "sk-demo-enterprise"})
		return r.StatusCode == http.StatusOK && r.Header.Get("X-RateLimit-Degraded") == ""
	}
	if !counted() {
		t.Fatal("not counted with the first password")
	}
	redis.CLIArgs = []string{"-a", "canary-old"}
	if _, err := redis.Do(t.Context(), "CONFIG", "SET", "requirepass", "canary-new"); err != nil {
		t.Fatal(err)
	}
	write("canary-new")
	redis.CLIArgs = []string{"-a", "canary-new"}
	eventually(t, "the new password is read", func() bool { return strings.Contains(log(), "configuration reloaded") })
	if _, err := redis.Do(t.Context(), "CLIENT", "KILL", "TYPE", "normal"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "requests are counted", counted)
	if strings.Contains(log(), "canary-") {
		t.Error("the log has a password")
	}
}
