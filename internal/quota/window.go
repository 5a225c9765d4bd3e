package quota

import (
	"fmt"
	"strings"
	"time"
)

// A Window is the span of time over which a limit counts, in milliseconds, or
// Month. Windows are fixed and aligned to UTC: minutes begin at second 0, days
// at midnight, weeks on Monday, months on the first; any other length is
// aligned to the Unix epoch. One that slides has the same bounds and name; see Slide.
type Window int64

// The named windows.
const (
	Second Window = 1000
	Minute        = 60 * Second
	Hour          = 60 * Minute
	Day           = 24 * Hour
	Week          = 7 * Day
	Month  Window = -1 // a calendar month, UTC
)

// maxWindow is the longest window that is not a month.
const maxWindow = 366 * 24 * time.Hour

// mondayOffset is how far the first Monday lies after the Unix epoch, which was
// a Thursday.
const mondayOffset = int64(4 * Day)

// named pairs the windows with their names.
func named() map[Window]string {
	return map[Window]string{
		Second: "second", Minute: "minute", Hour: "hour", Day: "day", Week: "week", Month: "month",
	}
}

// ParseWindow reads the name of a window (second, minute, hour, day, week,
// month) or a duration such as "90s" or "12h": whole seconds, at most 366 days.
func ParseWindow(s string) (Window, error) {
	for w, name := range named() {
		if s == name {
			return w, nil
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, unknown("window", s, "second, minute, hour, day, week, month or a duration such as 90s")
	}
	if d < time.Second || d%time.Second != 0 || d > maxWindow {
		return 0, fmt.Errorf("window %q is out of range: want whole seconds, from 1s to 8784h", s)
	}
	return Window(d.Milliseconds()), nil
}

// String returns the window's name, or its length as a duration such as "15m".
func (w Window) String() string {
	switch w = w.Fixed(); w {
	case Second:
		return "second"
	case Minute:
		return "minute"
	case Hour:
		return "hour"
	case Day:
		return "day"
	case Week:
		return "week"
	case Month:
		return "month"
	default:
		s := (time.Duration(w) * time.Millisecond).String()
		if strings.HasSuffix(s, "m0s") {
			s = strings.TrimSuffix(s, "0s")
		}
		if strings.HasSuffix(s, "h0m") {
			s = strings.TrimSuffix(s, "0m")
		}
		return s
	}
}

// Bounds returns the beginning and the end of the window that holds the
// instant now. The end is the beginning of the next window.
func (w Window) Bounds(now time.Time) (start, end time.Time) {
	if w = w.Fixed(); w == Month {
		y, m, _ := now.UTC().Date()
		return time.Date(y, m, 1, 0, 0, 0, 0, time.UTC), time.Date(y, m+1, 1, 0, 0, 0, 0, time.UTC)
	}
	ms, length, offset := now.UnixMilli(), int64(w), w.offset()
	begin := ms - mod(ms-offset, length)
	return time.UnixMilli(begin).UTC(), time.UnixMilli(begin + length).UTC()
}

// offset returns how far, in milliseconds, the windows are shifted from the
// Unix epoch; only weeks are.
func (w Window) offset() int64 {
	if w == Week {
		return mondayOffset
	}
	return 0
}

// mod is the remainder that is never negative.
func mod(a, b int64) int64 {
	if r := a % b; r < 0 {
		return r + b
	}
	return a % b
}
