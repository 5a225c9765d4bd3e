package main

import (
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// timerSlack is by how much the timers of a server may be late.
const timerSlack = time.Millisecond

// slackenTimers lets Linux have the timers of this process ring late, by timerSlack at the most. Each time that
// all its threads have waited, as they do for Redis, Go watches over them every 20 µs for a while, which takes
// processor time; so it does so every millisecond. No timer of a server has to be more exact.
//
// A thread has its slack from the one that started it, and Go starts its watch before the program. So the program is
// executed once more, in the same process (see prctl(2), PR_SET_TIMERSLACK). Where that cannot be done, timers are as
// exact as before.
func slackenTimers() {
	runtime.LockOSThread() // whose slack it is
	defer runtime.UnlockOSThread()
	if slackOfTimers() >= timerSlack {
		return // it has been executed once more, or was started so
	}
	program, err := os.Executable()
	var files unix.Rlimit
	if err != nil || !runs(program) || unix.Getrlimit(unix.RLIMIT_NOFILE, &files) != nil {
		return
	}
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(timerSlack), 0, 0, 0)
	if slackOfTimers() < timerSlack { // under real-time scheduling timers are exact
		return
	}
	_ = unix.Exec(program, os.Args, os.Environ())
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) // what it was
	_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &files)     // Go had raised it at the start, and lowered it again for that
}

// runs reports whether a file is the program that runs: since the start another may have taken its place.
func runs(program string) bool {
	file, err := os.Stat(program)
	if err != nil {
		return false
	}
	self, err := os.Stat("/proc/self/exe")
	return err == nil && os.SameFile(file, self)
}

// slackOfTimers returns by how much the timers of this thread may be late, and of those that it starts; 0: it is not known.
func slackOfTimers() time.Duration {
	slack, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil {
		return 0
	}
	return time.Duration(slack)
}
