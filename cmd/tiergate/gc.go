package main

import (
	"io/fs"
	"math"
	"path"
	"runtime/debug"
	"strconv"
	"strings"
)

const (
	// heapFloor is how large the heap is taken to be where it is smaller, in bytes. Garbage
	// is collected when there is as much of it as of what lives, at Go's default. Without
	// many keys a few megabytes live, and to mark them time and again took a tenth of the
	// processor time under load. So there may be 32 MiB more garbage, and no more than that
	// however many keys there are.
	heapFloor = 32 << 20
	// memoryShare is how much of the container's memory Go may take, in percent, before it
	// collects more often than that. The rest is for what Go does not count, such as files
	// that are mapped.
	memoryShare = 90
)

// A memoryUse is how the garbage collector was told to work.
type memoryUse struct {
	floor *strings.Builder // counts as a part of the heap while it is referred to; no memory is behind it
	limit int64            // GOMEMLIMIT, bytes; math.MaxInt64: none
}

// tuneGC sets how much garbage there may be, and bounds memory by that of the container.
// GOGC and GOMEMLIMIT of the environment hold where they are set. It is for the whole
// process, and holds as long as what it returns is referred to.
func tuneGC(getenv func(string) string, root fs.FS) memoryUse {
	m := memoryUse{floor: new(strings.Builder)}
	if getenv("GOGC") == "" {
		// Nobody touches it, so the system gives no memory for it. A slice that make returns
		// is touched at times: it is cleared where a part of it was in use before.
		m.floor.Grow(heapFloor)
	}
	if limit := containerMemory(root); getenv("GOMEMLIMIT") == "" && limit < math.MaxInt64 {
		debug.SetMemoryLimit(limit/100*memoryShare + int64(m.floor.Cap()))
	}
	m.limit = debug.SetMemoryLimit(-1)
	return m
}

// containerMemory returns how many bytes the control groups of the process may have, the
// least of them; math.MaxInt64 where none is bounded, or this is no Linux. root is the file
// system from /.
func containerMemory(root fs.FS) int64 {
	least := int64(math.MaxInt64)
	membership, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return least
	}
	for line := range strings.Lines(string(membership)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3) // hierarchy:controllers:path
		if len(fields) < 3 {
			continue
		}
		mount, file := "sys/fs/cgroup", "memory.max"
		if fields[1] != "" { // version 1
			mount, file = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
			if !strings.Contains(","+fields[1]+",", ",memory,") {
				continue
			}
		}
		// In a container the path may be that of the host, which is not there; what is
		// mounted is the container's own group then.
		for group := path.Clean("/" + fields[2]); ; group = path.Dir(group) {
			least = min(least, limitIn(root, path.Join(mount, group, file)))
			if group == "/" {
				break
			}
		}
	}
	return least
}

// limitIn reads a limit; what is none, as "max" is, is math.MaxInt64. Version 1 says it
// by a number near to that.
func limitIn(root fs.FS, file string) int64 {
	text, err := fs.ReadFile(root, file)
	if err != nil {
		return math.MaxInt64
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || n <= 0 || n >= math.MaxInt64-1<<16 {
		return math.MaxInt64
	}
	return n
}
