package store

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// openUnnamed returns a file in memory, which needs no directory that may be written:
// a container may have none.
func openUnnamed(string, int, os.FileMode) (*os.File, error) {
	fd, err := unix.MemfdCreate("tiergate", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	return os.NewFile(uintptr(fd), "tiergate"), nil
}

// holder names the process that has locked a file, as in `, 4711 ("tiergate")`; empty: it
// cannot be seen from here.
func holder(path string) string {
	var file unix.Stat_t
	locks, err := os.ReadFile("/proc/locks")
	if err != nil || unix.Stat(path, &file) != nil {
		return ""
	}
	id := fmt.Sprintf("%02x:%02x:%d", unix.Major(file.Dev), unix.Minor(file.Dev), file.Ino)
	for line := range strings.Lines(string(locks)) {
		// As in "1: FLOCK ADVISORY WRITE 4711 fe:00:10717000 0 EOF".
		fields := strings.Fields(line)
		if len(fields) < 6 || fields[1] != "FLOCK" || fields[5] != id {
			continue
		}
		name, err := os.ReadFile("/proc/" + fields[4] + "/comm")
		if err != nil { // of a container that shows its own processes only
			return ""
		}
		return fmt.Sprintf(", %s (%q)", fields[4], strings.TrimSpace(string(name)))
	}
	return ""
}
