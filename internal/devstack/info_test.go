package devstack

import (
	"testing"
)

// TestParseInfo: what a server says of itself has numbers of both kinds.
func TestParseInfo(t *testing.T) {
	t.Parallel()
	r, err := StartRedisServer(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.Stop(); err != nil {
			t.Error(err)
		}
	}()
	for range 3 {
		if _, err := r.Do(t.Context(), "get", "a"); err != nil {
			t.Fatal(err)
		}
	}
	text, err := r.Do(t.Context(), "info", "everything")
	if err != nil {
		t.Fatal(err)
	}
	numbers, err := ParseInfo(text)
	if err != nil {
		t.Fatal(err)
	}
	cpu := numbers["used_cpu_user"] + numbers["used_cpu_sys"]
	if numbers["cmdstat_get"] != 3 || cpu <= 0 || numbers["used_memory"] <= 0 {
		t.Errorf("%v calls of GET, %v s, %v bytes: want 3, and some", numbers["cmdstat_get"], cpu, numbers["used_memory"])
	}
	if _, ok := numbers["redis_version"]; ok {
		t.Error("the version is taken for a number")
	}
	if _, err := ParseInfo("cmdstat_get:usec=3"); err == nil {
		t.Error("a command without a number of calls is no error")
	}
}
