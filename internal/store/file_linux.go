package store

import (
	"os"

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
