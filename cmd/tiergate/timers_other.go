//go:build !linux

package main

import "time"

// slackenTimers does nothing: only Linux lets a process say how late its timers may be.
func slackenTimers() {}

func slackOfTimers() time.Duration { return 0 }
