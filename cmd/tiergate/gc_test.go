package main

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"testing"
	"testing/fstest"
)

// TestContainerMemory: the least of all groups that the process is in bounds it.
func TestContainerMemory(t *testing.T) {
	t.Parallel()
	const none = math.MaxInt64
	for name, c := range map[string]struct {
		files map[string]string
		want  int64
	}{
		"no control groups":        {nil, none},
		"version 2":                {map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1048576\n"}, 1 << 20},
		"version 2, without limit": {map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, none},
		"a unit of systemd": {map[string]string{
			"proc/self/cgroup": "0::/system.slice/tiergate.service\n", "sys/fs/cgroup/system.slice/tiergate.service/memory.max": "max\n",
			"sys/fs/cgroup/system.slice/memory.max": "2097152\n",
		}, 2 << 20},
		"the group within the other": {map[string]string{
			"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "1048576\n", "sys/fs/cgroup/a/memory.max": "2097152\n",
		}, 1 << 20},
		"version 1": {map[string]string{
			"proc/self/cgroup": "3:cpu,cpuacct:/docker/x\n2:memory:/docker/x\n1:name=systemd:/docker/x\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "1048576\n",
		}, 1 << 20},
		"version 1, without limit": {map[string]string{
			"proc/self/cgroup": "2:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
		}, none},
		"nonsense":                   {map[string]string{"proc/self/cgroup": "x\n0::/\n", "sys/fs/cgroup/memory.max": "lots\n"}, none},
		"a path that leads outwards": {map[string]string{"proc/self/cgroup": "0::/../..\n", "sys/fs/cgroup/memory.max": "1048576\n"}, 1 << 20},
	} {
		root := fstest.MapFS{}
		for file, text := range c.files {
			root[file] = &fstest.MapFile{Data: []byte(text)}
		}
		if have := containerMemory(root); have != c.want {
			t.Errorf("%s: %d, want %d", name, have, c.want)
		}
	}
}

// TestTuneGC: what the environment says holds; else the collector is told to take its time
// within the container's memory.
func TestTuneGC(t *testing.T) { //nolint:paralleltest // the collector is the whole process's
	limit := debug.SetMemoryLimit(-1)
	t.Cleanup(func() { debug.SetMemoryLimit(limit) })
	bounded := fstest.MapFS{
		"proc/self/cgroup": {Data: []byte("0::/\n")}, "sys/fs/cgroup/memory.max": {Data: []byte("1000000000\n")},
	}
	for name, c := range map[string]struct {
		environment map[string]string
		root        fstest.MapFS
		floor       int
		limit       int64
	}{
		"nothing is said":    {nil, nil, heapFloor, math.MaxInt64},
		"a container":        {nil, bounded, heapFloor, 900_000_000 + heapFloor},
		"GOGC is said":       {map[string]string{"GOGC": "50"}, bounded, 0, 900_000_000},
		"GOMEMLIMIT is said": {map[string]string{"GOMEMLIMIT": "off"}, bounded, heapFloor, math.MaxInt64},
	} {
		debug.SetMemoryLimit(math.MaxInt64) // what Go has taken from the environment, at its start
		have := tuneGC(func(name string) string { return c.environment[name] }, c.root)
		if have.floor.Cap() != c.floor || have.limit != c.limit || debug.SetMemoryLimit(-1) != c.limit {
			t.Errorf("%s: a floor of %d, a limit of %d", name, have.floor.Cap(), have.limit)
		}
	}
}

// TestFloorTakesNoMemory: it counts for the collector, and not for the system. Nor
// does it where it lies in memory that was used before, which Go clears for what asks for
// cleared memory. The test runs in a process of its own, whose memory no other test takes.
func TestFloorTakesNoMemory(t *testing.T) { //nolint:paralleltest // others take memory too
	const own = "TIERGATE_TEST_OWN_PROCESS"
	if os.Getenv(own) == "" {
		test := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFloorTakesNoMemory$")
		test.Env = append(os.Environ(), own+"=1")
		if output, err := test.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, output)
		}
		return
	}
	runtime.KeepAlive(bytes.Repeat([]byte{1}, 2*heapFloor)) // as what an instance does before leaves garbage
	debug.FreeOSMemory()
	before := residentPages(t)
	m := tuneGC(func(string) string { return "" }, fstest.MapFS{})
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	if stats.NextGC < 2*heapFloor {
		t.Errorf("the next collection is at %d bytes", stats.NextGC)
	}
	if grown := (residentPages(t) - before) * os.Getpagesize(); grown > heapFloor/2 {
		t.Errorf("the process has grown by %d bytes", grown)
	}
	runtime.KeepAlive(m.floor)
}

// residentPages returns how many pages of memory this process has.
func residentPages(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	var size, resident int
	if _, err := fmt.Sscan(string(text), &size, &resident); err != nil {
		t.Fatal(err)
	}
	return resident
}
